"""The places on a device that batches under way take turns in.

A slot is free again once its batch's embeddings have been taken out of it, whoever waited for them. Belongs to the
encode thread.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]

Wait = Callable[[], Embeddings]
"""Waits for a batch that has begun, and returns its embeddings, float32 [N, D]; raises what the device does."""


class Slot(Protocol):
    """What one batch needs on the device; see `worker.cuda`."""

    def begin(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Start a batch, uint8 [N, R, R, 3]. Whatever was in the slot is overwritten."""

    def wait(self) -> Embeddings:
        """Wait for the batch that has begun, and return its embeddings, which the next batch leaves alone."""


@dataclass(slots=True, eq=False)
class _Turn:
    """A batch in its slot, until its embeddings are out."""

    slot: Slot
    embeddings: Embeddings | None = None

    def wait(self) -> Embeddings:
        if self.embeddings is None:
            self.embeddings = self.slot.wait()
        return self.embeddings


class Slots:
    """Slots in a ring, each with its last batch."""

    def __init__(self, slots: Iterable[Slot]) -> None:
        """Take slots that are all free."""
        self._ring: deque[tuple[Slot, _Turn | None]] = deque((slot, None) for slot in slots)

    def begin(self, pixels: npt.NDArray[np.uint8]) -> Wait:
        """Start a batch in the slot whose turn it is; where its last batch is still under way, wait for that first."""
        slot, last = self._ring[0]
        if last is not None:
            last.wait()
        slot.begin(pixels)
        turn = _Turn(slot)
        self._ring[0] = (slot, turn)
        self._ring.rotate(-1)
        return turn.wait
