"""Mutated records through the real prepare stage: the pipeline with its threads, and an encoder that takes no time."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch

from schemas.dead_letter import Headers
from schemas.document import pack_document
from tests.fuzz.seeds import documents, mutated, pictures
from tests.fuzz.targets import SIZE, preparer
from tests.unit.encoders import AtOnce, rows
from worker.batcher import Batcher
from worker.images import Fast, Reference
from worker.pipeline import Beat, Limits, Pipeline
from worker.records import Deleted, Embedded, Outcome, Prepared, Record, Rejected, Skipped, SplitCause

SLOW_S = 5.0
GROWTH_BYTES = 100_000_000
_DIMENSIONS = 4
_SETTLED = 5  # memory is compared with that after this part of the records


@dataclass(slots=True)
class Figures:
    """What came of the records; `slowest` is the CPU seconds of one record, and the record."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, bytes] = (0.0, b"")
    took_s: float = 0.0
    settled_bytes: int = 0
    peak_bytes: int = 0

    @property
    def records(self) -> int:
        return self.outcomes.total()

    def troubles(self, expected: int) -> Sequence[str]:
        found = []
        if self.records != expected:
            found.append(f"{self.records} outcomes of {expected} records")
        if self.slowest[0] > SLOW_S:
            found.append(f"a record that took {self.slowest[0]:.1f} s: {self.slowest[1][:2000].hex()}")
        if self.peak_bytes - self.settled_bytes > GROWTH_BYTES:
            found.append(f"memory grew from {self.settled_bytes / 1e6:.0f} to {self.peak_bytes / 1e6:.0f} MB")
        return found


class _NoEncoder(AtOnce):
    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.zeros((len(pixels) + len(preprocessed), _DIMENSIONS), np.float32)


class _NoObserver:
    def prepared(self, seconds: float) -> None:
        """Leave it: the mutants' own clock says more."""

    def encoded(self, images: int, seconds: float) -> None:
        """Leave it."""

    def split(self, cause: SplitCause) -> None:
        raise AssertionError(f"a batch was split: {cause}")


class _Timed:
    """Prepares by either way in turn, and keeps the slowest record; called by all prepare threads."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._lock = Lock()
        self._ways = (preparer(Fast), preparer(Reference))

    def __call__(self, record: Record, beat: Beat) -> Prepared | Rejected | Deleted | Skipped:
        begun_s = time.thread_time()
        outcome = self._ways[record.offset % 2].prepare(record, beat)
        took_s = time.thread_time() - begun_s
        with self._lock:
            self._figures.slowest = max(self._figures.slowest, (took_s, record.value or b""))
        return outcome


def run_mutants(records: int, seed: int, threads: int, say: Callable[[str], None]) -> Figures:
    """Put so many records through; raises what a thread raises."""
    torch.set_num_threads(1)
    figures = Figures()
    limits = Limits(max_records=512, max_bytes=2**26)
    pipeline = Pipeline(
        _Timed(figures), _NoEncoder(), Batcher(rows(512, SIZE), 64, 0.0), limits, threads, _NoObserver()
    )
    begun_s = time.monotonic()
    settle_at = records // _SETTLED
    try:
        for record in _mutants(records, random.Random(seed)):  # noqa: S311 - mutations, no secret
            while not pipeline.has_room:
                pipeline.wait(1.0)
                _hand_out(pipeline, figures)
            pipeline.submit(record)
            if figures.records >= settle_at and not figures.settled_bytes:
                figures.settled_bytes = _memory("VmRSS")
            if record.offset % 100_000 == 99_999:
                say(f"{record.offset + 1} records in {time.monotonic() - begun_s:.0f} s")
        while pipeline.in_flight:
            pipeline.wait(1.0)
            _hand_out(pipeline, figures)
    finally:
        pipeline.close()
        pipeline.wait_for_threads(60)
    figures.took_s = time.monotonic() - begun_s
    figures.peak_bytes = _memory("VmRSS")
    return figures


def _hand_out(pipeline: Pipeline, figures: Figures) -> None:
    while (outcome := pipeline.finished()) is not None:
        assert outcome.record.offset == figures.records, f"{outcome.record} came out of its order"
        pipeline.hand_out()
        figures.outcomes[_name(outcome)] += 1


def _name(outcome: Outcome) -> str:
    match outcome:
        case Rejected(_, reason, _):
            return f"rejected: {reason}"
        case Embedded():
            return "embedded"
    return type(outcome).__name__.lower()


_HEADERS: Sequence[Headers] = (*[()] * 40, (("traversal", b"r"),), (("traversal", b"r,c"),), (("traversal", b"x"),))


def _mutants(count: int, chance: random.Random) -> Iterator[Record]:
    """Yield records: a seed in which the picture, or the record around it, or both are mutated."""
    plain = list(pictures().values())
    around = [documents(picture) for picture in plain]
    for offset in range(count):
        number = chance.randrange(len(plain))
        kind = chance.random()
        if kind < 0.7:
            value = pack_document("a", mutated(chance, plain[number]))
        else:
            value = mutated(chance, chance.choice(around[number]))
        key = b"key" if offset % 3 else None
        empty = chance.random() < 0.001
        yield Record("documents", 0, offset, key, None if empty else value, None, chance.choice(_HEADERS))


def _memory(name: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024
