"""Embedding records -> rows, and rows into a file. A row is one embedding; chunks are flattened."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.embedding import EmbeddingRecord

_ROWS_PER_GROUP = 10_000
_TAG_LEVELS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One embedding, float32 [D], and where it comes from.

    `chunk` is the path to a nested document by its positions (`0`, `2.1`), empty for the root. `tags` are JSON.
    """

    id: str
    chunk: str
    chunk_id: str | None
    embedding: npt.NDArray[np.float32]
    tags: str | None
    model: str
    preprocessing: str
    normalized: bool
    key: bytes | None
    partition: int
    offset: int
    timestamp_ms: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where an embedding record stands on its topic."""

    key: bytes | None
    partition: int
    offset: int
    timestamp_ms: int | None


def rows_of(record: EmbeddingRecord, place: Place) -> Iterator[Row]:
    """Yield a row for the document's own embedding, then for those of its chunks, at any depth."""
    origin = record.origin
    for chunk, nested in _flatten(record, ""):
        if nested.embedding is not None:
            yield Row(
                id=record.id or "",
                chunk=chunk,
                chunk_id=nested.id if chunk else None,
                embedding=nested.embedding,
                tags=None if nested.tags is None else _json(_plain(nested.tags)),
                model="" if origin is None else origin.model,
                preprocessing="" if origin is None else origin.preprocessing,
                normalized=origin is not None and origin.normalized,
                key=place.key,
                partition=place.partition,
                offset=place.offset,
                timestamp_ms=place.timestamp_ms,
            )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(value: object, depth: int = 0) -> object:
    """Put what msgpack knows into what JSON knows; what is nested deeper than 64 levels is `…`."""
    if depth >= _TAG_LEVELS:
        return "…"
    match value:
        case dict():
            return {_name(key): _plain(item, depth + 1) for key, item in value.items()}
        case list():
            return [_plain(item, depth + 1) for item in value]
    return _plain_leaf(value)


def _plain_leaf(value: object) -> object:
    match value:
        case bytes():
            return value.decode(errors="replace")
        case float():
            return value if isfinite(value) else None
        case None | bool() | int() | str():
            return value
    return repr(value)


def _name(key: object) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else _json(plain)


def _flatten(record: EmbeddingRecord, path: str) -> Iterator[tuple[str, EmbeddingRecord]]:
    yield path, record
    for position, chunk in enumerate(record.chunks):
        yield from _flatten(chunk, f"{path}.{position}" if path else str(position))


def write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    """Write a JSON object a line, the embedding as a list of numbers; return the number of rows."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007 - the last one is the number
            values = asdict(row) | {
                "embedding": row.embedding.tolist(),
                "key": None if row.key is None else row.key.decode(errors="replace"),
            }
            file.write(_json(values) + "\n")
    return count


def write_npz(path: Path, rows: Iterable[Row]) -> int:
    """Write one array a column; `embedding` is float32 [N, D]. All rows are held in memory.

    Raises: `ValueError` where embeddings of several lengths are among them.
    """
    kept = list(rows)
    sizes = {len(row.embedding) for row in kept}
    if len(sizes) > 1:
        raise ValueError(f"embeddings of several lengths, {sorted(sizes)}, don't fit into one array")
    columns = {name: _column(name, kept) for name in (field.name for field in fields(Row))}
    with path.open("wb") as file:  # given a path, numpy would append .npz to it
        np.savez(file, **columns)  # type: ignore[arg-type]  # no column is called allow_pickle
    return len(kept)


def _column(name: str, rows: Sequence[Row]) -> npt.NDArray[np.generic]:
    values = [getattr(row, name) for row in rows]
    match name:
        case "embedding":
            return np.stack(values) if values else np.empty((0, 0), np.float32)
        case "key":
            return np.array(["" if key is None else key.decode(errors="replace") for key in values], dtype=np.str_)
        case "timestamp_ms":
            return np.array([-1 if stamp is None else stamp for stamp in values], dtype=np.int64)
        case "partition" | "offset":
            return np.array(values, dtype=np.int64)
        case "normalized":
            return np.array(values, dtype=np.bool_)
    return np.array(["" if text is None else text for text in values], dtype=np.str_)


def write_parquet(path: Path, rows: Iterable[Row]) -> int:
    """Write a Parquet file in groups of 10,000 rows; `embedding` is a list of float32."""
    import pyarrow as pa  # noqa: PLC0415 - half a second that only this format costs
    import pyarrow.parquet as pq  # noqa: PLC0415

    types = {
        "embedding": pa.list_(pa.float32()),
        "normalized": pa.bool_(),
        "key": pa.binary(),
        "partition": pa.int32(),
        "offset": pa.int64(),
        "timestamp_ms": pa.int64(),
    }
    schema = pa.schema([(field.name, types.get(field.name, pa.string())) for field in fields(Row)])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        group: list[dict[str, object]] = []
        for row in rows:
            group.append({name: getattr(row, name) for name in schema.names})
            count += 1
            if len(group) == _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group.clear()
        writer.write_table(pa.Table.from_pylist(group, schema))
    return count


WRITERS = {".parquet": write_parquet, ".npz": write_npz, ".jsonl": write_jsonl}
