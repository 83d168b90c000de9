"""Preparation per core, side by side: `python -m tests.benchmarks.preparation`, or `make bench`.

Each way prepares the same JPEG in turn, round after round, on one thread; the medians of the rounds
are compared, so what else the machine does falls on all of them.
"""

import io
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import simplejpeg
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data
from torch.nn.functional import interpolate
from torchvision.transforms import Compose

from worker.images import Fast, Reference
from worker.records import ModelInput

SIZES = ((320, 240), (500, 375), (1920, 1440), (4000, 3000))
PHOTOGRAPH = "coffee"
ROUNDS = 15
ROUND_S = 0.05

Way = Callable[[bytes], object]


def jpeg(width: int, height: int) -> bytes:
    """Return a photograph of that size as a JPEG of quality 85."""
    file = io.BytesIO()
    Image.fromarray(getattr(data, PHOTOGRAPH)()).resize((width, height), Image.Resampling.LANCZOS).save(
        file, "JPEG", quality=85
    )
    return file.getvalue()


def ways() -> Mapping[str, Way]:
    """Return what is compared, open_clip's transform first."""
    config = PreprocessCfg()
    transform = image_transform_v2(config, is_train=False)
    geometry = Compose(transform.transforms[:-2])
    model_input = ModelInput(224, config.mean, config.std, config.interpolation, config.resize_mode)
    return {
        "open_clip": lambda file: transform(Image.open(io.BytesIO(file))),
        "reference": Reference(model_input, geometry, max_pixels=50_000_000),
        "fast": Fast(model_input, geometry, max_pixels=50_000_000),
        "decode and resize, bare": _bare,
    }


def _bare(file: bytes) -> torch.Tensor:
    """Decode and resize with the calls that `fast` makes, and nothing around them."""
    rgb = torch.from_numpy(simplejpeg.decode_jpeg(file, "RGB")).permute(2, 0, 1)[None]
    height, width = rgb.shape[2:]
    return interpolate(rgb, (224, int(224 * width / height)), mode="bicubic", antialias=True)


def measure(file: bytes) -> Mapping[str, float]:
    """Return the median seconds of each way to prepare `file`, on one thread."""
    rounds: dict[str, list[float]] = {name: [] for name in ways()}
    prepared = ways()
    repeats = {name: _repeats(way, file) for name, way in prepared.items()}
    for _ in range(ROUNDS):
        for name, way in prepared.items():
            begun_s = time.perf_counter()
            for _ in range(repeats[name]):
                way(file)
            rounds[name].append((time.perf_counter() - begun_s) / repeats[name])
    return {name: statistics.median(seconds) for name, seconds in rounds.items()}


def _repeats(way: Way, file: bytes) -> int:
    way(file)
    begun_s = time.perf_counter()
    way(file)
    return max(1, round(ROUND_S / (time.perf_counter() - begun_s)))


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    table = Table("JPEG", "way", "ms an image", "images/s a core", "times open_clip's")
    for width, height in SIZES:
        seconds = measure(jpeg(width, height))
        for name, took_s in seconds.items():
            ratio = seconds["open_clip"] / took_s
            table.add_row(f"{width}×{height}", name, f"{took_s * 1e3:.2f}", f"{1 / took_s:.0f}", f"{ratio:.2f}")
        table.add_section()
    Console().print(table)
    Console().print(f"medians of {ROUNDS} rounds; torch {torch.__version__}, numpy {np.__version__}")


if __name__ == "__main__":
    main()
