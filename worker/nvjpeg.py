"""A JPEG -> uint8 [R, R, 3], decoded and resized on the GPU; everything else goes the way of `Fast`.

Runs in the prepare threads, on the device's default stream, which the encoder leaves alone. nvJPEG is quick with many
files at once, so the threads that have one at the same time are served together, by the first of them: no thread waits
for more files to come. A list that nvJPEG refuses is decoded file by file, and a file that it refuses by `Fast`, which
says what is wrong with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock

import numpy as np
import torch
import torchvision
from torch.nn.functional import interpolate

from worker.decode import Decoder
from worker.errors import DeviceError
from worker.fit import Fit, Geometry, Target, height_goes_first
from worker.images import Fast
from worker.records import ImageFile, ModelInput, Pixels

DecodeJpegs = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""JPEG files, each uint8 [bytes], -> uint8 [3, H, W] on the device; raises RuntimeError where it refuses any."""

_MAX_FILES = 16  # at once
_MAX_PIXELS = 16_000_000  # of one picture: as float32 it takes 192 MB of the device
_END_OF_IMAGE = b"\xff\xd9"
_WIDTH, _HEIGHT = -1, -2
_LEFT_TO_RIGHT_IS_DOWN = 5  # EXIF orientations from here on swap rows and columns
_FLIPS = {2: [_WIDTH], 3: [_HEIGHT, _WIDTH], 4: [_HEIGHT], 6: [_WIDTH], 7: [_HEIGHT, _WIDTH], 8: [_HEIGHT]}


@dataclass(slots=True, eq=False)
class _Request:
    """A file that a thread waits for; `pixels` None after its turn is the refusal of nvJPEG."""

    file: ImageFile
    orientation: int
    is_done: bool = False
    pixels: Pixels | None = None


class NvJpeg:
    """`Fast`, but that the GPU decodes and resizes plain JPEGs. Any number of threads share it."""

    def __init__(self, model_input: ModelInput, geometry: Geometry, max_pixels: int, decode: DecodeJpegs) -> None:
        """Keep what the model wants; `max_pixels` is checked on the header, before any pixel is decoded."""
        self._fast = Fast(model_input, geometry, max_pixels)
        self._decoder = Decoder(max_pixels)
        self._fit = Fit(model_input, geometry, max_pixels)
        self._decode = decode
        self._waiting: SimpleQueue[_Request] = SimpleQueue()
        self._turn = Lock()

    def __call__(self, image: ImageFile | Pixels) -> Pixels:
        """Return uint8 [R, R, 3] of an image file or of a uint8 array [H, W, 3].

        Raises: `Rejection` with `bad-image` or `too-many-pixels`.
        """
        pixels = None if isinstance(image, np.ndarray) else self._by_gpu(image)
        return self._fast(image) if pixels is None else pixels

    def _by_gpu(self, file: ImageFile) -> Pixels | None:
        """Return the pixels, or None of what is for `Fast`: nvJPEG would take a JPEG that is cut off."""
        plain = self._decoder.look_at_jpeg(file)
        if plain is None or plain.width * plain.height > _MAX_PIXELS or file[-len(_END_OF_IMAGE) :] != _END_OF_IMAGE:
            return None
        if self._fit.target(plain.width, plain.height) is None:
            return None
        request = _Request(file, plain.orientation)
        self._waiting.put(request)
        with self._turn:
            while not request.is_done:
                self._serve(self._take_waiting())
        return request.pixels

    def _take_waiting(self) -> list[_Request]:
        taken: list[_Request] = []
        try:
            while len(taken) < _MAX_FILES:
                taken.append(self._waiting.get_nowait())
        except Empty:
            pass
        return taken

    def _serve(self, requests: Sequence[_Request]) -> None:
        try:
            for request, pixels in zip(requests, self._decode_together(requests), strict=True):
                request.pixels = pixels
        finally:  # also where this thread is about to die: the others must not wait for it
            for request in requests:
                request.is_done = True

    def _decode_together(self, requests: Sequence[_Request]) -> Sequence[Pixels | None]:
        try:
            return self._decode_all(requests)
        except RuntimeError:  # nvJPEG says of no list which of its files it refuses
            if len(requests) == 1:
                return [None]
        return [self._decode_together([request])[0] for request in requests]

    def _decode_all(self, requests: Sequence[_Request]) -> Sequence[Pixels]:
        # A copy: torch warns of memory that is read-only.
        files = [torch.from_numpy(np.frombuffer(request.file, np.uint8).copy()) for request in requests]
        fitted = [
            self._resize(upright(decoded, request.orientation))
            for decoded, request in zip(self._decode(files), requests, strict=True)
        ]
        return list(torch.stack(fitted).permute(0, 2, 3, 1).cpu().numpy())

    def _resize(self, rgb: torch.Tensor) -> torch.Tensor:
        height, width = rgb.shape[1:]
        target = self._fit.target(width, height)
        if target is None:  # of what the header said there is one
            raise RuntimeError(f"decoded to {width}×{height}, unlike its header")
        return resize(rgb, target)


def upright(stored: torch.Tensor, orientation: int) -> torch.Tensor:
    """Turn [3, H, W] as its EXIF orientation says, 1 to 8."""
    if orientation >= _LEFT_TO_RIGHT_IS_DOWN:
        stored = stored.transpose(_HEIGHT, _WIDTH)
    return stored.flip(_FLIPS[orientation]) if orientation in _FLIPS else stored


def resize(rgb: torch.Tensor, target: Target) -> torch.Tensor:
    """Resize uint8 [3, H, W] and crop its centre: in two passes that each end in uint8, as `Fit` and Pillow do."""
    height, width = rgb.shape[1:]
    sides = [(height, target.width), (target.height, target.width)]
    if height_goes_first(width, height, target.width, target.height):
        sides[0] = (target.height, width)
    levels = rgb[None].float()
    for side in sides:
        if side != levels.shape[2:]:
            resized = interpolate(levels, side, mode=target.interpolation, antialias=True)
            levels = resized.round_().clamp_(0, 255)
    top, left = target.top, target.left
    return levels[0, :, top : top + target.size, left : left + target.size].to(torch.uint8)


def nvjpeg_decoder(device_name: str) -> DecodeJpegs:
    """Return nvJPEG on this device, once it has decoded a picture.

    Raises: `DeviceError` where the device or torchvision can't.
    """
    device = torch.device(device_name)
    if device.type != "cuda":
        raise DeviceError(f"DECODER=nvjpeg needs CUDA, but the device is {device_name}")

    def decode(files: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        # torchvision's own stream waits for nobody, and what a resize that failed began may use the same memory.
        torch.cuda.current_stream(device).synchronize()
        decoded: Sequence[torch.Tensor] = torchvision.io.decode_jpeg(
            list(files), mode=torchvision.io.ImageReadMode.RGB, device=device
        )
        return decoded

    try:
        decode([torchvision.io.encode_jpeg(torch.zeros((3, 16, 16), dtype=torch.uint8))])
    except (AttributeError, RuntimeError) as error:  # without nvJPEG, or without these functions any more
        raise DeviceError(f"DECODER=nvjpeg: torchvision {torchvision.__version__} can't: {error}") from error
    return decode
