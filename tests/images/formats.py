"""Every format and variant that the worker reads, as files of one picture; the fixtures are explained beside them."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
import simplejpeg
from PIL import Image, ImageCms

from tests.images import written
from tests.unit.pictures_for_tests import encode, grey_of_16_bits, translucent, turned, with_palette
from worker.records import Pixels

pillow_heif.register_heif_opener()

FIXTURES = Path(__file__).parent / "files"

Write = Callable[[Image.Image], bytes]
"""A picture in RGB -> a file of it."""
Show = Callable[[Image.Image], Image.Image]
"""The picture in RGB -> what a person sees of its file, were nothing lost."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One kind of file. `shows` is what a person sees of one; the files of some variants differ in what they say."""

    format: str
    name: str
    files: Callable[[Image.Image], Sequence[bytes]]
    shows: Show

    def __str__(self) -> str:
        return f"{self.format}, {self.name}"


def colours(picture: Image.Image) -> Image.Image:
    return picture


def greys(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


def on_white(picture: Image.Image) -> Image.Image:
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, translucent(picture)).convert("RGB")


def grey_on_white(picture: Image.Image) -> Image.Image:
    return on_white(greys(picture))


def _bytes(picture: Image.Image, mode: str = "RGB") -> Pixels:
    return np.asarray(picture.convert(mode))


def _pillow(kind: str, mode: str = "RGB", **options: object) -> Write:
    return lambda picture: encode(picture.convert(mode), kind, **options)


