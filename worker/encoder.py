"""uint8 [N, R, R, 3] and float32 [M, R, R, 3] -> float32 [N + M, D]. The only module that runs the model.

Belongs to the encode thread once the session has begun.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from worker.cuda import Cuda
from worker.errors import DeviceError, OutOfMemory
from worker.selftest import LIMITS, SelfTest
from worker.slots import Embeddings, Wait
from worker.tower import Tower
from worker.weights import Model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DEFAULT_MAX_BATCH = {"cpu": 8, "cuda": 256}

# torch.OutOfMemoryError is of CUDA's allocator alone: cuBLAS, a graph's launch and the CPU's allocator say it so.
_NO_ROOM = ("out of memory", "ALLOC_FAILED", "can't allocate memory")

Result = TypeVar("Result")


class _Runs(Protocol):
    """How batches run on a kind of device; see `Encoder` for what is meant."""

    depth: int

    def reserve(self, max_batch: int) -> None: ...

    def sizes(self, max_batch: int) -> Sequence[int]: ...

    def allocate(self, images: int) -> npt.NDArray[np.uint8]: ...

    def begin(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> Wait: ...


class Encoder:
    """The model on its device, at its precision."""

    def __init__(self, model: Model, device: str, precision: str, *, normalized: bool) -> None:
        """Move the model to the device: auto, cpu, cuda or cuda:N; auto, fp32, bf16 or fp16.

        The model is taken over: its tower is moved and cast in place.
        Raises: `DeviceError` where the device is missing, has no room for it, or can't run at that precision.
        """
        self._device = find_device(device)
        self.device_name = str(self._device)
        self.precision = _choose_precision(precision, self._device)
        self.model_name = model.name
        self.model_input = model.input
        self.geometry = model.geometry
        if self._device.type == "cuda" and self.precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # it is by default, and leaves convolutions 10 bits of 23
        self._self_test = SelfTest(model.tower, model.input)
        try:
            tower = Tower(model, self._device, _DTYPES[self.precision], normalized=normalized)
            self._runs: _Runs = Cuda(tower) if self._device.type == "cuda" else _Cpu(tower)
        except RuntimeError as error:  # no memory, no kernels for such a device, or others have it for themselves
            raise DeviceError(f"{self.device_name} can't take {model.name} in {self.precision}: {error}") from error

    @property
    def default_max_batch(self) -> int:
        """Return how many images a batch has on this device unless set otherwise."""
        return _DEFAULT_MAX_BATCH[self._device.type]

    @property
    def depth(self) -> int:
        """Return how many batches may be under way: begun, and not waited for."""
        return self._runs.depth

    def allocate(self, images: int) -> npt.NDArray[np.uint8]:
        """Return memory for pixels, uint8 [images, R, R, 3], that the device reads fastest. Raises: `MemoryError`."""
        return self._runs.allocate(images)

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> Embeddings:
        """Embed N images of pixels, RGB, and M preprocessed ones.

        Returns float32 [N + M, D], the first N of `pixels`; with L2 norm 1 where that is set.
        Raises: `OutOfMemory`, and whatever else the model raises.
        """
        return self.begin(pixels, preprocessed)()

    def begin(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> Wait:
        """Start to embed, as `encode` does; the call that is returned waits for the embeddings.

        `pixels` must stay as they are until then. Both raise what `encode` does.
        """
        wait = self._with_memory(partial(self._runs.begin, pixels, preprocessed))
        return partial(self._with_memory, wait)

    def _with_memory(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except RuntimeError as error:
            said = str(error)
            if not (isinstance(error, torch.OutOfMemoryError) or any(sign in said for sign in _NO_ROOM)):
                raise
        # Out here the frames that failed are gone, and their tensors with them.
        torch.cuda.empty_cache()
        raise OutOfMemory(f"{self.device_name}: {said}")

    def warm_up(self, max_batch: int) -> None:
        """Reserve what batches need, and run each size once, so that no record waits; compare the numbers.

        Raises: `DeviceError` where the device can't, or gives other numbers than the CPU in fp32.
        """
        limit, side = LIMITS[self.precision], self.model_input.size
        nothing = np.empty((0, side, side, 3), np.float32)
        try:
            self._runs.reserve(max_batch)
            cosines = [
                self._self_test.cosine(lambda pictures: self.encode(pictures, nothing), images, first)
                for images in self._runs.sizes(max_batch)
                for first in range(max(self.depth, 2 // images))  # both pictures, and whatever batches take turns in
            ]
        except (RuntimeError, MemoryError, OutOfMemory) as error:
            raise DeviceError(
                f"{self.device_name} can't run {self.model_name} in {self.precision} in batches of {max_batch}: {error}"
            ) from error
        cosine = float(np.min(cosines))
        if not cosine >= limit:  # not a number is under it too
            raise DeviceError(
                f"the self-test failed: {self.device_name} in {self.precision} gives embeddings of {self.model_name} "
                f"with a cosine of {cosine:.6f} to those of the CPU in fp32, under {limit}"
            )


class _Cpu:
    """Runs a tower on the CPU, which a second batch would only slow down."""

    depth = 1

    def __init__(self, tower: Tower) -> None:
        self._tower = tower

    def reserve(self, max_batch: int) -> None:
        """Reserve nothing: the allocator keeps what a batch has freed."""

    def sizes(self, max_batch: int) -> Sequence[int]:
        """Return the sizes of batches to run once: of the others none takes another way."""
        return sorted({1, max_batch})

    def allocate(self, images: int) -> npt.NDArray[np.uint8]:
        size = self._tower.input_size
        return np.empty((images, size, size, 3), np.uint8)

    def begin(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> Wait:
        """Embed at once; the call only hands out."""
        taken_as_is = torch.from_numpy(preprocessed) if len(preprocessed) else None
        embeddings: Embeddings = self._tower.embed(torch.from_numpy(pixels), taken_as_is).numpy()
        return lambda: embeddings


def find_device(name: str) -> torch.device:
    """Return the device that `name` stands for.

    Raises: `DeviceError` where this machine has none such.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise DeviceError(f"DEVICE={name}, but this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device(kind, int(number)) if number else torch.device(kind)  # of cuda:256 torch makes cuda:0


def _choose_precision(precision: str, device: torch.device) -> str:
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("PRECISION=fp16 needs CUDA; on the CPU take fp32 or bf16")
    return precision
