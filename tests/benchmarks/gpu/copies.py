"""Pixels to the device and embeddings back: alone, and beside the model; what pinned memory and two slots bring."""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from tests.benchmarks.gpu.machine import Machine
from tests.benchmarks.gpu.timing import rates
from tests.benchmarks.report import Bound, Measurement, Result, Size
from worker.encoder import Encoder

UNIT = "images/s"
_BATCHES = 8  # in one call of a chain, in the real run
_BETWEEN_SIZES = (5, 9, 40, 100)

Pixels = npt.NDArray[np.uint8]


def copies(machine: Machine, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield images/s of copies alone, of the encoder from memory to memory, and the tricks' ratios."""
    batch = machine.max_batch
    encoder = machine.encoder(machine.precisions[0])
    encoder.warm_up(batch)
    pinned, pageable = _filled(encoder.allocate(batch)), _filled(np.empty_like(encoder.allocate(batch)))
    batches = max(2, round(_BATCHES * size.scale))
    say(f"batches of {batch}")
    if machine.is_cuda:
        yield from _alone(machine, encoder, pinned, pageable, size)
    ways = {
        "encode, pinned, one under way": _chain(encoder, pinned, 1, batches),
        "encode, pinned, as many as the device takes": _chain(encoder, pinned, encoder.depth, batches),
        "encode, pageable, as many as the device takes": _chain(encoder, pageable, encoder.depth, batches),
    }
    measured = rates("copies", ways, batch * batches, UNIT, size)
    yield from measured
    one, deep, from_pageable = (measurement.median for measurement in measured)
    yield Bound("tricks", "a second slot, copied into beside the model", [deep / one])
    yield Bound("tricks", "pinned memory", [deep / from_pageable])
    if machine.is_cuda:
        yield from _small_batches(machine, encoder, pinned, size)


def _alone(machine: Machine, encoder: Encoder, pinned: Pixels, pageable: Pixels, size: Size) -> Iterator[Measurement]:
    on_device = torch.empty(pinned.shape, dtype=torch.uint8, device=machine.device)
    embeddings = torch.empty((len(pinned), encoder.encode(pinned[:1], _none(pinned)).shape[1]), device=machine.device)
    host = torch.empty(embeddings.shape, pin_memory=True)
    ways = {
        "pixels in, pinned": lambda: on_device.copy_(torch.from_numpy(pinned), non_blocking=True),
        "pixels in, pageable": lambda: on_device.copy_(torch.from_numpy(pageable), non_blocking=True),
        "embeddings out": lambda: host.copy_(embeddings, non_blocking=True),
    }
    yield from rates("copies", ways, len(pinned), UNIT, size)


def _small_batches(machine: Machine, encoder: Encoder, pinned: Pixels, size: Size) -> Iterator[Result]:
    """Yield what graphs bring with their padding, where a batch is between two sizes, and at one image."""
    without = machine.encoder(machine.precisions[0])
    without._runs._capture = lambda *_: None  # type: ignore[attr-defined]
    without.warm_up(machine.max_batch)
    batches = max(2, round(_BATCHES * size.scale))
    for images in (1, *_BETWEEN_SIZES, machine.max_batch):
        pixels = pinned[:images]
        ways = {
            f"encode, {images} images, graphs and sizes": _chain(encoder, pixels, 1, batches),
            f"encode, {images} images, without": _chain(without, pixels, 1, batches),
        }
        measured = rates("small batches", ways, images * batches, UNIT, size)
        yield from measured
        with_graphs, eager = measured
        yield Bound("tricks", f"CUDA graphs of a few sizes, {images} images", [with_graphs.median / eager.median])


def _chain(encoder: Encoder, pixels: Pixels, depth: int, batches: int) -> Callable[[], object]:
    none = _none(pixels)

    def encode_all() -> None:
        under_way: deque[Callable[[], object]] = deque()
        for _ in range(batches):
            under_way.append(encoder.begin(pixels, none))
            if len(under_way) == depth:
                under_way.popleft()()
        for wait in under_way:
            wait()

    return encode_all


def _none(pixels: Pixels) -> npt.NDArray[np.float32]:
    return np.empty((0, *pixels.shape[1:]), np.float32)


def _filled(places: Pixels) -> Pixels:
    places[:] = np.random.default_rng(0).integers(0, 256, places.shape, np.uint8)
    return places
