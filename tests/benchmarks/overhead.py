"""What a record costs beside decoding, resizing and the model: CPU of all the worker's threads, librdkafka's included.

The device takes no time worth speaking of, and no picture is decoded; the pixels are copied to the encoder as always.
The start and the filling of the topic aren't counted: the worker is suspended meanwhile.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from schemas.document import pack_document
from tests.benchmarks import empty, simulated
from tests.benchmarks.pyspy import RATE_HZ, Samples, holding_gil, runnable
from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.benchmarks.stage import Crew, Round, Stage, opened

FAST_DEVICE = {simulated.RATE: "100000", simulated.PREPARED: "1"}

PART = "overhead"
_UNIT = "µs a record"
_THREADS = ("main", "prepare", "encode", "rdk:")
_LEAST_RECORDS = 100
_WORTH_SHOWING_US = 0.5
_KAFKA_ALONE = "Kafka in and out alone"


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    blob_bytes: int
    records: int
    at_most_us: float | None

    @property
    def value(self) -> bytes:
        return pack_document("picture", bytes(self.blob_bytes))

    def records_at(self, size: Size) -> int:
        return max(_LEAST_RECORDS, round(self.records * size.scale))


_CASES = (
    _Case("2 KB", 2_000, 20_000, 60.0),
    _Case("60 KB", 60_000, 4_000, 100.0),
    _Case("1 MB", 1_000_000, 300, None),
)
_PHOTO = _Case("70 KB", 70_000, 4_000, None)


def overhead(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Measure the worker and an empty pipeline at three sizes of record."""
    with opened(size.scale) as stage:
        yield from overhead_on(stage, size, say)


def overhead_on(stage: Stage, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    say(
        "CPU by thread from /proc/PID/task/*/schedstat. By step and holding the GIL: samples of py-spy, "
        f"{RATE_HZ} a second, in rounds of their own; a step is the innermost module of the worker on the stack"
    )
    with ExitStack() as stack:
        worker = stack.enter_context(stage.crew(simulated.MODULE, env=FAST_DEVICE))
        nothing_between = stack.enter_context(stage.crew(empty.MODULE))
        without = {
            trick: stack.enter_context(stage.crew(simulated.MODULE, env=FAST_DEVICE | {simulated.WITHOUT: trick}))
            for trick in simulated.TRICKS
        }
        for crew in (worker, nothing_between, *without.values()):
            crew.warm_up(pack_document("picture", b"-"))
        for case in _CASES:
            yield from _measure(case, worker, nothing_between, size, say)
            yield from _compare(case, worker, without, size)
        rounds = [nothing_between.round(_PHOTO.value, _PHOTO.records_at(size)) for _ in range(size.rounds)]
        yield Measurement(PART, f"{_PHOTO.name}, {_KAFKA_ALONE}", _UNIT, [done.cpu_us() for done in rounds])


def _measure(case: _Case, worker: Crew, empty: Crew, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    value, records = case.value, case.records_at(size)
    spent: defaultdict[str, list[float]] = defaultdict(list)
    steps = Steps()
    for _ in range(size.rounds):
        done = worker.round(value, records)
        spent["all threads"].append(done.cpu_us())
        for thread in _THREADS:
            spent[f"thread {thread.rstrip(':')}"].append(done.cpu_us(thread))
        spent[_KAFKA_ALONE].append(empty.round(value, records).cpu_us())
        steps.add(*worker.watched_round(value, records, runnable), *worker.watched_round(value, records, holding_gil))
    for name, values in (*spent.items(), *steps.values()):
        yield Measurement(PART, f"{case.name}, {name}", _UNIT, values)
    say(f"{case.name}: {statistics.median(spent['all threads']):.0f} µs of CPU a record")
    if case.at_most_us is not None:
        name = f"CPU a record at {case.name}, of {case.at_most_us:g} µs"
        yield Bound(PART, name, [cost_us / case.at_most_us for cost_us in spent["all threads"]], at_most=1.0)


def _compare(case: _Case, worker: Crew, without: Mapping[str, Crew], size: Size) -> Iterator[Result]:
    """Yield what each trick brings: the CPU a record without it to that with it, round by round."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(size.rounds):
        with_all_us = worker.round(case.value, case.records_at(size)).cpu_us()
        for trick, crew in without.items():
            found[trick].append(crew.round(case.value, case.records_at(size)).cpu_us() / with_all_us)
    for trick, ratios in found.items():
        yield Bound(PART, f"{trick}: CPU a record before to after, {case.name}", ratios)


class Steps:
    """What each step of each thread takes of a record's time, runnable and holding the GIL, round by round."""

    def __init__(self) -> None:
        self._rounds: list[dict[str, float]] = []

    def add(self, first: Round, running: Samples, second: Round, holding: Samples) -> None:
        """Note two rounds, one sampled for what is runnable, the other for what holds the GIL."""
        found: dict[str, float] = {}
        for what, done, samples in (("runnable", first, running), ("holding the GIL", second, holding)):
            found[f"all steps, {what}"] = samples.seconds / done.records * 1e6
            for (thread, step), seconds in samples.by_step().items():
                found[f"{thread}: {step}, {what}"] = seconds / done.records * 1e6
        self._rounds.append(found)

    def values(self) -> Iterator[tuple[str, Sequence[float]]]:
        """Yield the microseconds a record of each step that is worth showing; one without a sample has 0."""
        names = sorted({name for found in self._rounds for name in found})
        for name in names:
            values = [found.get(name, 0.0) for found in self._rounds]
            if statistics.median(values) >= _WORTH_SHOWING_US:
                yield name, values
