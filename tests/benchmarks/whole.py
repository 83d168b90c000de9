"""The whole worker against the roofline of the same run: on the CPU, and with simulated devices of several speeds.

The roofline is what the device and the decoder allow: with the real model on the CPU, which shares the cores with the
preparation, 1 / (1/model + 1/preparation); with a device of its own, min(device, preparation). Preparation is that of
all the worker's cores at once, by a process on each. All is measured in every round, before the worker does its records
and after them: a shared machine's speed drifts.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from schemas.document import pack_document
from tests.benchmarks import simulated
from tests.benchmarks.pictures import jpeg
from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.benchmarks.stage import REAL, Crew, Stage, opened
from tests.benchmarks.timing import ratios
from tests.broker.instant_worker import MODEL_INPUT
from worker.records import Pixels

PART = "whole"
CPU_BATCH = 8  # the worker's default on the CPU
WEIGHTS = ("--weights", "random", "--device", "cpu", "--max-batch", str(CPU_BATCH))

_JPEG = jpeg(500, 375)
_PIXELS = np.random.default_rng(0).integers(0, 256, (MODEL_INPUT.size, MODEL_INPUT.size, 3), np.uint8)
_LEAST_RECORDS = 24


@dataclass(frozen=True, slots=True, eq=False)
class _Case:
    """What is measured; `device` is images/s of a simulated one, None is the real model on the CPU.

    `env` says what the worker does without. What the cores limit comes in `turns`: their speed changes in seconds.
    """

    name: str
    picture: bytes | Pixels
    records: int
    device: float | None = None
    at_least: float | None = None
    at_most_idle: float | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    turns: int = 1

    def roofline(self, stage: Stage) -> float:
        """Measure and return the images/s that the parts would allow."""
        preparation = stage.alone.preparation_rate(self.picture)
        if self.device is None:
            return 1 / (stage.alone.model_s(CPU_BATCH) / CPU_BATCH + 1 / preparation)
        return min(self.device, preparation)


# The fastest devices get pictures that need next to no preparation: what the pipeline itself can carry. No device
# waits for the cores there at 2,000 images/s, so its idle time is the pipeline's.
_SATURATED = _Case("device of 2,000/s, 500×375 JPEG", _JPEG, 4_000, 2_000, at_least=0.90, turns=4)
_CASES = (
    _Case("ViT-B/32 on the CPU, 500×375 JPEG", _JPEG, 120, at_least=0.95),
    _SATURATED,
    *(
        replace(_SATURATED, name=f"{_SATURATED.name}, without: {trick}", at_least=None, env={simulated.WITHOUT: trick})
        for trick in simulated.TRICKS
    ),
    _Case("device of 2,000/s, 224×224 uint8", _PIXELS, 6_000, 2_000, at_most_idle=0.03),
    _Case("device of 10,000/s, 224×224 uint8", _PIXELS, 6_000, 10_000),
    _Case("device of 20,000/s, 224×224 uint8", _PIXELS, 6_000, 20_000),
)


def whole(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Measure all cases, in turn, round after round."""
    with opened(size.scale) as stage:
        yield from whole_on(stage, size, say)


def whole_on(stage: Stage, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    say(f"broker on {len(stage.broker_cores)} cores, worker on {len(stage.worker_cores)}: {stage.kafka.route}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = [stack.enter_context(_run(stage, case, folder / str(number))) for number, case in enumerate(_CASES)]
        for run in runs:
            run.crew.warm_up(run.value)
        for _ in range(size.rounds):
            for run in runs:
                run.round(stage, size.scale)
                say(f"{run.case.name}: {run.rates[-1]:.1f} of {run.rooflines[-1]:.1f} images/s")
        for run in runs:
            yield from run.results()


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """A case with its worker, and what its rounds measured."""

    case: _Case
    crew: Crew
    timeline: Path
    rates: list[float] = field(default_factory=list)
    rooflines: list[float] = field(default_factory=list)
    idle_shares: list[float] = field(default_factory=list)
    busy_percent: list[float] = field(default_factory=list)

    @property
    def value(self) -> bytes:
        return pack_document("picture", self.case.picture)

    def round(self, stage: Stage, scale: float) -> None:
        """Let the worker do its records in turns, with the roofline before and after each of them."""
        records = max(_LEAST_RECORDS, round(self.case.records * scale / self.case.turns))
        rooflines, done = [self.case.roofline(stage)], []
        for _ in range(self.case.turns):
            self.timeline.write_bytes(b"")
            done.append(self.crew.round(self.value, records))
            rooflines.append(self.case.roofline(stage))
        self.rates.append(fmean(each.rate for each in done))
        self.rooflines.append(fmean(rooflines))
        self.busy_percent.append(fmean(each.cpu_us() * each.rate for each in done) / len(stage.worker_cores) / 1e4)
        if self.case.device is not None:
            self.idle_shares.append(simulated.idle_share(self.timeline.read_text().splitlines()))

    def results(self) -> Iterator[Result]:
        case = self.case
        yield Measurement(PART, f"{case.name}: worker", "images/s", self.rates)
        yield Measurement(PART, f"{case.name}: roofline", "images/s", self.rooflines)
        yield Measurement(PART, f"{case.name}: the workers' cores are busy", "%", self.busy_percent)
        yield Bound(PART, f"{case.name}: worker of roofline", ratios(self.rates, self.rooflines), case.at_least)
        if self.idle_shares:
            name = f"{case.name}: share of time without a batch"
            yield Bound(PART, name, self.idle_shares, at_most=case.at_most_idle)


@contextmanager
def _run(stage: Stage, case: _Case, timeline: Path) -> Iterator[_Run]:
    if case.device is None:
        crew = stage.crew(REAL, *WEIGHTS)
    else:
        device = {simulated.RATE: str(case.device), simulated.TIMELINE: str(timeline)}
        crew = stage.crew(simulated.MODULE, env={**device, **case.env})
    with crew as started:
        yield _Run(case, started, timeline)
