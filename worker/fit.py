"""RGB pixels or a Pillow image -> the R × R pixels in its centre: resize, then crop. Pure; runs in the prepare threads.

Resizing is two passes with uint8 between them, so their order shows: by up to 20 levels on noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import ceil, floor, gcd

import numpy as np
import PIL
import torch
from PIL import Image

from worker.records import ModelInput, Pixels

Geometry = Callable[[Image.Image], Image.Image]
"""open_clip's transform as far as it works on images: resize, crop, convert to RGB."""

_MOST_SQUARES = 20  # that pixels may become before the crop: a line of 1×1,000, 80 bytes as a file, would be 1,000
_MOST_KEPT = 2  # squares
_FILTER_REACH = 4  # pixels; Lanczos, the widest of Pillow's filters, reaches 3
_HEIGHT_MAY_GO_FIRST = int(PIL.__version__.partition(".")[0]) >= 13  # noqa: PLR2004 - the version
_LARGEST_TIED = 80  # in the ratio of two lengths; beyond, 0.007 levels at most
_MAX_TIES = 0.015  # levels in the mean
_STRIP_ROWS, _STRIP_COLUMNS = 128, 64
_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}
# What torch.nn.functional.interpolate calls for uint8, which can't be told how many pixels are kept.
_KERNELS: Mapping[str, Callable[..., torch.Tensor]] = {
    "bicubic": torch._C._nn._upsample_bicubic2d_aa,  # noqa: SLF001
    "bilinear": torch._C._nn._upsample_bilinear2d_aa,  # noqa: SLF001
}


@dataclass(frozen=True, slots=True)
class Target:
    """The sides that a picture is resized to, by `bicubic` or `bilinear`, and the side of the square in its centre."""

    width: int
    height: int
    size: int
    interpolation: str

    @property
    def top(self) -> int:
        """Return the first row of the square."""
        return _centre(self.height, self.size)

    @property
    def left(self) -> int:
        """Return its first column."""
        return _centre(self.width, self.size)


class Fit:
    """What a model wants of a picture's size, in torch's antialiased uint8 kernel and in Pillow."""

    def __init__(self, model_input: ModelInput, geometry: Geometry, max_pixels: int) -> None:
        """Keep what the model wants.

        A picture that would be resized to over `max_pixels` is cropped first; pixels already where they would become
        20 times those that are kept.
        """
        self._size = model_input.size
        self._resize_mode = model_input.resize_mode
        # As open_clip does: https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/transform.py
        self._interpolation = "bilinear" if model_input.interpolation == "bilinear" else "bicubic"
        self._geometry = geometry
        self._max_pixels = max_pixels
        self._max_of_pixels = min(max_pixels, _MOST_SQUARES * model_input.size**2)

    def fit_pixels(self, rgb: Pixels) -> Pixels:
        """Return the centre of uint8 [H, W, 3], resized as Pillow would, as uint8 [R, R, 3]."""
        height, width = rgb.shape[:2]
        target = self.target(width, height)
        if target is None:
            return np.asarray(self._fit_image(Image.fromarray(rgb), self._max_of_pixels))
        bottom, right = target.top + target.size, target.left + target.size
        resized = self._resize(rgb, target.height, target.width, bottom, right)
        square = resized[target.top : bottom, target.left : right]
        return square.copy() if resized.size > _MOST_KEPT * square.size else square  # a view keeps all of it

    def target(self, width: int, height: int) -> Target | None:
        """Return to what a picture of these sides is resized; None where it takes more than that and a crop."""
        size = self._size
        if self._resize_mode == "squash":
            return Target(size, size, size, self._interpolation)
        if self._resize_mode == "longest" or self._explodes(width, height, self._max_of_pixels):
            return None
        long = _resized_long_side(width, height, size)
        to = (long, size) if height < width else (size, long)
        return Target(*to, size, self._interpolation)

    def fit_image(self, image: Image.Image) -> Image.Image:
        """Apply open_clip's own transform as far as it works on images; where it can't, do what it means."""
        return self._fit_image(image, self._max_pixels)

    def _fit_image(self, image: Image.Image, max_pixels: int) -> Image.Image:
        if self._resize_mode == "longest" and _vanishes(*image.size, self._size):
            return self._geometry(self._keep_a_pixel(image))
        if self._resize_mode == "shortest" and self._explodes(*image.size, max_pixels):
            return self._resize_centre(image).convert("RGB")
        return self._geometry(image)

    def _explodes(self, width: int, height: int, max_pixels: int) -> bool:
        return self._size * _resized_long_side(width, height, self._size) > max_pixels

    def _resize(self, rgb: Pixels, height: int, width: int, rows: int, columns: int) -> Pixels:
        """Resize, in memory of its own; of the result only the first rows and columns have to be there."""
        if rgb.shape[:2] == (height, width):
            return rgb.copy()
        if self._interpolation == "bilinear" and _ties_often(rgb, height, width):
            return np.asarray(Image.fromarray(rgb).resize((width, height), self._resampling))
        pixels, wide = _channels_last(rgb), rgb.shape[1]
        if height_goes_first(wide, rgb.shape[0], width, height):
            pixels = _interpolate(pixels, (height, wide), (rows, wide), self._interpolation)
            height = pixels.shape[2]
        return _rows(_interpolate(pixels, (height, width), (rows, columns), self._interpolation))

    def _keep_a_pixel(self, image: Image.Image) -> Image.Image:
        """Resize what open_clip would make 0 pixels wide or high, and then refuse, to 1."""
        to = (1, self._size) if image.width < image.height else (self._size, 1)
        return image.resize(to, self._resampling)

    def _resize_centre(self, image: Image.Image) -> Image.Image:
        """Resize only what the centre crop keeps, where the whole is too large: a 1×N image becomes 224×(224 N).

        At most 1 level from the whole. Across, then down: such a picture becomes higher, so Pillow does it so too.
        """
        if image.mode in _PREMULTIPLIED:  # as Pillow does around its two passes
            return self._resize_centre(image.convert(_PREMULTIPLIED[image.mode])).convert(image.mode)
        size = self._size
        width, height = image.size
        long = _resized_long_side(width, height, size)
        stretch = max(width, height) / long
        begin, end = _centre(long, size) * stretch, (_centre(long, size) + size) * stretch
        reach = _FILTER_REACH * max(1.0, stretch)
        first, last = max(0, floor(begin - reach)), min(max(width, height), ceil(end + reach))
        begin, end = begin - first, end - first
        if width > height:
            near, across, down = image.crop((first, 0, last, height)), (begin, end), (0.0, float(height))
        else:
            near, across, down = image.crop((0, first, width, last)), (0.0, float(width)), (begin, end)
        wide = near.resize((size, near.height), self._resampling, box=(across[0], 0, across[1], near.height))
        return wide.resize((size, size), self._resampling, box=(0, down[0], size, down[1]))

    @property
    def _resampling(self) -> Image.Resampling:
        return Image.Resampling[self._interpolation.upper()]