def _profile() -> bytes:
    """Return a profile that would change every colour, were it applied."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


# JPEG.


def _by_turbo(sampling: str) -> Write:
    return lambda picture: bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(_bytes(picture)), 90, colorsubsampling=sampling)
    )


def _ycck(picture: Image.Image) -> bytes:
    """Write CMYK as Adobe does: as YCCK, and inverted. TurboJPEG stores all CMYK so."""
    inverted = np.ascontiguousarray(255 - _bytes(picture, "CMYK"))
    return bytes(simplejpeg.encode_jpeg(inverted, 90, "CMYK", "444"))


_JPEG: Mapping[str, Write] = {
    "baseline 4:4:4": _pillow("JPEG", quality=90, subsampling=0),
    "4:2:2": _pillow("JPEG", quality=90, subsampling=1),
    "4:2:0": _pillow("JPEG", quality=90, subsampling=2),
    "4:4:0": _by_turbo("440"),
    "4:1:1": _by_turbo("411"),
    "progressive": _pillow("JPEG", progressive=True),
    "restart markers": _pillow("JPEG", restart_marker_rows=1),
    "stored as RGB": _pillow("JPEG", keep_rgb=True, quality=90),
    "CMYK": _pillow("JPEG", "CMYK", quality=90),
    "CMYK, progressive": _pillow("JPEG", "CMYK", progressive=True),
    "Adobe YCCK": _ycck,
    "ICC profile": lambda picture: encode(picture, "JPEG", icc_profile=_profile()),
}


# PNG.


def _deep(samples: Pixels, depth: int) -> written.Samples:
    """Return samples of 8 bits as of `depth` bits; those of 16 have something in their lower byte."""
    if depth == 16:
        return samples.astype(np.uint16) * 257
    return samples >> np.uint8(8 - depth)


def _png(mode: str, depth: int, colour: int, *, interlaced: bool = False) -> Write:
    def write(picture: Image.Image) -> bytes:
        image = translucent(picture).convert(mode) if mode.endswith("A") else picture.convert(mode)
        return written.png(_deep(np.asarray(image), depth), depth, colour, interlaced=interlaced)

    return write


def _few(picture: Image.Image, depth: int) -> Image.Image:
    return picture.quantize(2**depth, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _quantized(picture: Image.Image, depth: int) -> tuple[Pixels, Pixels]:
    few = _few(picture, depth)
    return np.asarray(few), np.array(few.getpalette(), np.uint8).reshape(-1, 3)[: 2**depth]


def _png_palette(depth: int, transparent: bytes = b"", *, interlaced: bool = False) -> Write:
    def write(picture: Image.Image) -> bytes:
        indices, palette = _quantized(picture, depth)
        return written.png(
            indices,
            depth,
            written.PALETTE,
            interlaced=interlaced,
            palette=palette.tobytes(),
            transparent=transparent[: len(palette)],
        )

    return write


_PNG: Mapping[str, Write] = {
    **{f"RGB of {depth} bits": _png("RGB", depth, written.RGB) for depth in (8, 16)},
    "interlaced RGB": _png("RGB", 8, written.RGB, interlaced=True),
    "by Pillow": _pillow("PNG", compress_level=1),
    "ICC profile": lambda picture: encode(picture, "PNG", compress_level=1, icc_profile=_profile()),
    "animated": lambda picture: encode(
        picture, "PNG", save_all=True, append_images=[Image.new("RGB", picture.size)], compress_level=1
    ),
}
_PNG_ON_WHITE: Mapping[str, Write] = {
    "RGB and alpha of 8 bits": _png("RGBA", 8, written.RGBA),
    "RGB and alpha of 16 bits": _png("RGBA", 16, written.RGBA),
    "interlaced RGB and alpha": _png("RGBA", 8, written.RGBA, interlaced=True),
}
_PNG_GREY_ON_WHITE: Mapping[str, Write] = {
    "grey and alpha of 8 bits": _png("LA", 8, written.GREY_ALPHA),
    "grey and alpha of 16 bits": _png("LA", 16, written.GREY_ALPHA),
}


def coarse_greys(depth: int) -> Show:
    def show(picture: Image.Image) -> Image.Image:
        return Image.fromarray((_bytes(picture, "L") >> 8 - depth) * np.uint8(255 // (2**depth - 1))).convert("RGB")

    return show


def few_colours(depth: int) -> Show:
    return lambda picture: _few(picture, depth).convert("RGB")


def _bits(depth: int) -> str:
    return "1 bit" if depth == 1 else f"{depth} bits"


def _png_of_few_bits() -> Iterator[Variant]:
    for depth in (1, 2, 4, 8):
        greys_of = {f"grey of {_bits(depth)}": _png("L", depth, written.GREY)}
        palettes_of = {f"palette of {_bits(depth)}": _png_palette(depth)}
        yield from _each("PNG", greys_of, coarse_greys(depth))
        yield from _each("PNG", palettes_of, few_colours(depth))
    yield from _each("PNG", {"grey of 16 bits": _png("L", 16, written.GREY)}, greys)
    yield from _each("PNG", {"interlaced grey of 1 bit": _png("L", 1, written.GREY, interlaced=True)}, coarse_greys(1))
    yield from _each("PNG", {"interlaced grey of 16 bits": _png("L", 16, written.GREY, interlaced=True)}, greys)
    yield from _each("PNG", {"interlaced palette": _png_palette(8, interlaced=True)}, few_colours(8))


def half_on_white(picture: Image.Image) -> Image.Image:
    return Image.blend(picture, Image.new("RGB", picture.size, "white"), 127 / 255)


# WebP, GIF and AVIF.


def _followed(kind: str, mode: str = "RGB", **options: object) -> Write:
    """Write an animation: the picture, then black."""

    def write(picture: Image.Image) -> bytes:
        first = with_palette(picture) if mode == "P" else picture.convert(mode)
        return encode(first, kind, save_all=True, append_images=[Image.new(mode, picture.size)], **options)

    return write


def _translucent(kind: str, **options: object) -> Write:
    return lambda picture: encode(translucent(picture), kind, **options)


def few_octree_colours(picture: Image.Image) -> Image.Image:
    return with_palette(picture).convert("RGB")


_WEBP: Mapping[str, Write] = {
    "lossy": _pillow("WEBP", method=0, quality=90),
    "lossless": _pillow("WEBP", method=0, lossless=True),
    "animated": _followed("WEBP", duration=100, method=0, quality=90),
}
_WEBP_ON_WHITE: Mapping[str, Write] = {
    "lossy with alpha": _translucent("WEBP", method=0, quality=90),
    "lossless with alpha": _translucent("WEBP", method=0, lossless=True, exact=True),
}
_GIF: Mapping[str, Write] = {
    "palette": lambda picture: encode(with_palette(picture), "GIF", interlace=False),
    "interlaced": lambda picture: encode(with_palette(picture), "GIF", interlace=True),
    "animated": _followed("GIF", "P", duration=100, loop=0),
    "animated, each frame removed": _followed("GIF", "P", duration=100, loop=0, disposal=2),
    "animated, each frame put back": _followed("GIF", "P", duration=100, loop=0, disposal=3),
}
_AVIF: Mapping[str, Write] = {
    "4:2:0": _pillow("AVIF", speed=10, quality=90),
    "4:4:4": _pillow("AVIF", speed=10, quality=90, subsampling="4:4:4"),
    "animated": _followed("AVIF", speed=10, quality=90, duration=100),
}


# BMP.


def _bmp_palette(depth: int, *, run_length: bool = False) -> Write:
    def write(picture: Image.Image) -> bytes:
        indices, palette = _quantized(picture, depth)
        return written.bmp_run_length(indices, palette) if run_length else written.bmp(indices, depth, palette=palette)

    return write


_BMP: Mapping[str, Write] = {
    "run length": _bmp_palette(8, run_length=True),
    "16 bits": lambda picture: written.bmp_of_16_bits(_bytes(picture)),
    "24 bits": lambda picture: written.bmp(_bytes(picture)[..., ::-1], 24),
    "24 bits, top down": lambda picture: written.bmp(_bytes(picture)[..., ::-1], 24, top_down=True),
    "32 bits": lambda picture: written.bmp(np.dstack([_bytes(picture)[..., ::-1], _bytes(picture, "L")]), 32),
}


# TIFF.


def _rgb_of_16_bits(picture: Image.Image) -> written.Samples:
    return _deep(_bytes(picture), 16)


_TIFF: Mapping[str, Write] = {
    "not compressed": _pillow("TIFF"),
    "LZW": _pillow("TIFF", compression="tiff_lzw"),
    "deflate": _pillow("TIFF", compression="tiff_adobe_deflate"),
    "PackBits": _pillow("TIFF", compression="packbits"),
    "JPEG": _pillow("TIFF", compression="jpeg", quality=90),
    "Zstandard": _pillow("TIFF", compression="zstd"),
    "LZMA": _pillow("TIFF", compression="lzma"),
    "big-endian": lambda picture: written.tiff(_bytes(picture), photometric="rgb", byteorder=">"),
    "BigTIFF": lambda picture: written.tiff(_bytes(picture), photometric="rgb", bigtiff=True),
    "tiles": lambda picture: written.tiff(_bytes(picture), photometric="rgb", tile=(64, 64)),
    "planes": lambda picture: written.tiff(
        np.moveaxis(_bytes(picture), -1, 0), photometric="rgb", planarconfig="separate"
    ),
    "deflate with a predictor": lambda picture: written.tiff(
        _bytes(picture), photometric="rgb", compression="deflate", predictor=True
    ),
    "RGB of 16 bits": lambda picture: written.tiff(_rgb_of_16_bits(picture), photometric="rgb"),
    "RGB of 16 bits, big-endian": lambda picture: written.tiff(
        _rgb_of_16_bits(picture), photometric="rgb", byteorder=">"
    ),
    "CMYK": _pillow("TIFF", "CMYK"),
    "YCbCr": _pillow("TIFF", "YCbCr"),
    "Lab": _pillow("TIFF", "LAB"),
    "several pages": _followed("TIFF"),
}
_TIFF_GREY: Mapping[str, Write] = {
    "grey": _pillow("TIFF", "L"),
    "grey, white is 0": lambda picture: written.tiff(255 - _bytes(picture, "L"), photometric="miniswhite"),
    "grey of 16 bits": lambda picture: encode(grey_of_16_bits(picture), "TIFF"),
    "grey of 16 bits, big-endian": lambda picture: written.tiff(_deep(_bytes(picture, "L"), 16), byteorder=">"),
    "grey floats from 0 to 1": lambda picture: written.tiff(_bytes(picture, "L").astype(np.float32) / 255),
    "grey floats from 0 to 255": lambda picture: written.tiff(_bytes(picture, "L").astype(np.float32)),
}
_TIFF_BLACK_AND_WHITE: Mapping[str, Write] = {
    "1 bit": _pillow("TIFF", "1"),
    "CCITT group 3": _pillow("TIFF", "1", compression="group3"),
    "CCITT group 4": _pillow("TIFF", "1", compression="group4"),
}


def black_and_white(picture: Image.Image) -> Image.Image:
    return picture.convert("1").convert("RGB")


# HEIC.

_QUICKLY = {"preset": "ultrafast"}  # of x265


def _heic(mode: str = "RGB", **options: object) -> Write:
    def write(picture: Image.Image) -> bytes:
        image = translucent(picture) if mode == "RGBA" else picture.convert(mode)
        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file, quality=90, enc_params=_QUICKLY, **options)
        return file.getvalue()

    return write


def _several(picture: Image.Image) -> bytes:
    """Write a HEIC of two pictures, the second of which is the one to show."""
    both = pillow_heif.from_pillow(Image.new("RGB", picture.size))
    both.add_from_pillow(picture)
    file = io.BytesIO()
    both.save(file, quality=90, enc_params=_QUICKLY, primary_index=1)
    return file.getvalue()


# All of them.


def _turned(kind: str, **options: object) -> Callable[[Image.Image], Sequence[bytes]]:
    """Write the picture stored in each of the eight ways, with what says how to turn it."""

    def files(picture: Image.Image) -> Sequence[bytes]:
        return [encode(stored(picture, way), kind, exif=turned(way).tobytes(), **options) for way in range(1, 9)]

    return files


_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(picture: Image.Image, orientation: int) -> Image.Image:
    """Return the picture as a camera stores it that was held so."""
    return picture if orientation == 1 else picture.transpose(_STORED[orientation])


def _fixture(name: str) -> Callable[[Image.Image], Sequence[bytes]]:
    return lambda _: [(FIXTURES / name).read_bytes()]


def fixture_picture(_: Image.Image) -> Image.Image:
    """Return what the fixtures show."""
    return Image.open(FIXTURES / "coffee.png")


def _each(format_: str, writers: Mapping[str, Write], shows: Show) -> Iterator[Variant]:
    for name, write in writers.items():
        yield Variant(format_, name, lambda picture, write=write: [write(picture)], shows)  # type: ignore[misc]


VARIANTS: Sequence[Variant] = [
    *_each("JPEG", _JPEG, colours),
    *_each("JPEG", {"grey": _pillow("JPEG", "L", quality=90)}, greys),
    Variant("JPEG", "arithmetic coding", _fixture("arithmetic.jpg"), fixture_picture),
    Variant("JPEG", "arithmetic coding, progressive", _fixture("arithmetic-progressive.jpg"), fixture_picture),
    Variant("JPEG", "EXIF orientation 1 to 8", _turned("JPEG", quality=90), colours),
    *_each("PNG", _PNG, colours),
    *_png_of_few_bits(),
    *_each("PNG", _PNG_ON_WHITE, on_white),
    *_each("PNG", _PNG_GREY_ON_WHITE, grey_on_white),
    *_each("PNG", {"palette with transparency": _png_palette(8, bytes([128]) * 256)}, half_on_white),
    Variant("PNG", "EXIF orientation 1 to 8", _turned("PNG", compress_level=1), colours),
    *_each("WebP", _WEBP, colours),
    *_each("WebP", _WEBP_ON_WHITE, on_white),
    Variant("WebP", "EXIF orientation 1 to 8", _turned("WEBP", method=0, quality=90), colours),
    *_each("GIF", _GIF, few_octree_colours),
    *_each("GIF", {"grey": _pillow("GIF", "L")}, greys),
    *_each("BMP", _BMP, colours),
    *_each("BMP", {"palette of 1 bit": _bmp_palette(1)}, few_colours(1)),
    *_each("BMP", {"palette of 4 bits": _bmp_palette(4)}, few_colours(4)),
    *_each("BMP", {"palette of 8 bits": _bmp_palette(8)}, few_colours(8)),
    *_each("TIFF", _TIFF, colours),
    *_each("TIFF", {"palette": lambda picture: encode(with_palette(picture), "TIFF")}, few_octree_colours),
    *_each("TIFF", _TIFF_GREY, greys),
    *_each("TIFF", _TIFF_BLACK_AND_WHITE, black_and_white),
    *_each("TIFF", {"RGB and alpha": _translucent("TIFF")}, on_white),
    Variant("TIFF", "orientation 1 to 8", _turned("TIFF"), colours),
    *_each("AVIF", _AVIF, colours),
    *_each("AVIF", {"grey": _pillow("AVIF", "L", speed=10, quality=90)}, greys),
    *_each("AVIF", {"alpha": _translucent("AVIF", speed=10, quality=90)}, on_white),
    Variant("AVIF", "10 bits", _fixture("10-bit.avif"), fixture_picture),
    Variant("AVIF", "12 bits", _fixture("12-bit.avif"), fixture_picture),
    Variant("AVIF", "irot and imir", _turned("AVIF", speed=10, quality=90), colours),
    *_each("HEIC", {"4:2:0": _heic(), "4:4:4": _heic(chroma=444), "several pictures": _several}, colours),
    *_each("HEIC", {"grey": _heic("L")}, greys),
    *_each("HEIC", {"alpha": _heic("RGBA")}, on_white),
    Variant("HEIC", "10 bits", _fixture("10-bit.heic"), fixture_picture),
    Variant("HEIC", "irot and imir", _turned("HEIF", quality=90, enc_params=_QUICKLY), colours),
]
