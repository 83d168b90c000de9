"""More workers, more partitions, and exactly-once: what the rate does, and CPU and memory of each worker.

The device is the limit, not the cores, unless named: every worker has a simulated one, and the records need no
preparation.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from schemas.document import pack_document
from tests.benchmarks import simulated
from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.benchmarks.stage import Crew, Stage, opened
from tests.benchmarks.timing import ratios

PART = "scale"

_VALUE = pack_document("picture", bytes(2_000))
_SECONDS = 4
_LEAST_SECONDS = 0.5  # a smoke compares rates too, and the first fetches take a tenth of one


@dataclass(frozen=True, slots=True)
class _Case:
    name: str
    device: float = 500
    workers: int = 1
    partitions: int = 16
    delivery: str = "at-least-once"


_ONE, _TWO, _FOUR = _Case("1 worker"), _Case("2 workers", workers=2), _Case("4 workers", workers=4)
_AT_LEAST_ONCE = _Case("at-least-once", 2_000)
_EXACTLY_ONCE = _Case("exactly-once", 2_000, delivery="exactly-once")
_FAST_AT_LEAST_ONCE = _Case("at-least-once, as fast as the core", 20_000)
_FAST_EXACTLY_ONCE = _Case("exactly-once, as fast as the core", 20_000, delivery="exactly-once")
_PARTITIONS = tuple(_Case(f"{count} partitions", 2_000, partitions=count) for count in (1, 4, 64))
_GUARANTEES = (_AT_LEAST_ONCE, _EXACTLY_ONCE, _FAST_AT_LEAST_ONCE, _FAST_EXACTLY_ONCE)
_CASES = (_ONE, _TWO, _FOUR, *_GUARANTEES, *_PARTITIONS)


def scale(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Measure all cases, in turn, round after round."""
    with opened(size.scale) as stage:
        yield from scale_on(stage, size, say)


def scale_on(stage: Stage, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    say("a device of 500 images/s for each of several workers, else of 2,000; 16 partitions unless named")
    with ExitStack() as stack:
        runs = {case: stack.enter_context(_run(stage, case)) for case in _CASES}
        for run in runs.values():
            run.crew.warm_up(_VALUE)
        for _ in range(size.rounds):
            for run in runs.values():
                run.round(size.scale)
                say(f"{run.case.name}: {run.rates[-1]:.0f} records/s")
        for run in runs.values():
            yield from run.results()
        yield _bound(runs[_TWO], runs[_ONE], 1.9)
        yield _bound(runs[_FOUR], runs[_ONE], None)
        yield _bound(runs[_EXACTLY_ONCE], runs[_AT_LEAST_ONCE], 0.95)
        yield _bound(runs[_FAST_EXACTLY_ONCE], runs[_FAST_AT_LEAST_ONCE], 0.95)


@dataclass(frozen=True, slots=True)
class _Run:
    """A case with its workers, and what its rounds measured."""

    case: _Case
    crew: Crew
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def round(self, scale: float) -> None:
        seconds = max(_LEAST_SECONDS, _SECONDS * scale)
        done = self.crew.round(_VALUE, round(self.case.device * self.case.workers * seconds))
        self.rates.append(done.rate)
        self.cpu_us.append(done.cpu_us())

    def results(self) -> Iterator[Result]:
        name = self.case.name
        yield Measurement(PART, f"{name}: rate", "records/s", self.rates)
        yield Measurement(PART, f"{name}: CPU", "µs a record", self.cpu_us)
        yield Measurement(PART, f"{name}: peak memory of each worker", "MiB", self.crew.peak_memory_mib())


@contextmanager
def _run(stage: Stage, case: _Case) -> Iterator[_Run]:
    flags = ("--delivery", case.delivery)
    env = {simulated.RATE: str(case.device), simulated.PREPARED: "1"}
    with stage.crew(simulated.MODULE, *flags, env=env, workers=case.workers, partitions=case.partitions) as crew:
        yield _Run(case, crew)


def _bound(run: _Run, of: _Run, at_least: float | None) -> Bound:
    return Bound(PART, f"{run.case.name} of {of.case.name}", ratios(run.rates, of.rates), at_least)
