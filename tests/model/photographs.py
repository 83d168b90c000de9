"""Pictures of every kind out of the photographs that scikit-image brings: cut out, turned, lit differently."""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageEnhance
from skimage import data

BUNDLED = (
    "astronaut",
    "brick",
    "camera",
    "cell",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "page",
    "retina",
    "rocket",
    "text",
)
_LEAST_SIDE = 40
_TURNS = (None, *Image.Transpose)


def pictures(count: int, seed: int = 0) -> Iterator[Image.Image]:
    """Make `count` RGB pictures, each of the photographs in turn; the same ones for the same seed."""
    photographs = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in BUNDLED]
    chance = np.random.default_rng(seed)
    for number in range(count):
        yield _transform(photographs[number % len(photographs)], chance)


def _transform(photograph: Image.Image, chance: np.random.Generator) -> Image.Image:
    width, height = (int(chance.integers(_LEAST_SIDE, side + 1)) for side in photograph.size)
    left, top = int(chance.integers(photograph.width - width + 1)), int(chance.integers(photograph.height - height + 1))
    cut = photograph.crop((left, top, left + width, top + height))
    turn = _TURNS[chance.integers(len(_TURNS))]
    turned = cut if turn is None else cut.transpose(turn)
    for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        turned = enhance(turned).enhance(chance.uniform(0.5, 1.5))
    return turned
