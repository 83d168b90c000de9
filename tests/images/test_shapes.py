"""Pictures of every shape, for every kind of model input, as files and as arrays."""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.images.oracle import fitted
from tests.images.table import MAX_LEVELS, MAX_MEAN_LEVELS
from tests.unit.pictures_for_tests import (
    MAX_PIXELS,
    SIZE,
    encode,
    geometry,
    model_input,
    normalised,
    open_clips_transform,
    photograph,
)
from worker.fit import height_goes_first
from worker.images import Fast, Reference
from worker.records import Pixels

Both = type[Fast] | type[Reference]

BOTH = pytest.mark.parametrize("kind", [Fast, Reference], ids=["fast", "reference"])

# What open_clip's models take, OpenAI's first. It knows no other interpolations and resize modes.
INPUTS = [
    {},
    {"size": 256, "interpolation": "bilinear", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    {"interpolation": "bicubic", "resize_mode": "squash", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    {"interpolation": "bilinear", "resize_mode": "squash"},
    {"interpolation": "bicubic", "resize_mode": "longest"},
    {"interpolation": "bilinear", "resize_mode": "longest"},
    {"interpolation": "random"},
]
EVERY_INPUT = pytest.mark.parametrize(
    "changed", INPUTS, ids=lambda it: " ".join(str(value) for value in it.values() if isinstance(value, str)) or "plain"
)
# width × height
SHAPES = [
    (1, 1),
    (1, 7),
    (200, 1),
    (3, 500),
    (500, 3),
    (SIZE, SIZE),
    (SIZE, SIZE + 1),
    (SIZE + 1, SIZE),
    (SIZE - 1, SIZE),
    (SIZE, SIZE - 1),
    (SIZE + 1, SIZE + 1),
    (SIZE - 1, SIZE - 1),
    (192, 192),
    (225, 1000),
    (1000, 225),
    (290, 640),
    (1500, 300),
]
EVERY_SHAPE = pytest.mark.parametrize(("width", "height"), SHAPES)


def noise(width: int, height: int) -> Pixels:
    return np.random.default_rng(width * 100_003 + height).integers(0, 256, (height, width, 3), np.uint8)


def photo(width: int, height: int) -> Pixels:
    return np.asarray(photograph("coffee").resize((width, height), Image.Resampling.BICUBIC))


def _make(kind: Both, changed: dict[str, object], max_pixels: int = MAX_PIXELS) -> Fast | Reference:
    return kind(model_input(**changed), geometry(**changed), max_pixels)


def _assert_near(pixels: Pixels, expected: Pixels) -> None:
    off = np.abs(pixels.astype(int) - expected)
    assert pixels.shape == expected.shape
    assert off.max() <= MAX_LEVELS
    assert off.mean() <= MAX_MEAN_LEVELS


@EVERY_INPUT
@EVERY_SHAPE
@pytest.mark.parametrize("pixels", [noise, photo], ids=["noise", "photograph"])
def test_fast_is_near_pillow(
    pixels: Callable[[int, int], Pixels], width: int, height: int, changed: dict[str, object]
) -> None:
    array = pixels(width, height)

    _assert_near(_make(Fast, changed)(array), fitted(Image.fromarray(array), model_input(**changed)))


def _open_clip_refuses(width: int, height: int, changed: dict[str, object]) -> bool:
    """Return whether open_clip makes the shorter side 0 pixels."""
    return changed.get("resize_mode") == "longest" and SIZE * min(width, height) / max(width, height) <= 1 / 2


@EVERY_INPUT
@EVERY_SHAPE
def test_reference_is_open_clips_own(width: int, height: int, changed: dict[str, object]) -> None:
    array = noise(width, height)
    pixels = _make(Reference, changed)(array)

    tensor = normalised(pixels, **changed)

    if not _open_clip_refuses(width, height, changed):
        assert torch.equal(tensor, open_clips_transform(**changed)(Image.fromarray(array)))


@BOTH
@EVERY_SHAPE
def test_a_file_is_taken_as_an_array_is(kind: Both, width: int, height: int) -> None:
    array = noise(width, height)
    preprocess = _make(kind, {})

    assert np.array_equal(preprocess(encode(Image.fromarray(array), "PNG", compress_level=0)), preprocess(array))


SIDES = st.integers(1, 600)


@example(width=260, height=260, changed=INPUTS[1], seed=0)  # 65 to 64 on both sides: many values end in a half
@given(width=SIDES, height=SIDES, changed=st.sampled_from(INPUTS), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_fast_is_near_pillow_and_reference_is_open_clips_own_for_any_picture(
    width: int, height: int, changed: dict[str, object], seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(array)

    _assert_near(_make(Fast, changed)(array), fitted(image, model_input(**changed)))
    if not _open_clip_refuses(width, height, changed):
        assert np.array_equal(_make(Reference, changed)(array), np.asarray(geometry(**changed)(image)))


@given(width=st.integers(1, 300), height=st.integers(1, 900), to_width=st.integers(1, 99), to_height=st.integers(1, 99))
@settings(max_examples=200, deadline=None)
def test_the_order_of_the_passes_is_the_installed_pillows(
    width: int, height: int, to_width: int, to_height: int
) -> None:
    grey = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width), np.uint8))
    bicubic = Image.Resampling.BICUBIC
    first = (width, to_height) if height_goes_first(width, height, to_width, to_height) else (to_width, height)

    in_our_order = grey.resize(first, bicubic).resize((to_width, to_height), bicubic)

    assert in_our_order.tobytes() == grey.resize((to_width, to_height), bicubic).tobytes()


# Where open_clip fails, or would take gigabytes.


@BOTH
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize(("width", "height"), [(1, 300), (300, 1), (3, 700), (700, 3), (216, 1500), (220, 1900)])
def test_a_middle_that_is_resized_alone_is_that_of_the_whole(kind: Both, mode: str, width: int, height: int) -> None:
    image = Image.fromarray(noise(width, height)).convert(mode)
    file = encode(image, "PNG", compress_level=0)

    alone, whole = (_make(kind, {}, max_pixels)(file) for max_pixels in (width * height, MAX_PIXELS))

    off = np.abs(alone.astype(int) - whole)
    assert off.max() <= (MAX_LEVELS if kind is Fast else 1)  # whose whole is torch's work
    assert off.mean() <= (MAX_MEAN_LEVELS if kind is Fast else 0.001)


@BOTH
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("width", "height"), [(1, 10_000), (10_000, 1), (3, 5_000), (5_000, 3)])
def test_a_line_is_a_line_where_open_clip_makes_it_vanish(
    kind: Both, width: int, height: int, interpolation: str
) -> None:
    changed: dict[str, object] = {"interpolation": interpolation, "resize_mode": "longest"}
    array = noise(width, height)
    with pytest.raises(ValueError, match="> 0"):
        geometry(**changed)(Image.fromarray(array))

    pixels = _make(kind, changed)(array)

    assert np.array_equal(pixels, fitted(Image.fromarray(array), model_input(**changed)))


