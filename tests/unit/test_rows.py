import json
from collections.abc import Callable, Iterable
from pathlib import Path

import msgpack
import numpy as np
import pyarrow.parquet
import pytest

from schemas.embedding import EmbeddingRecord, Origin
from worker.cli.rows import WRITERS, Place, Row, rows_of

ORIGIN = Origin("ViT-B/32:openai:3f2a9c01d2e4", "fast", normalized=False)
PLACE = Place(key=b"\xff", partition=1, offset=2, timestamp_ms=3)


def _row(tags: object) -> Row:
    (row,) = rows_of(EmbeddingRecord("a", np.ones(2, np.float32), (), tags, ORIGIN), PLACE)
    return row


def _deep(levels: int, innermost: object) -> object:
    for _ in range(levels):
        innermost = [innermost]
    return innermost


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        pytest.param({"a": "ü", "n": [1, 2.5, True, None]}, {"a": "ü", "n": [1, 2.5, True, None]}, id="plain"),
        pytest.param({b"k\xff": b"v\xff"}, {"k\ufffd": "v\ufffd"}, id="bytes"),
        pytest.param(
            {2: "a", None: "b", True: "c", 0.5: "d"}, {"2": "a", "null": "b", "true": "c", "0.5": "d"}, id="keys"
        ),
        pytest.param([float("nan"), float("inf"), {float("nan"): 1}], [None, None, {"null": 1}], id="not finite"),
        pytest.param(msgpack.Timestamp(1), "Timestamp(seconds=1, nanoseconds=0)", id="timestamp"),
        pytest.param([msgpack.ExtType(5, b"7")], ["ExtType(code=5, data=b'7')"], id="ext"),
        pytest.param(_deep(1_000, 1), _deep(64, "…"), id="deeper than 64 levels"),
    ],
)
def test_tags_of_every_kind_are_json(tags: object, expected: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(_row(tags).tags or "", parse_constant=refuse) == expected


def _read_jsonl(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def _read_npz(path: Path) -> list[str]:
    with np.load(path) as columns:
        return [str(name) for name in columns["id"]]


def _read_parquet(path: Path) -> list[str]:
    return [str(name) for name in pyarrow.parquet.read_table(path).to_pydict()["id"]]


READERS: dict[str, Callable[[Path], list[str]]] = {".jsonl": _read_jsonl, ".npz": _read_npz, ".parquet": _read_parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_of_any_name_holds_the_rows(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"embeddings{suffix}.part"

    assert WRITERS[suffix](path, [_row({"a": 1}), _row(None)]) == 2

    assert READERS[suffix](path) == ["a", "a"]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_no_rows_are_a_file_too(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"embeddings{suffix}"
    none: Iterable[Row] = ()

    assert WRITERS[suffix](path, none) == 0

    assert READERS[suffix](path) == []
