"""Photographs, a file of every form, and the model's input, for the tests that look at images."""

import io
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import ExifTags, Image
from skimage import data
from torchvision.transforms import Compose, Normalize, ToTensor

from worker.fit import Geometry
from worker.records import ModelInput, Pixels

SIZE = 224
MAX_PIXELS = 50_000_000
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


@cache
def photograph(name: str) -> Image.Image:
    pixels: Pixels = getattr(data, name)()
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    """Return EXIF data that says how the stored picture is to be turned, 1 to 8."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def translucent(image: Image.Image) -> Image.Image:
    """Return the picture with an opacity that grows from 0 at its top to 255 at its bottom."""
    with_alpha = image.convert("RGBA")
    with_alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    return with_alpha


def with_palette(image: Image.Image) -> Image.Image:
    return image.quantize(64, Image.Quantize.FASTOCTREE)


def grey_of_16_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


FORMS: Mapping[str, Callable[[Image.Image], bytes]] = {
    "jpeg-444": lambda it: encode(it, "JPEG", quality=90, subsampling=0),
    "jpeg-420": lambda it: encode(it, "JPEG", quality=90, subsampling=2),
    "jpeg-grey": lambda it: encode(it.convert("L"), "JPEG"),
    "jpeg-progressive": lambda it: encode(it, "JPEG", progressive=True),
    "jpeg-cmyk": lambda it: encode(it.convert("CMYK"), "JPEG"),
    "png-rgb": lambda it: encode(it, "PNG", compress_level=1),
    "png-rgba": lambda it: encode(translucent(it), "PNG", compress_level=1),
    "png-grey-alpha": lambda it: encode(translucent(it).convert("LA"), "PNG", compress_level=1),
    "png-palette": lambda it: encode(with_palette(it), "PNG"),
    "png-palette-one-transparent": lambda it: encode(with_palette(it), "PNG", transparency=3),
    "png-palette-translucent": lambda it: encode(with_palette(it), "PNG", transparency=bytes(range(0, 256, 4))),
    "png-rgb-one-transparent": lambda it: encode(
        it, "PNG", transparency=it.getpixel((it.width // 2, it.height // 2)), compress_level=1
    ),
    "png-16-bit-grey": lambda it: encode(grey_of_16_bits(it), "PNG", compress_level=1),
    "png-1-bit": lambda it: encode(it.convert("1"), "PNG"),
    "webp": lambda it: encode(it, "WEBP", method=0),
    "webp-translucent": lambda it: encode(translucent(it), "WEBP", method=0),
    "webp-animated": lambda it: encode(
        it, "WEBP", save_all=True, append_images=[Image.new("RGB", it.size)], duration=100, method=0
    ),
    "gif": lambda it: encode(with_palette(it), "GIF"),
    "gif-one-transparent": lambda it: encode(with_palette(it), "GIF", transparency=3),
    "gif-animated": lambda it: encode(
        with_palette(it), "GIF", save_all=True, append_images=[Image.new("P", it.size)], duration=100, loop=0
    ),
    "bmp": lambda it: encode(it, "BMP"),
    "tiff": lambda it: encode(it, "TIFF"),
    "tiff-lzw": lambda it: encode(it, "TIFF", compression="tiff_lzw"),
    "tiff-cmyk": lambda it: encode(it.convert("CMYK"), "TIFF"),
    "tiff-16-bit-grey": lambda it: encode(grey_of_16_bits(it), "TIFF"),
    "avif": lambda it: encode(it, "AVIF", speed=10),
}


@cache
def file_of(form: str, name: str) -> bytes:
    """Return the photograph of this name in this form."""
    return FORMS[form](photograph(name))


# The kinds of files that can say how they are to be turned.
TURNABLE: Mapping[str, Mapping[str, object]] = {
    "JPEG": {},
    "PNG": {"compress_level": 1},
    "WEBP": {"method": 0},
    "TIFF": {},
    "AVIF": {"speed": 10},
}


def model_input(**changed: object) -> ModelInput:
    """Return what OpenAI's models say of their input, as `worker.weights` reads it; or another's, where changed."""
    config = _config(changed)
    assert isinstance(config.size, int)
    return ModelInput(config.size, config.mean, config.std, config.interpolation, config.resize_mode)


def open_clips_transform(**changed: object) -> Callable[[Image.Image], torch.Tensor]:
    """Return open_clip's own transform, normalisation included."""
    transform: Callable[[Image.Image], torch.Tensor] = image_transform_v2(_config(changed), is_train=False)
    return transform


def normalised(pixels: Pixels, **changed: object) -> torch.Tensor:
    """Return uint8 [R, R, 3] as the tensor that open_clip gives its models."""
    config = _config(changed)
    tensor: torch.Tensor = Compose([ToTensor(), Normalize(config.mean, config.std)])(np.array(pixels))
    return tensor


def _config(changed: Mapping[str, object]) -> PreprocessCfg:
    return PreprocessCfg(**changed)


def geometry(**changed: object) -> Geometry:
    """Return open_clip's own transform as far as it works on images."""
    transform = image_transform_v2(_config(changed), is_train=False)
    on_images: Geometry = Compose([step for step in transform.transforms if not _makes_tensors(step)])
    return on_images


def _makes_tensors(step: object) -> bool:
    return isinstance(step, ToTensor | Normalize) or type(step).__name__ == "MaybeToTensor"
