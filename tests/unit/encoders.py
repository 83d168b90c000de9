"""What the tests' encoders share: a batch is done when it has begun."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Encodes(Protocol):
    """What embeds a batch and waits for it; see `worker.encoder.Encoder`."""

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return float32 [N + M, D] of uint8 [N, R, R, 3] and float32 [M, R, R, 3]."""


class AtOnce(ABC):
    """An encoder in the shape of `worker.pipeline.Encodes`, of one that only encodes."""

    depth = 1

    @abstractmethod
    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return float32 [N + M, D] of uint8 [N, R, R, 3] and float32 [M, R, R, 3]."""

    def begin(
        self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]
    ) -> Callable[[], npt.NDArray[np.float32]]:
        embeddings = self.encode(pixels, preprocessed)
        return lambda: embeddings


def rows(images: int, side: int) -> npt.NDArray[np.uint8]:
    """Return memory that batches may lie in, uint8 [images, side, side, 3]."""
    return np.empty((images, side, side, 3), np.uint8)
