"""Calls timed in rounds on a device, which works on after a call has returned."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from tests.benchmarks.report import Measurement, Size
from tests.benchmarks.timing import interleave

_ROUND_S = 0.5


def rates(part: str, ways: Mapping[str, Callable[[], object]], items: int, unit: str, size: Size) -> list[Measurement]:
    """Measure each way in turn, round after round; `items` are in one call."""
    seconds = interleave(ways, size.rounds, _when_the_device_is_done, _ROUND_S * size.scale)
    return [Measurement(part, name, unit, [items / one for one in took_s]) for name, took_s in seconds.items()]


def best(measurements: Sequence[Measurement]) -> float:
    """Return the largest median."""
    return max(measurement.median for measurement in measurements)


def _when_the_device_is_done() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