@BOTH
@pytest.mark.parametrize("changed", [{}, {"resize_mode": "squash"}, {"interpolation": "random"}], ids=str)
@pytest.mark.parametrize(("width", "height"), [(1, 10_000), (10_000, 1), (1, 1_000_000)])
def test_a_long_picture_of_one_colour_keeps_it(kind: Both, width: int, height: int, changed: dict[str, object]) -> None:
    array = np.full((height, width, 3), (10, 20, 30), np.uint8)
    file = encode(Image.fromarray(array), "PNG", compress_level=1)
    preprocess = _make(kind, changed)

    assert np.array_equal(preprocess(array), np.full((SIZE, SIZE, 3), (10, 20, 30), np.uint8))
    assert np.array_equal(preprocess(file), preprocess(array))


# Its peak, in a process of its own; open_clip's transform is never reached.
_PEAK = """
import resource
import numpy as np
from worker.images import Fast, Reference
from worker.records import ModelInput

model_input = ModelInput(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest")
ways = [kind(model_input, None, 50_000_000) for kind in (Fast, Reference)]
ways[0](np.zeros((1_000, 1_000, 3), np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for shape in ((10_000, 1, 3), (1, 10_000, 3), (5_000, 2, 3), (1, 1_000_000, 3)):
    for way in ways:
        way(np.zeros(shape, np.uint8))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_line_takes_no_more_memory_than_a_small_photograph() -> None:
    """open_clip resizes 1×10,000 to 224×2,240,000, which is 2 GB; the arrays themselves are 3 MB here."""
    took = subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True)

    assert int(took.stdout) < 20_000_000


@pytest.mark.parametrize(
    ("width", "height"), [(1, 990), (990, 1), (1, 19), (19, 1), (3, 2_000), (SIZE, 900), (900, 230)]
)
def test_what_fast_returns_holds_little_more_than_its_pixels(width: int, height: int) -> None:
    """A record may have 64 pictures of 80 bytes each, and holds what was made of them all at once."""
    pixels = _make(Fast, {})(noise(width, height))

    whole = pixels if pixels.base is None else pixels.base
    assert np.asarray(whole).nbytes <= 2 * pixels.nbytes


def test_a_line_costs_no_more_than_a_small_photograph() -> None:
    fast, lines = _make(Fast, {}), [noise(1, 990), noise(990, 1), noise(1, 30)]
    photograph_s = _cpu_s(lambda: fast(photo(1_000, 750)))

    assert [_cpu_s(partial(fast, line)) < photograph_s for line in lines] == [True] * len(lines)


def _cpu_s(work: Callable[[], object]) -> float:
    """Return the seconds that it takes at least: what else the machine does can only add."""
    work()
    took = []
    for _ in range(5):
        begun_s = time.thread_time()
        work()
        took.append(time.thread_time() - begun_s)
    return min(took)
