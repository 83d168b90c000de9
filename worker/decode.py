"""An image file -> an opened Pillow image, or the RGB pixels that a person sees. Pure; runs in the prepare threads.

As seen: turned as its orientation says, transparency over white, palettes and CMYK converted, 16 bits
scaled to 8, the first frame of an animation. Colour profiles are not applied: CLIP saw none in training.
"""

import io
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from schemas.dead_letter import Reason, Rejection
from worker.headers import APP1, check_headers, check_pixels
from worker.records import ImageFile, Pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_HEIF = "HEIF"
_MAX_KEPT_BYTES = 64 * 2**20  # 22 million pixels
_ALIGNED_BYTES = 32  # https://github.com/libjpeg-turbo/libjpeg-turbo/blob/main/simd/x86_64/jdcolext-avx2.asm, vmovntdq
_JPEG = b"\xff\xd8\xff"
_PLAIN = ("YCbCr", "Gray")
_PNG_DEPTH_AT, _PNG_DEEP = 24, 16  # https://www.w3.org/TR/png-3/#11IHDR
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, PhotometricInterpretation
# ISO/IEC 23008-12, annex B: the brands of files with HEVC pictures.
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


@dataclass(frozen=True, slots=True)
class PlainJpeg:
    """A YCbCr or grey JPEG by its header: its sides as they are stored, and its EXIF orientation, 1 to 8."""

    width: int
    height: int
    orientation: int


class Decoder:
    """Open and decode image files; `max_pixels` is checked on the header, before any pixel is decoded.

    Errors: every method raises `Rejection` with `bad-image` or `too-many-pixels`.
    """

    def __init__(self, max_pixels: int) -> None:
        """Make Pillow ready. Its own limit goes: it is one for the process, and warns before it refuses."""
        self._max_pixels = max_pixels
        Image.MAX_IMAGE_PIXELS = None
        Image.init()
        self._formats = (*FORMATS, _HEIF) if _register_heif() else FORMATS
        self._memory = _Memory()

    def check_pixels(self, width: int, height: int) -> None:
        """Refuse a picture of too many pixels."""
        check_pixels(width, height, self._max_pixels)

    def open(self, data: ImageFile) -> Image.Image:
        """Read the header only, and check it."""
        check_headers(data, self._max_pixels)
        return self._open(data)

    def _open(self, data: ImageFile) -> Image.Image:
        with decoding():
            try:
                image = Image.open(io.BytesIO(data), formats=self._formats)
            except UnidentifiedImageError as error:
                raise Rejection(Reason.BAD_IMAGE, self._say_what_is_known(data)) from error
        self.check_pixels(image.width, image.height)
        return image

    def decode(self, data: ImageFile) -> Pixels:
        """Return the picture as a person sees it, uint8 [H, W, 3], until the same thread decodes the next one."""
        markers = check_headers(data, self._max_pixels)
        rgb = self._decode_plain_jpeg(data) if data[: len(_JPEG)] == _JPEG else None
        if rgb is not None and not _may_be_turned(markers):
            return rgb
        image = self._open(data)
        if rgb is None:
            with decoding():
                rgb = np.asarray(_as_seen(image, data))
        return _upright(rgb, _orientation(image))  # asked for last: Pillow turns a TIFF itself as it decodes it

    def look_at_jpeg(self, data: ImageFile) -> PlainJpeg | None:
        """Return what the header of a YCbCr or grey JPEG says, once it is checked; None of any other file."""
        if data[: len(_JPEG)] != _JPEG:
            return None
        markers = check_headers(data, self._max_pixels)
        sides = self._plain_sides(data)
        if sides is None:
            return None
        return PlainJpeg(*sides, _orientation(self._open(data)) if _may_be_turned(markers) else 1)

    def _decode_plain_jpeg(self, data: ImageFile) -> Pixels | None:
        """Decode a YCbCr or grey JPEG without any defect; of all others Pillow decides."""
        sides = self._plain_sides(data)
        if sides is None:
            return None
        width, height = sides
        try:
            rgb: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=self._memory.of(3 * width * height))
        except ValueError:
            return None
        return rgb

    def _plain_sides(self, data: ImageFile) -> tuple[int, int] | None:
        """Return width and height of a YCbCr or grey JPEG as its header says, None where it is neither."""
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        if colours not in _PLAIN:
            return None
        self.check_pixels(width, height)
        return width, height

    def _say_what_is_known(self, data: ImageFile) -> str:
        if _HEIF not in self._formats and _is_heic(data):
            return "a HEIC image, for which the worker lacks the extra heic: pip install 'clip-worker[heic]'"
        return f"neither of {', '.join(self._formats)}, or its header is broken"


