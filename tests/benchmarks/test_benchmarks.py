import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import pytest
from click.testing import CliRunner

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks.pictures import picture
from tests.benchmarks.preparation import ways
from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.benchmarks.timing import interleave, on_one_core, ratios


@pytest.mark.parametrize(
    ("bound", "holds"),
    [
        (Bound("a", "b", [3.5], at_least=3.5), True),
        (Bound("a", "b", [3.49], at_least=3.5), False),
        (Bound("a", "b", [8.1], at_most=8), False),
        (Bound("a", "b", [1.0], at_least=0.9, at_most=1.1), True),
        (Bound("a", "b", [float("nan")], at_least=1), False),
        (Bound("a", "b", [0.0]), True),
    ],
)
def test_a_bound_holds_within_its_limits(bound: Bound, holds: bool) -> None:  # noqa: FBT001
    assert bound.holds is holds


@pytest.mark.parametrize(("is_at", "exit_code", "verdict"), [(2.0, 0, "holds"), (0.5, 1, "off")])
def test_the_command_ends_with_1_where_a_bound_is_off(
    is_at: float, exit_code: int, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def part(size: Size, _: object) -> Iterator[Result]:
        yield Measurement("parts", "something", "ms", [3.0, 1.0, 2.0][: size.rounds])
        yield Bound("parts", "one to another", [is_at], at_least=1.0)

    monkeypatch.setattr(benchmarks, "PARTS", {"parts": part})
    file = tmp_path / "folder" / "bench.json"

    result = CliRunner().invoke(benchmarks.main, ["--rounds", "3", "--json", str(file)])

    assert result.exit_code == exit_code
    assert verdict in result.output
    assert json.loads(file.read_text())["bounds"] == [
        {"part": "parts", "name": "one to another", "ratios": [is_at], "ratio": is_at, "at_least": 1.0, "at_most": None}
        | {"holds": exit_code == 0}
    ]
    assert json.loads(file.read_text())["measurements"] == [
        {"part": "parts", "name": "something", "unit": "ms", "values": [3.0, 1.0, 2.0], "median": 2.0}
    ]


def test_the_parts_are_measured_on_a_machine_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"

    result = CliRunner().invoke(
        benchmarks.main, ["--part", "parts", "--rounds", "1", "--scale", "0.01", "--json", str(file)]
    )

    assert result.exception is None or result.exit_code == 1, result.output
    written = json.loads(file.read_text())
    assert {"torch", "pillow", "simplejpeg", "librdkafka"} <= written["machine"]["packages"].keys()
    measured = {one["name"]: one["median"] for one in written["measurements"]}
    expected = {"fast, 500×375 JPEG", "reference, 500×375 WEBP", "read a document of 60 KB", "decode: fast, 500×375"}
    assert expected <= measured.keys()
    assert all(median > 0 for median in measured.values())
    assert "torch.compile is left out" in result.output


def test_fast_preparation_is_at_least_two_and_a_half_times_open_clips_per_core() -> None:
    image, prepare = picture("JPEG", 500, 375), ways()
    calls = {name: partial(prepare[name], image) for name in ("open_clip's transform", "fast")}

    seconds = on_one_core(lambda: interleave(calls, rounds=5))

    times = median(ratios(seconds["open_clip's transform"], seconds["fast"]))
    print(f"fast preparation of 500×375 JPEGs: {times:.2f} times open_clip's transform")  # noqa: T201 - the figure
    assert times >= 2.5
