"""Several ways to the same, timed in turn: what else the machine does falls on all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_T = TypeVar("_T")

Way = Callable[[], object]
Clock = Callable[[], float]

ROUND_S = 0.05  # of one way, where one call takes less


def interleave(
    ways: Mapping[str, Way], rounds: int, clock: Clock = time.thread_time, round_s: float = ROUND_S
) -> Mapping[str, Sequence[float]]:
    """Return the seconds a call of each way, once a round; by default those of this thread on its core."""
    repeats = {name: _repeats(way, clock, round_s) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun_s = clock()
            for _ in range(repeats[name]):
                way()
            seconds[name].append((clock() - begun_s) / repeats[name])
    return seconds


def on_one_core(work: Callable[[], _T]) -> _T:
    """Return what `work` does on a thread of its own, while torch gives one core to each."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return pool.submit(work).result()
    finally:
        torch.set_num_threads(threads)


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Sequence[float]:
    """Return how many times as long `slow` took, round by round."""
    return [one / other for one, other in zip(slow, fast, strict=True)]


def _repeats(way: Way, clock: Clock, round_s: float) -> int:
    way()  # the first call compiles, allocates, and looks for kernels
    begun_s = clock()
    way()
    return max(1, round(round_s / (clock() - begun_s)))
