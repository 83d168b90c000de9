"""The README's table of formats, as measured: `python -m tests.images.table`, or `make formats`, writes it there.

Figures are rounded up to steps, so that what another processor rounds differently leaves the table as it is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.images.formats import VARIANTS, Variant
from tests.images.oracle import fitted, opened, seen
from tests.unit.pictures_for_tests import (
    MAX_PIXELS,
    geometry,
    model_input,
    normalised,
    open_clips_transform,
    photograph,
)
from worker.images import Fast, Reference

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- formats: written by make formats -->\n", "<!-- end of formats -->"

MAX_LEVELS = 2
MAX_MEAN_LEVELS = 0.02
_LEVELS_STEP = 2
_MEAN_STEP = 0.01


@dataclass(frozen=True, slots=True)
class Measured:
    """How far `fast` is from what Pillow makes of what a person sees, and whether `reference` is open_clip's."""

    levels: int
    mean_levels: float
    is_open_clips: bool

    def cells(self) -> str:
        levels = math.ceil(self.levels / _LEVELS_STEP) * _LEVELS_STEP
        mean_levels = math.ceil(self.mean_levels / _MEAN_STEP) * _MEAN_STEP
        return f"{levels} | {mean_levels:.2f} | {'equal' if self.is_open_clips else 'differs'}"


@cache
def pictures() -> Sequence[Image.Image]:
    """Return a photograph and noise."""
    noise = np.random.default_rng(0).integers(0, 256, (231, 257, 3), np.uint8)
    return [photograph("coffee").resize((300, 250), Image.Resampling.LANCZOS), Image.fromarray(noise)]


@cache
def measure(variant: Variant) -> Measured:
    """Measure one variant over all pictures, the worst of them."""
    fast = Fast(model_input(), geometry(), MAX_PIXELS)
    reference = Reference(model_input(), geometry(), MAX_PIXELS)
    files = [file for picture in pictures() for file in variant.files(picture)]
    # The tensor of one file, and the pixels before it of all.
    are_open_clips = [torch.equal(normalised(reference(files[0])), open_clips_transform()(opened(files[0])))]
    levels, means = [], []
    for file in files:
        off = np.abs(fast(file).astype(int) - fitted(seen(opened(file)), model_input()))
        levels.append(int(off.max()))
        means.append(float(off.mean()))
        are_open_clips.append(np.array_equal(reference(file), np.asarray(geometry()(opened(file)))))
    return Measured(max(levels), max(means), all(are_open_clips))


def table(measured: Sequence[tuple[Variant, Measured]]) -> str:
    """Return the table in Markdown: variants of a format with equal figures share a row."""
    return "\n".join(_rows(measured)) + "\n"


def _rows(measured: Sequence[tuple[Variant, Measured]]) -> Iterator[str]:
    yield "| format | variants | `fast` from Pillow: furthest value | in the mean | `reference` from open_clip |"
    yield "| --- | --- | --- | --- | --- |"
    for format_, of_format in groupby(measured, key=lambda pair: pair[0].format):
        rows: dict[str, list[str]] = {}
        for variant, figures in of_format:
            rows.setdefault(figures.cells(), []).append(variant.name)
        for cells, names in rows.items():
            yield f"| {format_} | {'; '.join(names)} | {cells} |"


def written_table() -> str:
    """Return the table that the README has."""
    return README.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Write the table into the README."""
    before, _, rest = README.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(before + BEGIN + table([(variant, measure(variant)) for variant in VARIANTS]) + END + after)


if __name__ == "__main__":
    main()
