"""Calls timed in rounds, on the CPU or on a device that works on after a call has returned."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from tests.benchmarks.report import Measurement, Size

_ROUND_S = 0.5


def rates(part: str, ways: Mapping[str, Callable[[], object]], items: int, unit: str, size: Size) -> list[Measurement]:
    """Measure each way in turn, round after round: what else the machine does falls on all. `items` are in one call."""
    repeats = {name: _repeats(way, size) for name, way in ways.items()}
    values: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(size.rounds):
        for name, way in ways.items():
            values[name].append(items / seconds_a_call(way, repeats[name]))
    return [Measurement(part, name, unit, rounds) for name, rounds in values.items()]


def seconds_a_call(call: Callable[[], object], repeats: int) -> float:
    """Return the mean over `repeats` calls, the device's work included."""
    _finish()
    begun_s = time.perf_counter()
    for _ in range(repeats):
        call()
    _finish()
    return (time.perf_counter() - begun_s) / repeats


def best(measurements: Sequence[Measurement]) -> float:
    """Return the largest median."""
    return max(measurement.median for measurement in measurements)


def _repeats(call: Callable[[], object], size: Size) -> int:
    seconds_a_call(call, 1)  # the first call compiles, allocates, and looks for kernels
    return max(1, round(_ROUND_S * size.scale / seconds_a_call(call, 1)))


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
