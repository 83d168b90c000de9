"""What a person sees of an image file, and what a model is given of it, with Pillow alone, as plainly as it goes."""

import io

import numpy as np
from PIL import Image, ImageOps

from worker.records import ModelInput, Pixels


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def seen(image: Image.Image) -> Image.Image:
    """Return the picture upright, in 8 bits, on white, in RGB."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        floats = np.asarray(upright).astype(np.float64)
        upright = Image.fromarray((floats * (255 if floats.max() <= 1 else 1)).round().clip(0, 255).astype(np.uint8))
    elif upright.mode.startswith("I"):
        upright = Image.fromarray((np.asarray(upright).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    return upright.convert("RGB")


def fitted(image: Image.Image, model_input: ModelInput) -> Pixels:
    """Resize all of the picture, and take the middle of it."""
    size = model_input.size
    filter_ = Image.Resampling.BILINEAR if model_input.interpolation == "bilinear" else Image.Resampling.BICUBIC
    width, height = image.size
    short, long = min(width, height), max(width, height)
    match model_input.resize_mode:
        case "squash":
            return np.asarray(image.resize((size, size), filter_))
        case "longest":
            to = (max(1, round(width * size / long)), max(1, round(height * size / long)))
            black = Image.new("RGB", (size, size))
            black.paste(image.resize(to, filter_), ((size - to[0]) // 2, (size - to[1]) // 2))
            return np.asarray(black)
    to = (size * width // short, size * height // short)
    left, top = round((to[0] - size) / 2), round((to[1] - size) / 2)
    return np.asarray(image.resize(to, filter_).crop((left, top, left + size, top + size)))
