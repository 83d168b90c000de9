"""An image file or array -> uint8 [R, R, 3], the pixels that the model sees. Pure; runs in the prepare threads.

`Fast` shows the model what a person sees: EXIF orientation applied, transparency laid over white,
palettes and CMYK converted first, 16 bits scaled to 8, the first frame of an animation.
`Reference` is open_clip's own transform, bit for bit.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil, floor

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch.nn.functional import interpolate

from schemas.dead_letter import Reason, Rejection
from worker.headers import APP1, check_headers, check_pixels, jpeg_segments
from worker.records import ModelInput, Pixels

Geometry = Callable[[Image.Image], Image.Image]
"""open_clip's transform as far as it works on images: resize, crop, convert to RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_JPEG = b"\xff\xd8\xff"
_FILTER_REACH = 4  # pixels; Lanczos, the widest of Pillow's filters, reaches 3


class Fast:
    """Decode with simplejpeg where it equals Pillow, resize with torch's antialiased uint8 kernel."""

    def __init__(self, model_input: ModelInput, geometry: Geometry, max_pixels: int) -> None:
        """Keep what the model wants; `max_pixels` is checked on the header, before any pixel is decoded."""
        self._input = model_input
        self._geometry = geometry
        self._max_pixels = max_pixels
        _lift_pillows_own_limit()

    def __call__(self, image: bytes | Pixels) -> Pixels:
        """Return uint8 [R, R, 3] of an image file or of a uint8 array [H, W, 3].

        Raises: `Rejection` with `bad-image` or `too-many-pixels`.
        """
        if isinstance(image, np.ndarray):
            check_pixels(image.shape[1], image.shape[0], self._max_pixels)
            return self._fit(image)
        check_headers(image, self._max_pixels)
        return self._fit(self._decode(image))

    def _decode(self, data: bytes) -> Pixels:
        rgb = self._decode_plain_jpeg(data) if data.startswith(_JPEG) else None
        if rgb is not None and not _may_be_turned(data):
            return rgb
        image = _open(data, self._max_pixels)
        if rgb is None:
            with _decoding():
                rgb = np.asarray(_as_seen(image))
        return _upright(rgb, _orientation(image))  # asked for last: Pillow turns a TIFF itself as it decodes it

    def _decode_plain_jpeg(self, data: bytes) -> Pixels | None:
        """Decode a YCbCr or grey JPEG without any defect; of all others Pillow decides."""
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if colours not in ("YCbCr", "Gray"):
                return None
            check_pixels(width, height, self._max_pixels)
            rgb: Pixels = simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            return None
        return rgb

    def _fit(self, rgb: Pixels) -> Pixels:
        size = self._input.size
        height, width = rgb.shape[:2]
        if self._input.interpolation not in ("bicubic", "bilinear") or self._input.resize_mode == "longest":
            return np.asarray(self._geometry(Image.fromarray(rgb)))
        if self._input.resize_mode == "squash":
            return self._resize(rgb, size, size)
        long = _resized_long_side(width, height, size)
        if size * long > self._max_pixels:
            return np.asarray(_resize_centre(Image.fromarray(rgb), self._input))
        resized = self._resize(rgb, size, long) if height < width else self._resize(rgb, long, size)
        top, left = _centre(resized.shape[0], size), _centre(resized.shape[1], size)
        return resized[top : top + size, left : left + size]

    def _resize(self, rgb: Pixels, height: int, width: int) -> Pixels:
        if rgb.shape[:2] == (height, width):
            return rgb
        if not rgb.flags.writeable:  # torch warns of read-only memory, which it only reads here
            rgb = rgb.copy()
        # [1, 3, H, W] in channels-last memory, which the kernel is 7 to 10 times as fast on
        channels_last = torch.from_numpy(rgb).permute(2, 0, 1)[None]
        resized = interpolate(channels_last, (height, width), mode=self._input.interpolation, antialias=True)
        pixels: Pixels = resized[0].permute(1, 2, 0).numpy()
        return pixels


