"""Where the time of the main thread and of the encode thread goes, and how much of it the GIL is held.

The worker does 500×375 JPEGs for a simulated device of 2,000 images/s. Samples of py-spy from outside, in rounds of
their own: what is runnable (on a core, or waiting for one), and what holds the GIL. Shares are of the time from the
first output to the last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from schemas.document import pack_document
from tests.benchmarks import simulated
from tests.benchmarks.pictures import jpeg
from tests.benchmarks.pyspy import RATE_HZ, Samples, holding_gil, runnable
from tests.benchmarks.report import Measurement, Result, Size
from tests.benchmarks.stage import Round, Stage, opened

PART = "profile"

_DEVICE = {simulated.RATE: "2000"}
_RECORDS = 4_000
_LEAST_RECORDS = 200
_THREADS = ("main", "encode")
_FUNCTIONS_SHOWN = 12
_WORTH_SHOWING = 0.1
_UNIT = "% of the time"


def profile(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Sample the worker at its usual work."""
    with opened(size.scale) as stage:
        yield from profile_on(stage, size, say)


def profile_on(stage: Stage, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    say(f"py-spy, {RATE_HZ} samples a second; a step is the innermost module of the worker on the stack")
    value = pack_document("picture", jpeg(500, 375))
    records = max(_LEAST_RECORDS, round(_RECORDS * size.scale))
    with stage.crew(simulated.MODULE, env=_DEVICE) as crew:
        crew.warm_up(value)
        running = [crew.watched_round(value, records, runnable) for _ in range(size.rounds)]
        holding = [crew.watched_round(value, records, holding_gil) for _ in range(size.rounds)]
    held = [samples.seconds / done.seconds * 100 for done, samples in holding]
    yield Measurement(PART, "the GIL is held", _UNIT, held)
    for thread in _THREADS:
        on_core = [_shares(each, thread, Samples.by_step) for each in running]
        with_gil = [_shares(each, thread, Samples.by_step) for each in holding]
        yield from _measurements(f"{thread}, step", "runnable", on_core, _FUNCTIONS_SHOWN)
        yield from _measurements(f"{thread}, step", "holding the GIL", with_gil, _FUNCTIONS_SHOWN)
        functions = [_shares(each, thread, Samples.by_function) for each in running]
        yield from _measurements(f"{thread}, function", "runnable, itself", functions, _FUNCTIONS_SHOWN)


def _shares(
    watched: tuple[Round, Samples], thread: str, by: Callable[[Samples], Mapping[tuple[str, str], float]]
) -> Mapping[str, float]:
    done, samples = watched
    return {
        name: seconds / done.seconds * 100
        for (its_thread, name), seconds in by(samples).items()
        if its_thread == thread
    }


def _measurements(what: str, how: str, rounds: Sequence[Mapping[str, float]], most: int) -> Iterator[Measurement]:
    """Yield the largest ones by their median; what had no sample in a round has 0 there."""
    names = {name for shares in rounds for name in shares}
    found = [
        Measurement(PART, f"{what} {name}, {how}", _UNIT, [shares.get(name, 0.0) for shares in rounds])
        for name in names
    ]
    shown = sorted(found, key=lambda each: each.median, reverse=True)[:most]
    yield from (each for each in shown if each.median >= _WORTH_SHOWING)
