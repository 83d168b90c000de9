"""The model alone, by batch size and precision."""

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.benchmarks.timing import interleave, ratios
from worker.encoder import Encoder
from worker.processor import bf16_unit
from worker.weights import RANDOM, Model, load_model

PART = "parts"
MODEL = "ViT-B/32"
BATCHES = (1, 8, 32)
SMOKE_BATCHES = (1,)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LEAST_OF_BF16 = 1.7


def model(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield images a second on the CPU, with as many of torch's threads as a worker has."""
    loaded = load_model(MODEL, RANDOM)
    encoders = {precision: _encoder(loaded, precision) for precision in _DTYPES}
    for batch in BATCHES if size.scale >= 1 else SMOKE_BATCHES:
        say(f"{MODEL} in batches of {batch}")
        pixels = np.zeros((batch, loaded.input.size, loaded.input.size, 3), np.uint8)
        calls = {precision: _call(encoder, pixels) for precision, encoder in encoders.items()}
        seconds = interleave(calls, size.rounds, time.perf_counter, round_s=0)
        for precision, took_s in seconds.items():
            name = f"{MODEL} on the CPU, {precision}, batch {batch}"
            yield Measurement(PART, name, "images/s", [batch / one for one in took_s])
        least = _LEAST_OF_BF16 if bf16_unit() is not None and size.scale >= 1 else None
        yield Bound(PART, f"bf16 to fp32, {MODEL}, batch {batch}", ratios(seconds["fp32"], seconds["bf16"]), least)
    yield from _compiled(loaded, size, say)


def _compiled(loaded: Model, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    if size.scale < 1:
        say("torch.compile is left out: it takes minutes; scale 1 has it")
        return
    side = loaded.input.size
    if shutil.which("g++") is None:
        say("torch.compile is left out: it needs g++")
        return
    for precision, dtype in _DTYPES.items():
        tower = copy.deepcopy(loaded.tower).to(dtype)
        for batch in BATCHES:
            say(f"torch.compile, {precision}, batches of {batch}")
            images = torch.zeros(batch, 3, side, side, dtype=dtype)
            try:
                yield from _compare(tower, images, f"{precision}, batch {batch}", size)
            except RuntimeError as error:  # g++ may lack Python's headers
                say(f"torch.compile is left out: {error}")
                return


def _compare(tower: nn.Module, images: torch.Tensor, name: str, size: Size) -> Iterator[Result]:
    torch.compiler.reset()
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(tower, dynamic=False)
    calls = {"eager": partial(_embed, tower, images), "compiled": partial(_embed, compiled, images)}
    seconds = interleave(calls, size.rounds, time.perf_counter, round_s=0)
    for kind, took_s in seconds.items():
        rates = [len(images) / one for one in took_s]
        yield Measurement(PART, f"{MODEL} on the CPU, {name}, the tower alone, {kind}", "images/s", rates)
    yield Bound(PART, f"compiled to eager, {MODEL}, {name}", ratios(seconds["eager"], seconds["compiled"]))


@torch.inference_mode()
def _embed(tower: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    return tower(images)


def _encoder(loaded: Model, precision: str) -> Encoder:
    return Encoder(replace(loaded, tower=copy.deepcopy(loaded.tower)), "cpu", precision, normalized=False)


def _call(encoder: Encoder, pixels: npt.NDArray[np.uint8]) -> Callable[[], object]:
    nothing = np.empty((0, *pixels.shape[1:]), np.float32)
    return lambda: encoder.encode(pixels, nothing)
