"""What a roofline is made of: preparation and the model with nothing beside them, on the workers' cores."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from multiprocessing.connection import Connection

import numpy as np

from tests.benchmarks.forks import Cores, pin
from tests.broker.forks import forkserver
from tests.broker.instant_worker import GEOMETRY, MODEL_INPUT
from worker.cli.run import load_encoder
from worker.encoder import Encoder
from worker.images import Fast
from worker.records import Pixels
from worker.settings import Settings
from worker.system import prefer_throughput

_IN_TIME_S = 120
_MAX_PIXELS = 50_000_000
_MEASURED_S = 1.0
_MODEL_MEASURED_S = 4.0  # a batch takes a good part of a second


Question = bytes | Pixels | int
"""A picture to prepare, or the size of a batch for the model."""


class Alone:
    """Asks processes that do nothing else: one on all cores, and one on each. Ask while the workers are suspended."""

    def __init__(self, on_all: Connection, on_each: Sequence[Connection], scale: float) -> None:
        self._on_all = on_all
        self._on_each = on_each
        self._scale = scale

    def preparation_s(self, image: bytes | Pixels) -> float:
        """Return the seconds that decoding and resizing a picture takes on one core, while the others are idle."""
        [seconds] = self._ask(self._on_each[:1], image, _MEASURED_S)
        return seconds

    def preparation_rate(self, image: bytes | Pixels) -> float:
        """Return the pictures/s that all cores decode and resize at once: hyperthreads share what a core has."""
        return sum(1 / seconds for seconds in self._ask(self._on_each, image, _MEASURED_S))

    def model_s(self, batch: int) -> float:
        """Return the seconds that the real model, untrained, takes for a batch on all cores."""
        [seconds] = self._ask([self._on_all], batch, _MODEL_MEASURED_S)
        return seconds

    def _ask(self, processes: Sequence[Connection], question: Question, seconds: float) -> Sequence[float]:
        for process in processes:
            process.send((question, seconds * self._scale))
        return [_read(process) for process in processes]


@contextmanager
def alone(cores: Cores, scale: float) -> Iterator[Alone]:
    """Start the processes; each ends with our end of its connection."""
    with ExitStack() as stack:
        on_each = [stack.enter_context(_process(Cores([core]))) for core in sorted(cores)]
        yield Alone(stack.enter_context(_process(cores)), on_each, scale)


@contextmanager
def _process(cores: Cores) -> Iterator[Connection]:
    ours, theirs = forkserver.Pipe()
    process = forkserver.Process(target=_answer, args=(cores, theirs))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()


def _read(process: Connection) -> float:
    assert process.poll(_IN_TIME_S), "no answer"
    answer: float = process.recv()
    return answer


def _answer(cores: Cores, connection: Connection) -> None:
    pin(cores)
    prefer_throughput()  # as the workers do
    prepare = Fast(MODEL_INPUT, GEOMETRY, _MAX_PIXELS)
    with suppress(EOFError):
        while True:
            question, seconds = connection.recv()
            work = _encoding(question) if isinstance(question, int) else partial(prepare, question)
            connection.send(_mean_s(work, seconds))


def _encoding(batch: int) -> Callable[[], object]:
    shape = MODEL_INPUT.size, MODEL_INPUT.size, 3
    return partial(_encoder().encode, np.zeros((batch, *shape), np.uint8), np.zeros((0, *shape), np.float32))


@cache
def _encoder() -> Encoder:
    return load_encoder(Settings(bootstrap_servers="none", weights="random", device="cpu"))


def _mean_s(work: Callable[[], object], seconds: float) -> float:
    work()
    begun_s, times = time.perf_counter(), 0
    while (took_s := time.perf_counter() - begun_s) < seconds or not times:
        work()
        times += 1
    return took_s / times