class _Memory(threading.local):
    """A thread's memory for one picture: a fresh 36 MB for each of 12 megapixels cost 15 % in page faults.

    Never aligned as libjpeg-turbo likes it: it would write past the cache, from which the resize is to read.
    """

    def __init__(self) -> None:
        self._kept = np.empty(0, np.uint8)

    def of(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        if size_bytes > _MAX_KEPT_BYTES:
            return np.empty(size_bytes, np.uint8)
        if size_bytes > self._kept.size:
            memory = np.empty(size_bytes + _ALIGNED_BYTES, np.uint8)
            begin = (_ALIGNED_BYTES // 2 - memory.ctypes.data) % _ALIGNED_BYTES
            self._kept = memory[begin : begin + size_bytes]
        return self._kept[:size_bytes]


@contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever a decoder raises into a rejection."""
    try:
        yield
    except Rejection:
        raise
    except Exception as error:  # decoders raise anything from OSError to SyntaxError, struct.error and IndexError
        raise Rejection(Reason.BAD_IMAGE, f"{type(error).__name__}: {error}") from error


def _register_heif() -> bool:
    """Teach Pillow to read HEIC where the extra is installed, and return whether it is."""
    try:
        from pillow_heif import register_heif_opener  # noqa: PLC0415 - the extra heic

        register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    except ImportError:
        return False
    return True


def _is_heic(data: ImageFile) -> bool:
    """Return whether one of the brands in the file type box, the major and the compatible ones, is HEVC's."""
    box = bytes(data[: min(int.from_bytes(data[:4]), 256)])
    return data[4:8] == b"ftyp" and any(box[at : at + 4] in _HEIC_BRANDS for at in range(8, len(box), 4))


def _may_be_turned(markers: Collection[int]) -> bool:
    """Return whether a JPEG has an APP1 segment, which holds EXIF or XMP, before the image (ITU T.81, B.1.1.4)."""
    return APP1 in markers


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where the EXIF data is broken, as viewers do.

    Of an AVIF's, Pillow makes it of the properties `irot` and `imir`; a HEIC is turned already as it is decoded.
    """
    try:
        with decoding():
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


def _as_seen(image: Image.Image, data: ImageFile) -> Image.Image:
    """Convert to RGB as a viewer shows it: deep greys scaled, transparency over white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _of_eight_bits(image)
    elif image.format == "PNG" and "transparency" in image.info:
        _scale_transparency(image, data[_PNG_DEPTH_AT])
    elif image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(white, seen).convert("RGB")
    return image.convert("RGB")


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Scale a PNG's transparent grey or colour to 8 bits, as Pillow does with all others of 2, 4 and 16 bits."""
    transparent = image.info["transparency"]
    if image.mode == "L":
        image.info["transparency"] = transparent * (255 // (2**depth - 1))
    elif image.mode == "RGB" and depth == _PNG_DEEP:
        image.info["transparency"] = tuple(channel >> 8 for channel in transparent)


def _of_eight_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    eight = _eight_bits(grey, image.mode)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        eight = 255 - eight  # which Pillow does at up to 8 bits only
    shown = Image.fromarray(eight)
    if (transparent := image.info.get("transparency")) is not None:
        shown.putalpha(Image.fromarray(np.where(grey == transparent, 0, 255).astype(np.uint8)))
    return shown


def _eight_bits(grey: npt.NDArray[np.generic], mode: str) -> npt.NDArray[np.uint8]:
    """Scale 16 bits (0 to 65,535), or floats (0 to 1; to 255 where they go beyond 1), to 8 bits."""
    values = np.nan_to_num(grey.astype(np.float32))
    if mode != "F":
        values /= 257
    elif values.max() <= 1:
        values *= 255
    eight: npt.NDArray[np.uint8] = np.clip(values + 0.5, 0, 255).astype(np.uint8)
    return eight