class Reference:
    """Apply open_clip's own transform, in its order: resize, crop, then convert to RGB."""

    def __init__(self, model_input: ModelInput, geometry: Geometry, max_pixels: int) -> None:
        """Keep what the model wants; `max_pixels` is checked on the header, before any pixel is decoded."""
        self._input = model_input
        self._geometry = geometry
        self._max_pixels = max_pixels
        _lift_pillows_own_limit()

    def __call__(self, image: bytes | Pixels) -> Pixels:
        """Return uint8 [R, R, 3] of an image file or of a uint8 array [H, W, 3].

        Raises: `Rejection` with `bad-image` or `too-many-pixels`.
        """
        if isinstance(image, np.ndarray):
            check_pixels(image.shape[1], image.shape[0], self._max_pixels)
            return self._fit(Image.fromarray(image))
        check_headers(image, self._max_pixels)
        opened = _open(image, self._max_pixels)
        with _decoding():
            opened.load()
            return self._fit(opened)

    def _fit(self, image: Image.Image) -> Pixels:
        size = self._input.size
        if self._input.resize_mode == "shortest" and size * _resized_long_side(*image.size, size) > self._max_pixels:
            return np.asarray(_resize_centre(image, self._input).convert("RGB"))
        return np.asarray(self._geometry(image))


def _lift_pillows_own_limit() -> None:
    """Let `max_pixels` alone decide: Pillow's limit is one for the process, and warns before it refuses."""
    Image.MAX_IMAGE_PIXELS = None
    Image.init()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only, and check it."""
    with _decoding():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_pixels(image.width, image.height, max_pixels)
    return image


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn whatever a decoder raises into a rejection."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise Rejection(Reason.BAD_IMAGE, f"neither of {', '.join(FORMATS)}, or its header is broken") from error
    except Exception as error:  # decoders raise anything from OSError to SyntaxError, struct.error and IndexError
        raise Rejection(Reason.BAD_IMAGE, f"{type(error).__name__}: {error}") from error


def _may_be_turned(jpeg: bytes) -> bool:
    """Return whether an APP1 segment, which holds EXIF or XMP, comes before the image (ITU T.81, B.1.1.4)."""
    return any(marker == APP1 for marker, _ in jpeg_segments(jpeg))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where the EXIF data is broken, as viewers do."""
    try:
        with _decoding():
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Rejection:
        return 1
    return orientation if orientation in _UPRIGHT else 1


# https://www.cipa.jp/std/documents/download_e.html?DC-008-Translation-2023-E, Orientation: what turns
# the stored rows and columns into the picture.
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


def _upright(stored: Pixels, orientation: int) -> Pixels:
    return np.ascontiguousarray(_UPRIGHT[orientation](stored))


def _as_seen(image: Image.Image) -> Image.Image:
    """Convert to RGB as a viewer shows it: deep greys scaled, transparency over white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(white, seen).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: npt.NDArray[np.generic], mode: str) -> npt.NDArray[np.uint8]:
    """Scale 16 bits (0 to 65,535), or floats (0 to 1; to 255 where they go beyond 1), to 8 bits."""
    values = np.nan_to_num(grey.astype(np.float32))
    if mode != "F":
        values /= 257
    elif values.max() <= 1:
        values *= 255
    eight: npt.NDArray[np.uint8] = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    return eight


def _centre(length: int, size: int) -> int:
    """Return where torchvision's CenterCrop begins, its rounding included."""
    return round((length - size) / 2)


def _resized_long_side(width: int, height: int, size: int) -> int:
    """Return the longer side once the shorter one is `size`, as torchvision's Resize rounds it."""
    return int(size * max(width, height) / min(width, height))


def _resize_centre(image: Image.Image, model_input: ModelInput) -> Image.Image:
    """Resize only what the centre crop keeps, where the whole would be too large: a 1×N image becomes 224×(224 N)."""
    size = model_input.size
    width, height = image.size
    long = _resized_long_side(width, height, size)
    stretch = max(width, height) / long
    begin, end = _centre(long, size) * stretch, (_centre(long, size) + size) * stretch
    # Cut out first: Pillow 13 chooses the order of its two passes by the whole image, not by the box.
    reach = _FILTER_REACH * max(1.0, stretch)
    first, last = max(0, floor(begin - reach)), min(max(width, height), ceil(end + reach))
    begin, end = begin - first, end - first
    cut, box = (
        ((first, 0, last, height), (begin, 0.0, end, float(height)))
        if width > height
        else ((0, first, width, last), (0.0, begin, float(width), end))
    )
    near = image.crop(cut)
    return near.resize((size, size), Image.Resampling[model_input.interpolation.upper()], box=box)
