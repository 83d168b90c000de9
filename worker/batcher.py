"""Up to max_batch images of what is ready, whatever its place in line, when the device is free.

The prepare threads put records in and wait while there is no place; the encode thread takes batches
out and gives places back. A place is 224×224×3 bytes, allocated once, so a batch is gathered
without any allocation per image on the way.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Lock

import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason
from schemas.document import Document
from worker.records import Embedded, Outcome, Prepared, Preprocessed, Record, Rejected


class Closed(Exception):
    """The batcher has been closed while a thread waited at it."""


@dataclass(slots=True)
class Job:
    """One record on its way through the encoder; `done` is told its outcome, by the encode thread."""

    record: Record
    document: Document
    done: Callable[[Outcome], None]
    places: Sequence[int]
    preprocessed: Mapping[int, Preprocessed]  # the images that aren't pixels, which alone are in their places
    embeddings: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def fill(self, index: int, embedding: npt.NDArray[np.float32]) -> None:
        """Keep the embedding, float32 [D], of one image; the last one missing finishes the record."""
        self.embeddings[index] = embedding
        self._finish_if_last()

    def fail(self, detail: str) -> None:
        """Note that the model fails at one of the images, which rejects the record once all of them are through."""
        self.faults.append(detail)
        self._finish_if_last()

    def _finish_if_last(self) -> None:
        if len(self.embeddings) + len(self.faults) < len(self.places):
            return
        if self.faults:
            self.done(Rejected(self.record, Reason.MODEL_ERROR, self.faults[0]))
        else:
            found = np.stack([self.embeddings[index] for index in range(len(self.places))])
            self.done(Embedded(self.record, self.document, found))


@dataclass(frozen=True, slots=True)
class Batch:
    """What the encoder takes, uint8 [N, R, R, 3] and float32 [M, R, R, 3], and whose images they are, in that order."""

    pixels: npt.NDArray[np.uint8]
    preprocessed: npt.NDArray[np.float32]
    owners: Sequence[tuple[Job, int]]

    def halves(self) -> "tuple[Batch, Batch]":
        """Return the first half of the images and the second."""
        middle = len(self.owners) // 2
        plain = len(self.pixels)
        first = Batch(self.pixels[:middle], self.preprocessed[: max(0, middle - plain)], self.owners[:middle])
        second = Batch(self.pixels[middle:], self.preprocessed[max(0, middle - plain) :], self.owners[middle:])
        return first, second


class Batcher:
    """A bounded stage: `put` blocks while all places are taken, `take` while nothing is ready."""

    def __init__(self, places: int, input_size: int, max_batch: int, max_wait_s: float) -> None:
        """Allocate the places; a record with more images than places would never fit."""
        self._pixels = np.empty((places, input_size, input_size, 3), np.uint8)
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._free: SimpleQueue[int | None] = SimpleQueue()
        for place in range(places):
            self._free.put(place)
        self._turn = Lock()  # one record collects its places at a time: two with half of theirs would wait for ever
        self._ready: SimpleQueue[Job | None] = SimpleQueue()  # None only wakes
        self._lingers = True
        self._closed = False
        self._left: list[tuple[Job, int]] = []  # images of a record that the last batch had no room for

    def put(self, prepared: Prepared, done: Callable[[Outcome], None]) -> None:
        """Copy the images into places and hand the record on. Called by the prepare threads.

        Raises: `Closed`.
        """
        places = self._collect(len(prepared.images))
        preprocessed: dict[int, Preprocessed] = {}
        for index, (place, image) in enumerate(zip(places, prepared.images, strict=True)):
            if image.dtype == np.uint8:
                self._pixels[place] = image
            else:
                preprocessed[index] = image.astype(np.float32, copy=False)
        self._ready.put(Job(prepared.record, prepared.document, done, places, preprocessed))

    def take(self) -> Batch:
        """Wait for an image, then take what is ready, up to a full batch. Called by the encode thread.

        Raises: `Closed`.
        """
        images, self._left = self._left, []
        deadline: float | None = None
        while len(images) < self._max_batch:
            try:
                job = self._ready.get(timeout=self._patience(bool(images), deadline))
            except Empty:
                break
            if self._closed:
                raise Closed
            if job is None:
                continue
            if deadline is None:
                deadline = time.monotonic() + self._max_wait_s
            images += [(job, index) for index in range(len(job.places))]
        images, self._left = images[: self._max_batch], images[self._max_batch :]
        return self._gather(images)

    def linger(self, *, allowed: bool) -> None:
        """Say whether a batch may wait for more images. Called by the main thread."""
        self._lingers = allowed
        self._ready.put(None)

    def close(self, threads: int) -> None:
        """Wake everyone who waits; `threads` is how many may wait in `put`."""
        self._closed = True
        self._ready.put(None)
        for _ in range(threads):
            self._free.put(None)

    def _collect(self, count: int) -> list[int]:
        places: list[int] = []
        with self._turn:
            while len(places) < count:
                place = self._free.get()
                if place is None:
                    raise Closed
                places.append(place)
        return places

    def _patience(self, has_images: bool, deadline: float | None) -> float | None:  # noqa: FBT001 - a fact
        """Return how long to wait for more: as long as it takes for the first image, then until the deadline."""
        if not has_images:
            return None
        return 0.0 if deadline is None or not self._lingers else max(0.0, deadline - time.monotonic())

    def _gather(self, images: Sequence[tuple[Job, int]]) -> Batch:
        """Copy the images together, uint8 ones first, and give their places back."""
        plain = [(job, index) for job, index in images if index not in job.preprocessed]
        ready_made = [(job, index) for job, index in images if index in job.preprocessed]
        pixels = self._pixels[[job.places[index] for job, index in plain]]
        preprocessed = np.empty((len(ready_made), *self._pixels.shape[1:]), np.float32)
        for row, (job, index) in enumerate(ready_made):
            preprocessed[row] = job.preprocessed[index]
        for job, index in images:
            self._free.put(job.places[index])
        return Batch(pixels, preprocessed, plain + ready_made)
