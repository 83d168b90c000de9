"""Up to max_batch images of what is *ready*, whatever its record's place in line, when the device is free.

The memory that the device reads is a ring of rows of R×R×3 bytes, allocated once. A prepare thread takes the next
row, and waits while there is none; it writes an image there and says so. The encode thread takes the rows that are
written, in their order: a batch is a piece of the ring, and nothing is copied together. Its rows go back once its
embeddings are there.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason
from schemas.document import Document
from worker.mailbox import Mailbox
from worker.records import Embedded, Outcome, Prepared, Preprocessed, Record, Rejected


class Closed(Exception):
    """The batcher has been closed while a thread waited at it."""


@dataclass(slots=True, eq=False)
class Place:
    """A record's place in the line, with its outcome once there is one."""

    record: Record
    outcome: Outcome | None = None


@dataclass(slots=True)
class Job:
    """One record on its way through the encoder. Belongs to the encode thread."""

    place: Place
    document: Document
    images: int
    preprocessed: Mapping[int, Preprocessed]  # the images that aren't pixels, whose rows hold nothing
    embeddings: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    faults: list[tuple[Reason, str]] = field(default_factory=list)

    def fill(self, index: int, embedding: npt.NDArray[np.float32]) -> Outcome | None:
        """Keep the embedding, float32 [D], of one image; return the record's outcome if it was the last one missing."""
        self.embeddings[index] = embedding
        return self._outcome()

    def fail(self, reason: Reason, detail: str) -> Outcome | None:
        """Note what is wrong with one of the images, which rejects the record once all of them are through."""
        self.faults.append((reason, detail))
        return self._outcome()

    def _outcome(self) -> Outcome | None:
        if len(self.embeddings) + len(self.faults) < self.images:
            return None
        if self.faults:
            return Rejected(self.place.record, *self.faults[0])
        if self.images == 1:
            return Embedded(self.place.record, self.document, self.embeddings[0][np.newaxis])
        found = np.stack([self.embeddings[index] for index in range(self.images)])
        return Embedded(self.place.record, self.document, found)


Owner = tuple[Job, int]
"""Whose image it is, and which of its images."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What the encoder takes, uint8 [N, R, R, 3] and float32 [M, R, R, 3], and whose images they are, in that order."""

    pixels: npt.NDArray[np.uint8]
    preprocessed: npt.NDArray[np.float32]
    owners: Sequence[Owner]

    def halves(self) -> "tuple[Batch, Batch]":
        """Return the first half of the images and the second."""
        middle = len(self.owners) // 2
        plain = len(self.pixels)
        first = Batch(self.pixels[:middle], self.preprocessed[: max(0, middle - plain)], self.owners[:middle])
        second = Batch(self.pixels[middle:], self.preprocessed[max(0, middle - plain) :], self.owners[middle:])
        return first, second


class Batcher:
    """A bounded stage: `put` blocks while all rows are taken, `take` while no image is ready."""

    def __init__(self, rows: npt.NDArray[np.uint8], max_batch: int, max_wait_s: float) -> None:
        """Hand out `rows`, uint8 [P, R, R, 3]; the encoder says where they lie in memory."""
        self._rows = rows
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._free: SimpleQueue[int | None] = SimpleQueue()  # in the order of the ring
        for row in range(len(rows)):
            self._free.put(row)
        self._written: Mailbox[tuple[int, Owner] | None] = Mailbox()  # None only wakes
        self._lingers = True
        self._closed = False
        # The encode thread's. The next batch begins at `_head` and has the images of `_owners`; the oldest that isn't
        # given back begins at `_tail`. A row may be written before the one in front of it: that waits in `_early`.
        self._head = self._tail = 0
        self._owners: list[Owner] = []
        self._early: dict[int, Owner] = {}
        self._no_preprocessed = np.empty((0, *rows.shape[1:]), np.float32)

    def put(self, prepared: Prepared, place: Place) -> None:
        """Write the images into rows. Called by the prepare threads.

        Raises: `Closed`.
        """
        preprocessed = {
            index: image.astype(np.float32, copy=False)
            for index, image in enumerate(prepared.images)
            if image.dtype != np.uint8
        }
        job = Job(place, prepared.document, len(prepared.images), preprocessed)
        for index, image in enumerate(prepared.images):
            row = self._free.get()
            if row is None:
                raise Closed
            if index not in preprocessed:
                self._rows[row] = image
            self._written.put((row, (job, index)))

    def take(self) -> Batch:
        """Wait for an image, then take what is ready, up to a full batch. Called by the encode thread.

        Raises: `Closed`.
        """
        deadline_s: float | None = None
        while len(self._owners) < self._most and self._written.wait(self._patience_s(deadline_s)):
            self._line_up(self._written.take())
            if deadline_s is None and self._owners:
                deadline_s = time.monotonic() + self._max_wait_s
        return self._cut()

    def take_ready(self) -> Batch | None:
        """Take what is ready without waiting, up to a full batch. Called by the encode thread.

        Raises: `Closed`.
        """
        while len(self._owners) < self._most and self._written:
            self._line_up(self._written.take())
        return self._cut() if self._owners else None

    def give_back(self, batch: Batch) -> None:
        """Let the oldest batch's rows be written again. Called by the encode thread."""
        end = self._tail + len(batch.owners)
        for row in range(self._tail, end):
            self._free.put(row)
        self._tail = end % len(self._rows)

    def linger(self, *, allowed: bool) -> None:
        """Say whether a batch may wait for more images. Called by the main thread."""
        self._lingers = allowed
        self._written.put(None)

    def close(self, threads: int) -> None:
        """Wake everyone who waits; `threads` is how many may wait in `put`."""
        self._closed = True
        self._written.put(None)
        for _ in range(threads):
            self._free.put(None)

    @property
    def _most(self) -> int:
        """Return how many images the next batch may have: a piece of the ring ends where the ring does."""
        return min(self._max_batch, len(self._rows) - self._head)

    def _patience_s(self, deadline_s: float | None) -> float | None:
        """Return how long to wait for more: as long as it takes for the first image, then until the deadline."""
        if not self._owners:
            return None
        return 0.0 if deadline_s is None or not self._lingers else max(0.0, deadline_s - time.monotonic())

    def _line_up(self, written: tuple[int, Owner] | None) -> None:
        if self._closed:
            raise Closed
        if written is None:
            return
        row, owner = written
        self._early[row] = owner
        while (following := (self._head + len(self._owners)) % len(self._rows)) in self._early:
            self._owners.append(self._early.pop(following))

    def _cut(self) -> Batch:
        """Return the next batch; of the preprocessed images, which are rare, no copy is saved."""
        owners, self._owners = self._owners[: self._most], self._owners[self._most :]
        rows = self._rows[self._head : self._head + len(owners)]
        self._head = (self._head + len(owners)) % len(self._rows)
        ready_made = [(job, index) for job, index in owners if index in job.preprocessed]
        if not ready_made:
            return Batch(rows, self._no_preprocessed, owners)
        is_plain = [index not in job.preprocessed for job, index in owners]
        plain = [owner for owner, is_pixels in zip(owners, is_plain, strict=True) if is_pixels]
        preprocessed = np.stack([job.preprocessed[index] for job, index in ready_made])
        return Batch(rows[is_plain], preprocessed, plain + ready_made)
