"""What a roofline is made of: preparation and the model with nothing beside them, on the workers' cores."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


class Alone:
    """Asks that process. Ask while the workers are suspended."""

    def __init__(self, connection: Connection, scale: float) -> None:
        self._connection = connection
        self._scale = scale

    def preparation_s(self, image: bytes | Pixels) -> float:
        """Return the seconds that decoding and resizing a picture takes on one core."""
        return self._ask(image, _MEASURED_S)

    def model_s(self, batch: int) -> float:
        """Return the seconds that the real model, untrained, takes for a batch."""
        return self._ask(batch, _MODEL_MEASURED_S)

    def _ask(self, question: bytes | Pixels | int, seconds: float) -> float:
        self._connection.send((question, seconds * self._scale))
        assert self._connection.poll(_IN_TIME_S), "no answer"
        answer: float = self._connection.recv()
        return answer


@contextmanager
def alone(cores: Cores, scale: float) -> Iterator[Alone]:
    """Start the process; it ends with this one's end of the connection."""
    ours, theirs = forkserver.Pipe()
    process = forkserver.Process(target=_answer, args=(cores, theirs))
    process.start()
    theirs.close()
    try:
        yield Alone(ours, scale)
    finally:
        ours.close()
        process.join()


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
