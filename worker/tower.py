"""uint8 [N, R, R, 3] and float32 [M, R, R, 3] -> float32 [N + M, D], all of them tensors on the device.

The image tower with what comes before it, normalisation, and after it, the norm of 1. Belongs to the encode thread.
"""

import torch
from torch.nn.functional import normalize

from worker.quick_gelu import fold_quick_gelu
from worker.weights import Model


class Tower:
    """The model on its device, at its precision."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype, *, normalized: bool) -> None:
        """Move the model's tower to the device and cast it, in place."""
        self.device = device
        self.dimensions = model.dimensions
        self.input_size = model.input.size
        self._dtype = dtype
        self._normalized = normalized
        self._mean, self._std = (
            torch.tensor(channels, device=device).view(1, 3, 1, 1) for channels in (model.input.mean, model.input.std)
        )
        self._scale, self._shift = 1 / (255 * self._std), -self._mean / self._std
        if device.type == "cuda":
            fold_quick_gelu(model.tower)
            model.tower.to(memory_format=torch.channels_last)
        self._tower = model.tower.to(device, dtype)

    @torch.inference_mode()
    def embed(self, pixels: torch.Tensor, preprocessed: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise and embed; the first N rows are those of `pixels`."""
        images = self._normalise(pixels)
        if preprocessed is not None:
            images = torch.cat([images, preprocessed.permute(0, 3, 1, 2).to(self._dtype)])
        embeddings: torch.Tensor = self._tower(images).float()
        return normalize(embeddings, dim=-1) if self._normalized else embeddings

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scale to 0…1, then by the model's mean and deviation, in float32.

        On the CPU as torchvision's transforms do, to the bit: it takes half a percent of the model's time there.
        """
        if self.device.type == "cuda":
            return normalise_in_one_pass(pixels, self._scale, self._shift, self._dtype)
        return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(self._mean).div_(self._std).to(self._dtype)


def normalise_in_one_pass(
    pixels: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return scale · pixels + shift, computed in float32, as [N, 3, R, R] of `dtype` in channels-last memory.

    uint8 [N, R, R, 3] is read once, and nothing but the result is written.
    """
    channels_first = pixels.permute(0, 3, 1, 2)
    images = torch.empty(channels_first.shape, dtype=dtype, device=pixels.device, memory_format=torch.channels_last)
    return torch.addcmul(shift, channels_first, scale, out=images)
