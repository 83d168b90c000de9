"""What the tricks of the path beside decoding and the model bring, each beside what would be done without it."""

import gc
from collections.abc import Callable, Iterator

import numpy as np

from tests.benchmarks.report import Measurement, Result, Size
from tests.benchmarks.timing import interleave

PART = "parts"
_BATCH, _ROWS, _SIDE = 64, 256, 224


def path(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield microseconds an image of a batch, and of a collection of garbage."""
    say("the path: a batch that lies in memory or is gathered, and collections of garbage")
    memory = np.zeros((_ROWS, _SIDE, _SIDE, 3), np.uint8)
    picture, rows = np.ones((_SIDE, _SIDE, 3), np.uint8), list(range(0, _ROWS, _ROWS // _BATCH))

    def write() -> None:
        for row in rows:
            memory[row] = picture

    calls = {
        "writing an image to where the device reads it": write,
        "gathering an image into a batch, which isn't done": lambda: memory[rows],
    }
    for name, took_s in interleave(calls, size.rounds, round_s=0.05 * size.scale).items():
        yield Measurement(PART, name, "µs", [1e6 * one / _BATCH for one in took_s])
    yield Measurement(PART, "a collection of garbage, of all that is loaded", "µs", _collections_us(size))
    gc.freeze()
    try:
        yield Measurement(PART, "a collection of garbage, of what is left after gc.freeze", "µs", _collections_us(size))
    finally:
        gc.unfreeze()


def _collections_us(size: Size) -> list[float]:
    took_s = interleave({"all": gc.collect}, size.rounds, round_s=0.05 * size.scale)
    return [1e6 * one for one in took_s["all"]]
