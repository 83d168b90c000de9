"""Fixed pictures through the device, against the same model in fp32 on the CPU.

Done once, at the start: a driver, a kernel or a precision that gives wrong numbers gives them silently. The pictures
differ so much that a device with the same answer to both can't pass, trained weights or not.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from worker.records import ModelInput

LIMITS = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.995}
"""The least cosine. bf16 measures 0.9987 and more on five architectures, least on MobileCLIP; fp16 0.99999 and more."""

Embeddings = npt.NDArray[np.float32]


class SelfTest:
    """The pictures, and their embeddings in fp32 on the CPU."""

    def __init__(self, tower: nn.Module, model_input: ModelInput) -> None:
        """Embed the pictures with the tower, which must still be in fp32 on the CPU."""
        self._pictures = make_pictures(model_input.size)
        self._expected = _embed(tower, self._pictures, model_input)

    def cosine(self, encode: Callable[[npt.NDArray[np.uint8]], Embeddings], images: int = 2, first: int = 0) -> float:
        """Embed a batch of the pictures in turn with `encode`, from the `first` on, 0 or 1.

        Return the smallest cosine; not a number where a value isn't finite.
        """
        turn = np.arange(first, first + images) % len(self._pictures)
        return float((_unit(encode(self._pictures[turn])) * _unit(self._expected[turn])).sum(axis=1).min())


def make_pictures(size: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [2, R, R, 3]: stripes over a slope of colours, and a disc; no symmetry, no two channels alike."""
    down, across = np.mgrid[0:size, 0:size] / size
    stripes = np.where((12 * across).astype(int) % 2, 1.0, 0.4)
    slopes = np.stack([down * stripes, across, (1 - down) * (1 - across)], axis=-1)
    inside = (down - 0.4) ** 2 + (across - 0.6) ** 2 < 0.3**2
    disc = np.where(inside[..., None], [0.9, 0.7, 0.1], [0.1, 0.3, 0.6])
    return np.round(255 * np.stack([slopes, disc])).astype(np.uint8)


@torch.inference_mode()
def _embed(tower: nn.Module, pictures: npt.NDArray[np.uint8], model_input: ModelInput) -> Embeddings:
    """Normalise and embed without anything of the encoder's, which is what is tested."""
    mean, std = (np.array(channels, np.float32) for channels in (model_input.mean, model_input.std))
    images = (pictures.astype(np.float32) / 255 - mean) / std
    embeddings: Embeddings = tower(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    return embeddings


def _unit(embeddings: Embeddings) -> npt.NDArray[np.float64]:
    """Scale to norm 1; what has no direction becomes not a number."""
    wide = embeddings.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit: npt.NDArray[np.float64] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit
