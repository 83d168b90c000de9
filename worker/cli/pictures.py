"""The pictures that the demo embeds: photographs that come with it and crops of them, or a folder of the user's own."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""What the name of an image file ends in, in lower case."""

_CROPS = 11  # of each photograph
_CROPPED_SIDE = (0.4, 0.8)  # a crop's width and height, as shares of the photograph's
_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image file, and the name that tells it from the others."""

    name: str
    image: bytes


def bundled_pictures() -> list[Picture]:
    """Return the photographs that come with the demo, then eleven crops of each; the same bytes every time.

    The names are `coffee` and `coffee-crop-01` to `coffee-crop-11`. Who made them: photographs/CREDITS.md.
    """
    found = files("worker.cli").joinpath("photographs").iterdir()
    names = sorted(file.name for file in found if file.name.endswith(".jpg"))
    photographs = [Picture(name.removesuffix(".jpg"), _read_photograph(name)) for name in names]
    return photographs + [crop for photograph in photographs for crop in _crops(photograph)]


def folder_pictures(folder: Path) -> Iterator[Picture]:
    """Return every image file below the folder by its path relative to it, sorted; each is read when its turn comes.

    A path that is not UTF-8 has � in place of what can't be read.
    Raises, before the first is read: `FileNotFoundError` where there is no such folder, `ValueError` where it has no
    image file. Raises `OSError`, in a file's turn, where it can't be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise ValueError(f"no image file below {folder}: none ends in {', '.join(SUFFIXES)}")
    return (Picture(_name(path.relative_to(folder)), path.read_bytes()) for path in paths)


def _read_photograph(name: str) -> bytes:
    return files("worker.cli").joinpath("photographs", name).read_bytes()


def _crops(photograph: Picture) -> Iterator[Picture]:
    """Crop at random places, seeded with the name: another photograph doesn't move them."""
    random = np.random.default_rng(list(photograph.name.encode()))
    with Image.open(io.BytesIO(photograph.image)) as whole:
        for number in range(1, _CROPS + 1):
            yield Picture(f"{photograph.name}-crop-{number:02}", _encode(_crop(whole, random)))


def _crop(whole: Image.Image, random: np.random.Generator) -> Image.Image:
    width, height = (round(side * random.uniform(*_CROPPED_SIDE)) for side in whole.size)
    left = int(random.integers(whole.width - width + 1))
    top = int(random.integers(whole.height - height + 1))
    return whole.crop((left, top, left + width, top + height))


def _encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def _name(path: Path) -> str:
    return path.as_posix().encode(errors="surrogateescape").decode(errors="replace")
