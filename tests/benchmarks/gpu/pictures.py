"""JPEGs cut out of photographs that scikit-image brings inside its package: no network."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from PIL import Image
from skimage import data

from tests.benchmarks.pictures import encoded

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
SIDES: Mapping[str, tuple[int, int]] = {"500×375": (500, 375), "224×224": (224, 224)}
_CUTS = 8
_SHIFT = 60


@cache
def jpegs(name: str) -> Sequence[bytes]:
    """Return different JPEGs of these sides, of every photograph a few."""
    return [_jpeg(photograph, cut, SIDES[name]) for photograph in PHOTOGRAPHS for cut in range(_CUTS)]


def _jpeg(photograph: str, cut: int, sides: tuple[int, int]) -> bytes:
    whole = Image.fromarray(getattr(data, photograph)()).convert("RGB")
    left, top = np.random.default_rng(cut).uniform(0, _SHIFT, 2)
    box = (left, top, whole.width - _SHIFT + left, whole.height - _SHIFT + top)
    return encoded(whole.resize(sides, Image.Resampling.LANCZOS, box=box), "JPEG")
