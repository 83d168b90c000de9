"""`clip-worker run` with a device that takes a set time for each image.

Everything but the model is the worker's own. `SIMULATED_IMAGES_S` is what the device does in a second; its time passes
without the GIL, as a real one's does. With `SIMULATED_PREPARED` no picture is decoded or resized: all look the same,
and are copied to where the encoder reads them as any other. `SIMULATED_WITHOUT` names one of `TRICKS`, which the worker
then does without. When the device was busy is added to `SIMULATED_TIMELINE`.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

import worker.cli.run
import worker.loop
import worker.pipeline
import worker.sessions
import worker.system
from tests.broker.instant_worker import DIMENSIONS, GEOMETRY, MODEL_INPUT
from worker.cli.options import settings_options
from worker.fit import Geometry
from worker.prepare import Preprocess
from worker.records import ImageFile, ModelInput, Pixels
from worker.settings import Settings, read_settings

RATE = "SIMULATED_IMAGES_S"
PREPARED = "SIMULATED_PREPARED"
TIMELINE = "SIMULATED_TIMELINE"
WITHOUT = "SIMULATED_WITHOUT"
MODULE = (__name__,)

Embeddings = npt.NDArray[np.float32]


class SimulatedDevice:
    """Does so many images a second, one batch after the other; its embeddings are zeros."""

    model_name = "ViT-B/32:simulated:000000000000"
    model_input = MODEL_INPUT
    geometry = GEOMETRY
    device_name = "cpu"
    precision = "fp32"
    default_max_batch = 64
    depth = 2

    def __init__(self, images_s: float, timeline: Path | None) -> None:
        self._images_s = images_s
        self._timeline = None if timeline is None else timeline.open("ab", buffering=0)
        self._busy_until_s = 0.0
        self._threads_are_named = False

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: Embeddings) -> Embeddings:
        return self.begin(pixels, preprocessed)()

    def begin(self, pixels: npt.NDArray[np.uint8], preprocessed: Embeddings) -> Callable[[], Embeddings]:
        images = len(pixels) + len(preprocessed)
        begun_s = max(time.monotonic(), self._busy_until_s)
        self._busy_until_s = ended_s = begun_s + images / self._images_s
        if self._timeline is not None:
            self._timeline.write(b"%.6f %.6f %d\n" % (begun_s, ended_s, images))
        if not self._threads_are_named:  # by now all of them are there
            name_threads()
            self._threads_are_named = True

        def wait() -> Embeddings:
            time.sleep(max(0.0, ended_s - time.monotonic()))
            return np.zeros((images, DIMENSIONS), np.float32)

        return wait

    def allocate(self, images: int) -> npt.NDArray[np.uint8]:
        return np.empty((images, MODEL_INPUT.size, MODEL_INPUT.size, 3), np.uint8)

    def warm_up(self, max_batch: int) -> None:
        """Do nothing."""


class NoPreparation:
    """Returns one and the same picture, in the shape of `worker.images.Fast`."""

    def __init__(self, model_input: ModelInput, _: Geometry, max_pixels: int) -> None:
        del max_pixels
        self._picture = np.zeros((model_input.size, model_input.size, 3), np.uint8)

    def __call__(self, image: ImageFile | Pixels) -> Pixels:
        del image
        return self._picture


def name_threads() -> None:
    """Give the system's threads the names of Python's, for /proc to show: Python does so itself from 3.14 on."""
    for thread in threading.enumerate():
        name = "main" if thread is threading.main_thread() else thread.name
        Path(f"/proc/self/task/{thread.native_id}/comm").write_text(name)


def idle_share(timeline: Iterable[str]) -> float:
    """Return the share of time in which the device had no batch, less the first and the last tenth of the images.

    Of the images, as a round's rate: the batches of the start are small, and many.
    """
    batches = [(float(begun_s), float(ended_s), int(images)) for begun_s, ended_s, images in map(str.split, timeline)]
    done = list(accumulate(images for _, _, images in batches))
    middle = [batch for batch, until in zip(batches, done, strict=True) if 0.1 < until / done[-1] <= 0.9]
    busy_s = sum(ended_s - begun_s for begun_s, ended_s, _ in middle)
    return 1 - busy_s / (middle[-1][1] - middle[0][0])


def _load(_: Settings) -> SimulatedDevice:
    timeline = os.environ.get(TIMELINE)
    return SimulatedDevice(float(os.environ[RATE]), Path(timeline) if timeline else None)


def _wake_for_each_outcome() -> None:
    """Let main wake every 2 ms, and for each outcome though the line is full."""
    vars(worker.pipeline)["_SHARE_OF_LINE"] = sys.maxsize
    for wait in ("_ROOM_WAIT_S", "_LONGEST_QUIET_WAIT_S"):
        vars(worker.loop)[wait] = vars(worker.loop)["_OUTCOME_WAIT_S"]


def _leave_out(name: str) -> None:
    vars(worker.system)[name] = lambda: None


def _hold_all_images_in_flight() -> None:
    """Let the ring of prepared images have room for all that may be in flight."""
    vars(worker.sessions)["_BATCHES_READY"] = sys.maxsize


def _copy_image_files() -> None:
    make = vars(worker.sessions)["Fast"]

    def make_on_copies(*given: object) -> Preprocess:
        preprocess: Preprocess = make(*given)
        return lambda image: preprocess(bytes(image) if isinstance(image, memoryview) else image)

    vars(worker.sessions)["Fast"] = make_on_copies


# What brings something, and how to do without.
TRICKS: Mapping[str, Callable[[], None]] = {
    "main wakes for a share of the line": _wake_for_each_outcome,
    "scheduled as batch work": partial(_leave_out, "schedule_as_batch"),
    "slices of 10 ms": partial(_leave_out, "lengthen_slices"),
    "freed memory is kept": partial(_leave_out, "keep_freed_memory"),
    "a ring of three batches": _hold_all_images_in_flight,
    "image files read in place": _copy_image_files,
}


@click.command()
@settings_options()
def command(**flags: object) -> None:
    """Run the worker."""
    if PREPARED in os.environ:
        vars(worker.sessions)["Fast"] = NoPreparation
    if WITHOUT in os.environ:
        TRICKS[os.environ[WITHOUT]]()
    worker.cli.run.run(read_settings(flags), _load)
