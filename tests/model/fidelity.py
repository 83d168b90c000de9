"""`python -m tests.model.fidelity --pictures 1000`: the whole ViT-B/32 against open_clip and transformers.

Prints how far the worker's embeddings are from theirs, and ends with 1 where a limit is exceeded.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.model.oracles import TOLERANCE, Embeddings, centred_cosine, open_clips, transformers_clip
from tests.model.photographs import pictures
from worker.encoder import Encoder
from worker.images import Reference
from worker.weights import load_model

MODEL, ARCHITECTURE, HEADS = "ViT-B/32", "ViT-B-32-quickgelu", 12
MAX_PIXELS = 50_000_000
BATCH = 8
BF16_LIMIT = 0.999  # the least measured is 0.99970
NONE_PREPROCESSED = np.empty((0, 224, 224, 3), np.float32)

Embed = Callable[[Sequence[Image.Image]], Embeddings]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    what: str
    measured: float
    limit: float
    fine: bool

    def __str__(self) -> str:
        return f"{self.what:<60} {self.measured:>12.3e} {self.limit:>10.3e}  {'fine' if self.fine else 'OFF'}"


@click.command()
@click.option("--pictures", "count", type=click.IntRange(min=2), default=1000, help="how many pictures")
def main(count: int) -> None:
    """Compare, print, and end with 1 where a limit is exceeded."""
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that the weights are random
    fp32 = _run("the worker in fp32", _worker("fp32"), count)
    findings = []
    for name, oracle in (
        ("open_clip", open_clips(ARCHITECTURE)),
        ("transformers", transformers_clip(ARCHITECTURE, HEADS)),
    ):
        expected = _run(name, oracle, count)
        findings += _compare(fp32, expected, name)
    bf16 = _run("the worker in bf16", _worker("bf16"), count)
    least = float(centred_cosine(bf16, expected).min())
    findings.append(
        Finding("bf16 against fp32: 1 - least centred cosine", 1 - least, 1 - BF16_LIMIT, least > BF16_LIMIT)
    )
    click.echo(f"\n{MODEL}, seeded weights, {count} pictures\n{'':<60} {'measured':>12} {'limit':>10}")
    for finding in findings:
        click.echo(str(finding))
    sys.exit(0 if all(finding.fine for finding in findings) else 1)


def _compare(found: Embeddings, expected: Embeddings, name: str) -> list[Finding]:
    """Return the largest difference, and the largest as a share of what 1e-5 absolute and relative allow."""
    difference = np.abs(found - expected)
    share = float((difference / (TOLERANCE + TOLERANCE * np.abs(expected))).max())
    return [
        Finding(f"fp32 against {name}: largest difference", float(difference.max()), np.inf, fine=True),
        Finding(f"fp32 against {name}: share of 1e-5 absolute and relative", share, 1, share <= 1),
    ]


def _worker(precision: str) -> Embed:
    encoder = Encoder(load_model(MODEL, "random"), "cpu", precision, normalized=False)
    encoder.warm_up(BATCH)
    reference = Reference(encoder.model_input, encoder.geometry, MAX_PIXELS)

    def embed(images: Sequence[Image.Image]) -> Embeddings:
        pixels: npt.NDArray[np.uint8] = np.stack([reference(np.asarray(image)) for image in images])
        return encoder.encode(pixels, NONE_PREPROCESSED)

    return embed


def _run(what: str, embed: Embed, count: int) -> Embeddings:
    begun_s = time.monotonic()
    embeddings = np.concatenate([embed(batch) for batch in _batches(pictures(count))])
    click.echo(f"{what}: {count} pictures in {time.monotonic() - begun_s:.0f} s")
    return embeddings


def _batches(images: Iterator[Image.Image]) -> Iterator[list[Image.Image]]:
    while batch := list(islice(images, BATCH)):
        yield batch


if __name__ == "__main__":
    main()
