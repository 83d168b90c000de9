"""`python -m tests.broker.instant_worker …`: `clip-worker run` with a model that takes no time.

Everything but the model is the worker's own. `INSTANT_ENCODER_DELAY_S` makes every batch take that long. With
`INSTANT_FAULTS` pictures of some colours do what those are named for, with `INSTANT_MEMORY_IMAGES` the device has no
memory for larger batches, and with `INSTANT_HANGS_IN` that method of the consumer hangs once the file
`INSTANT_HANGS_WHEN` is there.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import click
import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

import worker.cli.run
import worker.loop
import worker.sessions
from tests.unit.encoders import AtOnce, rows
from worker.cli.main import main
from worker.cli.options import settings_options
from worker.errors import OutOfMemory
from worker.images import Fast
from worker.records import ImageFile, ModelInput, Pixels
from worker.settings import Settings, read_settings
from worker.source import Source

DELAY = "INSTANT_ENCODER_DELAY_S"
FAULTS = "INSTANT_FAULTS"
MEMORY = "INSTANT_MEMORY_IMAGES"
HANGS_IN, HANGS_WHEN = "INSTANT_HANGS_IN", "INSTANT_HANGS_WHEN"

Colour = tuple[int, int, int]

# In the device thread.
HANGS_DEVICE: Colour = (255, 0, 1)
FAILS_MODEL: Colour = (255, 0, 2)
BREAKS_DEVICE: Colour = (255, 0, 3)  # for good
# In a prepare thread.
HANGS_DECODER: Colour = (255, 0, 4)
KILLS_THREAD: Colour = (255, 0, 5)
IS_SLOW: Colour = (255, 0, 6)

SLOW_S = 0.6
CLIENT_PATIENCE_S = 1.0

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


class InstantEncoder(AtOnce):
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

    def allocate(self, images: int) -> npt.NDArray[np.uint8]:
        return rows(images, MODEL_INPUT.size)

    def warm_up(self, max_batch: int) -> None:
        """Do nothing: there is nothing to compile or to allocate."""


class FaultyEncoder(InstantEncoder):
    """Has memory for so many images, and fails or hangs at pictures of some colours."""

    def __init__(self, delay_s: float, memory_images: int) -> None:
        super().__init__(delay_s)
        self._memory_images = memory_images
        self._is_broken = False

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if len(pixels) > self._memory_images:
            raise OutOfMemory(f"no memory for {len(pixels)} images")
        colours = {_colour(image) for image in pixels}
        if HANGS_DEVICE in colours:
            _hang()
        self._is_broken |= BREAKS_DEVICE in colours
        if self._is_broken or FAILS_MODEL in colours:
            raise RuntimeError("as told")
        return super().encode(pixels, preprocessed)


class FaultyFast(Fast):
    """The worker's own preprocessing; hangs, raises or takes its time at arrays of some colours."""

    def __call__(self, image: ImageFile | Pixels) -> Pixels:
        if isinstance(image, np.ndarray):
            match _colour(image):
                case colour if colour == HANGS_DECODER:
                    _hang()
                case colour if colour == KILLS_THREAD:
                    raise RuntimeError("as told")
                case colour if colour == IS_SLOW:
                    time.sleep(SLOW_S)
        return super().__call__(image)


def _colour(image: Pixels) -> Colour:
    red, green, blue = image[0, 0].tolist()
    return red, green, blue


def _hang() -> None:
    Event().wait()


def _hang_in(name: str, once_there: Path) -> None:
    original: Callable[..., object] = getattr(Source, name)

    def hang_or_call(source: Source, *arguments: object) -> object:
        if once_there.exists():
            _hang()
        return original(source, *arguments)

    setattr(Source, name, hang_or_call)


def load_instantly(_: Settings) -> InstantEncoder:
    delay_s = float(os.environ.get(DELAY, "0"))
    if FAULTS not in os.environ:
        return InstantEncoder(delay_s)
    return FaultyEncoder(delay_s, int(os.environ.get(MEMORY, "1000")))


def _break() -> None:
    """Put the faults in their places."""
    vars(worker.sessions)["Fast"] = FaultyFast
    worker.loop._CLIENT_PATIENCE_S = CLIENT_PATIENCE_S
    if HANGS_IN in os.environ:
        _hang_in(os.environ[HANGS_IN], Path(os.environ[HANGS_WHEN]))


@click.command("run")
@settings_options()
def command(**flags: object) -> None:
    worker.cli.run.run(read_settings(flags), load_instantly)


def start(arguments: Sequence[str]) -> None:
    """Do what `clip-worker run` does."""
    worker.cli.run.command = command  # what `clip-worker run` calls
    if FAULTS in os.environ:
        _break()
    sys.argv[1:] = ["run", *arguments]
    main()


if __name__ == "__main__":
    start(sys.argv[1:])
