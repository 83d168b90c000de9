"""uint8 [N, R, R, 3] and float32 [M, R, R, 3] -> float32 [N + M, D]. The only module that runs the model.

Belongs to the encode thread once the session has begun.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize

from worker.errors import DeviceError, OutOfMemory
from worker.selftest import LIMIT, SelfTest
from worker.weights import Model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DEFAULT_MAX_BATCH = {"cpu": 8, "cuda": 256}


class Encoder:
    """The model on its device, at its precision."""

    def __init__(self, model: Model, device: str, precision: str, *, normalized: bool) -> None:
        """Move the model to the device: auto, cpu, cuda or cuda:N; auto, fp32, bf16 or fp16.

        The model is taken over: its tower is moved and cast in place.
        Raises: `DeviceError` where the device is missing or can't run at that precision.
        """
        self._device = find_device(device)
        self.device_name = str(self._device)
        self.precision = _choose_precision(precision, self._device)
        self.model_name = model.name
        self.model_input = model.input
        self.geometry = model.geometry
        self._normalized = normalized
        self._dtype = _DTYPES[self.precision]
        self._mean, self._std = (
            torch.tensor(channels, device=self._device).view(1, 3, 1, 1)
            for channels in (model.input.mean, model.input.std)
        )
        if self._device.type == "cuda" and self.precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # it is by default, and leaves convolutions 10 bits of 23
        self._self_test = SelfTest(model.tower, model.input)
        self._tower = model.tower.to(self._device, self._dtype)

    @property
    def default_max_batch(self) -> int:
        """Return how many images a batch has on this device unless set otherwise."""
        return _DEFAULT_MAX_BATCH[self._device.type]

    @property
    def depth(self) -> int:
        """Return how many batches may be under way."""
        return 1

    def allocate(self, images: int) -> npt.NDArray[np.uint8]:
        """Return memory that batches may lie in, uint8 [images, R, R, 3]."""
        side = self.model_input.size
        return np.empty((images, side, side, 3), np.uint8)

    def begin(
        self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]
    ) -> Callable[[], npt.NDArray[np.float32]]:
        """Begin with a batch; return what waits for its embeddings. See `encode`."""
        embeddings = self.encode(pixels, preprocessed)
        return lambda: embeddings

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Embed N images of pixels, RGB, and M preprocessed ones.

        Returns float32 [N + M, D], the first N of `pixels`; with L2 norm 1 where that is set.
        Raises: `OutOfMemory`, and whatever else the model raises.
        """
        try:
            return self._embed(pixels, preprocessed)
        except torch.OutOfMemoryError as error:
            said = str(error)
        # Out here the frames that failed are gone, and their tensors with them.
        torch.cuda.empty_cache()
        raise OutOfMemory(f"{self.device_name}: {said}")

    @torch.inference_mode()
    def _embed(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        images = self._normalise(torch.from_numpy(pixels).to(self._device))
        if len(preprocessed):
            taken_as_is = torch.from_numpy(preprocessed).to(self._device).permute(0, 3, 1, 2)
            images = torch.cat([images, taken_as_is])
        embeddings = self._tower(images.to(self._dtype)).float()
        if self._normalized:
            embeddings = normalize(embeddings, dim=-1)
        result: npt.NDArray[np.float32] = embeddings.cpu().numpy()
        return result

    def warm_up(self, max_batch: int) -> None:
        """Run the smallest and the largest batch once, so that the first record doesn't wait, and the self-test.

        Raises: `DeviceError` where the device can't, or gives other numbers than the CPU in fp32.
        """
        side = self.model_input.size
        nothing = np.empty((0, side, side, 3), np.float32)
        try:
            for images in (1, max_batch):
                self.encode(np.zeros((images, side, side, 3), np.uint8), nothing)
            cosine = self._self_test.cosine(lambda pictures: self.encode(pictures, nothing))
        except (RuntimeError, MemoryError, OutOfMemory) as error:
            raise DeviceError(
                f"{self.device_name} can't run {self.model_name} in {self.precision} in batches of {max_batch}: {error}"
            ) from error
        if not cosine >= LIMIT:  # not a number is under it too
            raise DeviceError(
                f"the self-test failed: {self.device_name} in {self.precision} gives embeddings of {self.model_name} "
                f"with a cosine of {cosine:.6f} to those of the CPU in fp32, under {LIMIT}"
            )

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scale to 0…1, then by the model's mean and deviation, in float32 as torchvision's transforms do."""
        return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(self._mean).div_(self._std)


def find_device(name: str) -> torch.device:
    """Return the device that `name` stands for.

    Raises: `DeviceError` where this machine has none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"DEVICE={name}, but this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _choose_precision(precision: str, device: torch.device) -> str:
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("PRECISION=fp16 needs CUDA; on the CPU take fp32 or bf16")
    return precision
