"""`python -m tests.broker.instant_worker …`: `clip-worker run` with a model that takes no time.

Everything but the model is the worker's own. `INSTANT_ENCODER_DELAY_S` makes every batch take that long.
"""

import os
import sys
import time
from collections.abc import Sequence

import click
import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

import worker.cli.run
from worker.cli.main import main
from worker.cli.options import settings_options
from worker.records import ModelInput
from worker.settings import Settings, read_settings

DELAY = "INSTANT_ENCODER_DELAY_S"
DIMENSIONS = 512
MODEL_INPUT = ModelInput(
    size=224,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    interpolation="bicubic",
    resize_mode="shortest",
)

_TILES = 8
_MEAN, _STD = (np.array(channels, np.float32) for channels in (MODEL_INPUT.mean, MODEL_INPUT.std))


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


GEOMETRY = Compose([Resize(MODEL_INPUT.size, InterpolationMode.BICUBIC), CenterCrop(MODEL_INPUT.size), _to_rgb])


class InstantEncoder:
    """Embeds an image as a fixed projection of the mean colours of its 8×8 tiles."""

    model_name = "ViT-B/32:instant:000000000000"
    model_input = MODEL_INPUT
    geometry = GEOMETRY
    device_name = "cpu"
    precision = "fp32"
    default_max_batch = 8

    def __init__(self, delay_s: float = 0.0) -> None:
        self._delay_s = delay_s
        numbers = np.random.default_rng(0).standard_normal((_TILES * _TILES * 3, DIMENSIONS))
        self._projection = numbers.astype(np.float32)

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        time.sleep(self._delay_s)
        normalised = (pixels.astype(np.float32) / 255 - _MEAN) / _STD
        images = np.concatenate([normalised, preprocessed])
        tile = MODEL_INPUT.size // _TILES
        # Values near float32's largest overflow here as they do in a model: to an embedding that isn't finite.
        with np.errstate(over="ignore", invalid="ignore"):
            tiles = images.reshape(-1, _TILES, tile, _TILES, tile, 3).mean(axis=(2, 4))
            embeddings: npt.NDArray[np.float32] = tiles.reshape(len(images), -1) @ self._projection
        return embeddings

    def warm_up(self, max_batch: int) -> None:
        """Do nothing: there is nothing to compile or to allocate."""


def load_instantly(_: Settings) -> InstantEncoder:
    return InstantEncoder(float(os.environ.get(DELAY, "0")))


@click.command("run")
@settings_options()
def command(**flags: object) -> None:
    worker.cli.run.run(read_settings(flags), load_instantly)


def start(arguments: Sequence[str]) -> None:
    """Do what `clip-worker run` does."""
    worker.cli.run.command = command  # what `clip-worker run` calls
    sys.argv[1:] = ["run", *arguments]
    main()


if __name__ == "__main__":
    start(sys.argv[1:])
