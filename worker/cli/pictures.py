"""The pictures that the demo embeds: photographs that come with it and crops of them, or a folder of the user's own."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from worker.cli.files import image_files, name_of

# librdkafka's mock cluster keeps 5 MB a partition, and loses a record that exceeds them with the one before it.
LARGEST_BYTES = 2 * 2**20
_LARGEST_SIDE = 1_600  # as a JPEG of this quality even noise fits

_CROPS = 11  # of each photograph
_CROPPED_SIDE = (0.4, 0.8)  # a crop's width and height, as shares of the photograph's
_JPEG_QUALITY = 85
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # no PostScript, on which Pillow runs Ghostscript


@dataclass(frozen=True, slots=True)
class Pictures:
    """The names of image files, and what reads the file of a name; it raises `OSError` where it can't."""

    names: Sequence[str]
    read: Callable[[str], bytes]


def bundled_pictures() -> Pictures:
    """Return the photographs that come with the demo, then eleven crops of each; the same bytes every time.

    The names are `coffee` and `coffee-crop-01` to `coffee-crop-11`. Who made them: photographs/CREDITS.md.
    """
    found = files("worker.cli").joinpath("photographs").iterdir()
    photographs = {
        file.name.removesuffix(".jpg"): file.read_bytes()
        for file in sorted(found, key=lambda file: file.name)
        if file.name.endswith(".jpg")
    }
    crops = {crop: image for name, whole in photographs.items() for crop, image in _crops(name, whole)}
    images = photographs | crops
    return Pictures(list(images), images.__getitem__)


def folder_pictures(folder: Path) -> Pictures:
    """Return every image file below the folder by its path relative to it, sorted; each is read when its turn comes.

    A path that is not UTF-8 has � in place of what can't be read.
    Raises: `FileNotFoundError` where there is no such folder, `ValueError` where it has no image file.
    """
    paths = {name_of(path.relative_to(folder)): path for path in image_files(folder)}
    return Pictures(list(paths), lambda name: paths[name].read_bytes())


def fitting(image: bytes) -> bytes:
    """Return an image file as it is, or where it exceeds 2 MiB, as a JPEG of at most 1,600 pixels a side.

    Raises: `ValueError` where it can't be decoded.
    """
    if len(image) <= LARGEST_BYTES:
        return image
    try:
        return shrink(image, _LARGEST_SIDE)
    except Exception as error:  # decoders raise anything from OSError to SyntaxError, struct.error and IndexError
        raise ValueError(f"can't be decoded: {error}") from error


def shrink(image: bytes, side: int) -> bytes:
    """Return a JPEG of at most `side` pixels a side, as a viewer shows it: upright, transparency over white.

    Raises: whatever Pillow's decoders raise.
    """
    with Image.open(io.BytesIO(image), formats=_FORMATS) as stored:
        stored.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded at a half, a quarter or an eighth
        upright = ImageOps.exif_transpose(stored)
        if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
            upright = upright.point(lambda value: value * (1 / 257)).convert("L")
        small = upright.convert("RGBA")
        small.thumbnail((side, side))
        white = Image.new("RGBA", small.size, "white")
        return _encode(Image.alpha_composite(white, small).convert("RGB"))


def _crops(name: str, photograph: bytes) -> Iterator[tuple[str, bytes]]:
    """Crop at random places, seeded with the name: another photograph doesn't move them."""
    random = np.random.default_rng(list(name.encode()))
    with Image.open(io.BytesIO(photograph)) as whole:
        for number in range(1, _CROPS + 1):
            yield f"{name}-crop-{number:02}", _encode(_crop(whole, random))


def _crop(whole: Image.Image, random: np.random.Generator) -> Image.Image:
    width, height = (round(side * random.uniform(*_CROPPED_SIDE)) for side in whole.size)
    left = int(random.integers(whole.width - width + 1))
    top = int(random.integers(whole.height - height + 1))
    return whole.crop((left, top, left + width, top + height))


def _encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