def _channels_last(rgb: Pixels) -> torch.Tensor:
    """Return [1, 3, H, W] in channels-last memory, which the kernel is 7 to 10 times as fast on.

    The stride of the first dimension is that of a batch: by any other torch takes the memory for planes, and makes
    such of the result. https://github.com/pytorch/pytorch/issues/68430
    """
    return torch.from_numpy(rgb.reshape(1, *rgb.shape).transpose(0, 3, 1, 2))


def _interpolate(
    channels_last: torch.Tensor, to: tuple[int, int], kept: tuple[int, int], interpolation: str
) -> torch.Tensor:
    """Resize to `to`, height and width; what lies beyond the first rows and columns is not made where it can be."""
    rows, row_scale = _part(channels_last.shape[2], to[0], kept[0])
    columns, column_scale = _part(channels_last.shape[3], to[1], kept[1])
    return _KERNELS[interpolation](channels_last, (rows, columns), False, row_scale, column_scale)


def _part(length: int, to: int, kept: int) -> tuple[int, float | None]:
    """Return how many pixels the kernel should make of `length`, and the scale where they aren't all.

    All where it enlarges, because it copies `length` pixels to as many; and where the ratio, which it takes from the
    scale, wouldn't be the same to the last bit.
    """
    if kept < to < length and 1 / (to / length) == length / to:
        return kept, to / length
    return to, None


def _rows(channels_last: torch.Tensor) -> Pixels:
    pixels: Pixels = channels_last.numpy()[0].transpose(1, 2, 0)
    return pixels


def _ties_often(rgb: Pixels, height: int, width: int) -> bool:
    """Return whether torch would be too far from Pillow in the mean; of few pixels, whether chance might have it so."""
    most = _MAX_TIES if min(rgb.shape[:2]) >= _LARGEST_TIED else 0
    return _ties(rgb.shape[0], height) + _ties(rgb.shape[1], width) > most


def _ties(length: int, to: int) -> float:
    """Return how far torch is from Pillow in the mean, where one side of noise is resized bilinearly.

    Where a ratio of small numbers makes many values end in exactly a half, as 192 to 224 does, torch's
    weights of 16 bits round some up and some down.
    """
    divisor = gcd(length, to)
    if max(length, to) // divisor > _LARGEST_TIED:
        return 0.0
    return _measured_ties(length // divisor, to // divisor)


@cache
def _measured_ties(length: int, to: int) -> float:
    times = ceil(_STRIP_ROWS / to)
    strip = np.random.default_rng(0).integers(0, 256, (length * times, _STRIP_COLUMNS, 3), np.uint8)
    shape = (to * times, _STRIP_COLUMNS)
    by_torch = _rows(_interpolate(_channels_last(strip), shape, shape, "bilinear"))
    by_pillow = Image.fromarray(strip).resize((_STRIP_COLUMNS, to * times), Image.Resampling.BILINEAR)
    return float(np.abs(by_torch.astype(int) - np.asarray(by_pillow)).mean())


def height_goes_first(width: int, height: int, to_width: int, to_height: int) -> bool:
    """Return whether Pillow resizes the height before the width.

    From version 13, where it shrinks by more than twice as many pixels: https://github.com/python-pillow/Pillow/pull/9549
    """
    return _HEIGHT_MAY_GO_FIRST and height - to_height > max(0, 2 * (width - to_width))


def _centre(length: int, size: int) -> int:
    """Return where torchvision's CenterCrop begins, its rounding included."""
    return round((length - size) / 2)


def _resized_long_side(width: int, height: int, size: int) -> int:
    """Return the longer side once the shorter one is `size`, as torchvision's Resize rounds it."""
    return int(size * max(width, height) / min(width, height))


def _vanishes(width: int, height: int, size: int) -> bool:
    """Return whether the shorter side is 0 once the longer one is `size`, as open_clip's ResizeKeepRatio rounds it."""
    return round(min(width, height) / (max(width, height) / size)) == 0
