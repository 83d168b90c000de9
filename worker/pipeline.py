"""Records in, outcomes out in the same order: the prepare pool, the encode thread, and the line.

Guarantees: every record submitted gets exactly one outcome, handed out in the order of submission;
what has been dropped gets none, however late its threads finish. `submit`, `finished`, `wait` and
`drop` belong to the main thread; the line is its alone. The other threads only see queues.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason
from worker.activity import Activity, call_as
from worker.batcher import Batch, Batcher, Closed, Place
from worker.errors import DeviceError, OutOfMemory, ProcessError, ThreadDied
from worker.mailbox import Mailbox
from worker.records import Deleted, Outcome, Prepared, Record, Rejected, Skipped, SplitCause
from worker.slots import Wait

log = logging.getLogger(__name__)

Beat = Callable[[], None]
"""Called as a sign of life by what may take long."""

Prepare = Callable[[Record, Beat], Prepared | Rejected | Deleted | Skipped]


class Encodes(Protocol):
    """What embeds a batch; see `worker.encoder.Encoder`."""

    @property
    def depth(self) -> int:
        """Return how many batches may be under way: begun, and not waited for."""

    def begin(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> Wait:
        """Begin with a batch, uint8 [N, R, R, 3] and float32 [M, R, R, 3], which stay as they are until it is done.

        Return what waits for its embeddings, float32 [N + M, D]; batches are waited for in the order of their begin.
        Raises, as what it returns does: `OutOfMemory`, and whatever else the model raises.
        """


class Observer(Protocol):
    """Who is told how long the stages take; see `worker.metrics.Metrics`. Called by any thread."""

    def prepared(self, seconds: float) -> None:
        """Note the preparation of a record."""

    def encoded(self, images: int, seconds: float) -> None:
        """Note a batch."""

    def split(self, cause: SplitCause) -> None:
        """Note a batch that was halved."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be in flight. The last record taken in may exceed `max_bytes`."""

    max_records: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A batch that the device is at, and what waits for it; an error where it was refused at once."""

    batch: Batch
    wait: Wait | Exception
    begun_s: float


_Finished = tuple[Place, Outcome]
_SHARE_OF_LINE = 8  # one in so many
_NOT_FINITE = "the model's embedding has values that are not finite"


class Pipeline:
    """The stages between the consumer and the producer, with their threads."""

    def __init__(
        self, prepare: Prepare, encoder: Encodes, batcher: Batcher, limits: Limits, threads: int, observer: Observer
    ) -> None:
        """Start the threads: prepare-0…n and encode."""
        self._prepare = prepare
        self._encoder = encoder
        self._batcher = batcher
        self._limits = limits
        self._observer = observer
        self._line: deque[Place] = deque()
        self._bytes = 0
        self._closing = False
        self._inbox: SimpleQueue[Place | None] = SimpleQueue()
        self._done: Mailbox[_Finished | ProcessError] = Mailbox()
        self.activities = [Activity(f"prepare-{n}") for n in range(threads)] + [Activity("encode")]
        # Daemons: a decoder that hangs must not keep the process at its end.
        self.threads = [
            Thread(target=self._guard, args=(work, activity), name=activity.name, daemon=True)
            for work, activity in zip([self._prepare_all] * threads + [self._encode_all], self.activities, strict=True)
        ]
        for thread in self.threads:
            thread.start()

    # The main thread's side.

    @property
    def in_flight(self) -> int:
        """Return the number of records taken in and not handed out."""
        return len(self._line)

    @property
    def in_flight_bytes(self) -> int:
        """Return their bytes."""
        return self._bytes

    @property
    def has_room(self) -> bool:
        """Return whether one more record may be taken in."""
        return self.in_flight < self._limits.max_records and self._bytes < self._limits.max_bytes

    def submit(self, record: Record) -> None:
        """Take a record in, at the end of the line."""
        place = Place(record)
        self._line.append(place)
        self._bytes += record.size_bytes
        self._inbox.put(place)

    def finished(self) -> Outcome | None:
        """Return the outcome at the head of the line, if it is there; it stays until `hand_out`.

        Raises: `DeviceError`, or `ThreadDied` with what else a thread of the pipeline raised.
        """
        self._look()
        return self._line[0].outcome if self._line else None

    def hand_out(self) -> None:
        """Take the head off the line."""
        self._bytes -= self._line.popleft().record.size_bytes

    def wait(self, timeout_s: float) -> None:
        """Wait until a record is finished, whatever its place in line, or the time is up.

        Raises: `DeviceError`, `ThreadDied`.
        """
        self._done.wait(timeout_s)
        self._look()

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until a good share of what is in flight is finished, or the time is up: a turn for each costs more.

        Raises: `DeviceError`, `ThreadDied`.
        """
        self._done.wait(timeout_s, max(1, self.in_flight // _SHARE_OF_LINE))
        self._look()

    def drop(self, partitions: Sequence[int]) -> None:
        """Forget what is in flight of these partitions; what their threads still finish goes nowhere."""
        kept = [place for place in self._line if place.record.partition not in partitions]
        self._line = deque(kept)
        self._bytes = sum(place.record.size_bytes for place in kept)

    def linger(self, *, allowed: bool) -> None:
        """Say whether a batch may wait for more images than are there."""
        self._batcher.linger(allowed=allowed)

    def has(self, partitions: Sequence[int]) -> bool:
        """Return whether anything of these partitions is in flight."""
        return any(place.record.partition in partitions for place in self._line)

    def close(self) -> None:
        """Let the threads end after what they are at. What is still in flight is given up."""
        self._closing = True
        prepare_threads = len(self.threads) - 1
        for _ in range(prepare_threads):
            self._inbox.put(None)
        self._batcher.close(prepare_threads)

    def wait_for_threads(self, timeout_s: float) -> None:
        """Wait for their end: no second thread may use the encoder.

        Raises: `ThreadDied` where one doesn't end in time.
        """
        deadline_s = time.monotonic() + timeout_s
        for thread, activity in zip(self.threads, self.activities, strict=True):
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                raise ThreadDied(f"still at work {timeout_s:g} s after the session's end: {activity}")

    def _look(self) -> None:
        while self._done:
            done = self._done.take()
            if isinstance(done, ProcessError):
                raise done
            place, outcome = done
            place.outcome = outcome

    # The other threads' side.

    def _guard(self, work: Callable[[Activity], None], activity: Activity) -> None:
        try:
            work(activity)
        except Closed:
            return
        except ProcessError as error:
            self._done.put(error)
        except Exception as error:  # noqa: BLE001 - the thread boundary: carried to the main thread, which raises it
            died = ThreadDied(f"a thread of the pipeline failed: {type(error).__name__}: {error}; {activity}")
            died.__cause__ = error
            self._done.put(died)

    def _prepare_all(self, activity: Activity) -> None:
        while (place := self._inbox.get()) is not None and not self._closing:
            begun_s = time.monotonic()
            beat = partial(activity.begin, place.record)
            beat()
            prepared = call_as(str(place.record), partial(self._prepare, place.record, beat))
            self._observer.prepared(time.monotonic() - begun_s)
            activity.end()
            if isinstance(prepared, Prepared):
                self._batcher.put(prepared, place)
            else:
                self._done.put((place, prepared))

    def _encode_all(self, activity: Activity) -> None:
        """Keep the device busy: while it is at a batch, the next one may begin, as far as its depth allows."""
        under_way: deque[_UnderWay] = deque()
        while not self._closing:
            batch = self._batcher.take_ready() if under_way else self._batcher.take()
            if batch is not None:
                activity.begin(f"a batch of {len(batch.owners)} images")
                under_way.append(self._begin(batch))
                if len(under_way) < self._encoder.depth:
                    continue
            oldest = under_way.popleft()
            for finished in self._finish(oldest, activity):
                self._done.put(finished)
            self._batcher.give_back(oldest.batch)
            if not under_way:
                activity.end()

    def _begin(self, batch: Batch) -> _UnderWay:
        begun_s = time.monotonic()
        try:
            return _UnderWay(batch, self._encoder.begin(batch.pixels, batch.preprocessed), begun_s)
        except Exception as error:  # noqa: BLE001 - the model: what it raises is one image's fault, or the device's
            # Without its frames, which hold the tensors of a batch that there was no memory for.
            return _UnderWay(batch, error.with_traceback(None), begun_s)

    def _finish(self, under_way: _UnderWay, activity: Activity) -> list[_Finished]:
        """Return the records that a batch finishes; one that the device refuses goes in halves.

        Raises: `DeviceError` where the device is at fault.
        """
        embeddings = self._wait_for(under_way)
        if isinstance(embeddings, Exception):
            return self._split(under_way.batch, embeddings, activity)
        owners = under_way.batch.owners
        self._observer.encoded(len(owners), time.monotonic() - under_way.begun_s)
        are_finite: npt.NDArray[np.bool] = np.logical_and.reduce(np.isfinite(embeddings), axis=1)
        finished = []
        for (job, index), embedding, is_finite in zip(owners, embeddings, are_finite, strict=True):
            outcome = job.fill(index, embedding) if is_finite else job.fail(Reason.NOT_FINITE, _NOT_FINITE)
            if outcome is not None:
                finished.append((job.place, outcome))
        return finished

    def _wait_for(self, under_way: _UnderWay) -> npt.NDArray[np.float32] | Exception:
        if isinstance(under_way.wait, Exception):
            return under_way.wait
        try:
            return under_way.wait()
        except Exception as error:  # noqa: BLE001 - the model, as above
            return error.with_traceback(None)

    def _split(self, batch: Batch, error: Exception, activity: Activity) -> list[_Finished]:
        if len(batch.owners) == 1:
            return self._blame(batch, error)
        cause = SplitCause.OUT_OF_MEMORY if isinstance(error, OutOfMemory) else SplitCause.ERROR
        log.warning("%s in a batch of %d images, which is halved: %s", cause, len(batch.owners), error)
        self._observer.split(cause)
        finished = []
        for half in batch.halves():
            activity.begin(f"a batch of {len(half.owners)} images")
            finished += self._finish(self._begin(half), activity)
        return finished

    def _blame(self, batch: Batch, error: Exception) -> list[_Finished]:
        """Pin an error to the one image of a batch. Raises: `DeviceError` where a plain image meets it too."""
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, OutOfMemory):
            raise DeviceError(f"no memory for one image: {error}")
        plain = np.zeros((1, *batch.pixels.shape[1:]), np.uint8)
        if isinstance(self._wait_for(self._begin(Batch(plain, batch.preprocessed[:0], ()))), Exception):
            raise DeviceError(f"the device fails at every image: {said}")
        [(job, _)] = batch.owners
        outcome = job.fail(Reason.MODEL_ERROR, f"the model fails at an image of this record: {said}")
        return [] if outcome is None else [(job.place, outcome)]
