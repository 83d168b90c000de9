"""The photograph that is prepared, in sizes and formats."""

import io
from functools import cache

import numpy as np
from PIL import Image
from skimage import data

from worker.records import Pixels

PHOTOGRAPH = "coffee"
QUALITY = 85

Picture = bytes | Pixels


@cache
def photograph(width: int, height: int) -> Image.Image:
    """Return the photograph made smaller, or mirrored at its edges: enlarged it would be smoother than any."""
    pixels: Pixels = getattr(data, PHOTOGRAPH)()
    if width <= pixels.shape[1] and height <= pixels.shape[0]:
        return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    missing = [(0, max(0, side - own)) for side, own in zip((height, width), pixels.shape, strict=False)]
    return Image.fromarray(np.pad(pixels, (*missing, (0, 0)), "symmetric")[:height, :width])


def picture(kind: str, width: int, height: int) -> Picture:
    """Return a photograph of that size as a file (JPEG and WebP of quality 85), or as an array."""
    image = photograph(width, height)
    return np.asarray(image) if kind == "array" else encoded(image, kind)  # the array is read-only, as a record's


def jpeg(width: int, height: int) -> bytes:
    """Return a photograph of that size as a JPEG."""
    return encoded(photograph(width, height), "JPEG")


def encoded(image: Image.Image, kind: str) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, quality=QUALITY)
    return file.getvalue()
