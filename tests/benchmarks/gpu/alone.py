"""The model alone, on pixels that are on the device: by size of batch, precision, and the way to launch it."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from tests.benchmarks.gpu.machine import Machine
from tests.benchmarks.gpu.timing import best, rates
from tests.benchmarks.report import Bound, Measurement, Result, Size
from worker.cuda import _RUNS_BEFORE_CAPTURE
from worker.quick_gelu import fold_quick_gelu
from worker.tower import Tower, normalise_in_one_pass

PART = "model alone"
UNIT = "images/s"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def alone(machine: Machine, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield images/s of the worker's tower, eager, in a graph and compiled."""
    device = torch.device(machine.device)
    for precision in machine.precisions:
        torch.backends.cudnn.allow_tf32 = precision != "fp32"  # as in the worker's encoder
        tower = Tower(machine.load(), device, _DTYPES[precision], normalized=False)
        for batch in machine.batches:
            say(f"{precision}, batches of {batch}")
            named = {f"{precision}, batches of {batch}, {way}": call for way, call in _ways(machine, tower, batch, say)}
            yield from rates(PART, named, batch, UNIT, size)


def _ways(
    machine: Machine, tower: Tower, batch: int, say: Callable[[str], None]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the ways to launch it; compiling takes a minute, so that is done for the worker's own batches alone."""
    pixels = _pixels(machine, tower.input_size, batch)

    def eager() -> object:
        return tower.embed(pixels)

    yield "eager", eager
    if machine.is_cuda:
        more = {"CUDA graph": partial(captured, eager)}
        if batch == machine.max_batch:
            more["torch.compile"] = partial(_compiled, tower, pixels)
        for way, make in more.items():
            try:
                yield way, make()
            except RuntimeError as error:  # there may be no C compiler, and not every tower can be captured
                say(f"left out, {way}: {error}")


def tricks(machine: Machine, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield what each way of preparing the tower brings, as a ratio to the same without it."""
    batch, precision = machine.max_batch, machine.precisions[0]
    dtype = _DTYPES[precision]
    side = machine.load().input.size
    images = torch.randn(batch, 3, side, side, device=machine.device, dtype=dtype)
    last = images.to(memory_format=torch.channels_last)
    plain, channels_last, folded = (_tower(machine, dtype, change) for change in (_as_is, _channels_last, _folded))
    say("channels-last memory, QuickGELU folded, one pass to normalise")
    ways = {
        "tower, channels first": _inferring(plain, images),
        "tower, channels last": _inferring(channels_last, last),
        "tower, channels last, QuickGELU folded": _inferring(folded, last),
    }
    measured = rates("tricks", ways, batch, UNIT, size)
    yield from measured
    first, second, third = measured
    yield Bound("tricks", "channels-last memory", [second.median / first.median])
    yield Bound("tricks", "QuickGELU folded into the weights", [third.median / second.median])
    yield from _normalisation(machine, dtype, third, size)


def _normalisation(machine: Machine, dtype: torch.dtype, tower: Measurement, size: Size) -> Iterator[Result]:
    """Yield what one pass saves of the whole: normalisation, then the tower."""
    model = machine.load()
    pixels = _pixels(machine, model.input.size, machine.max_batch)
    mean, std = (torch.tensor(of, device=machine.device).view(1, 3, 1, 1) for of in (model.input.mean, model.input.std))
    scale, shift = 1 / (255 * std), -mean / std
    ways = {
        "normalise in four passes": lambda: pixels.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std).to(dtype),
        "normalise in one pass": lambda: normalise_in_one_pass(pixels, scale, shift, dtype),
    }
    measured = rates("tricks", ways, machine.max_batch, UNIT, size)
    yield from measured
    four_s, one_s, tower_s = (1 / measurement.median for measurement in (*measured, tower))
    yield Bound("tricks", "normalisation in one pass", [(tower_s + four_s) / (tower_s + one_s)])


def best_of(results: list[Result]) -> float:
    """Return the most images/s of the worker's own ways: what is compiled is not among them."""
    return best([it for it in results if isinstance(it, Measurement) and "torch.compile" not in it.name])


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a graph of the call."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(_RUNS_BEFORE_CAPTURE):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Set around it as well: before torch 2.15 a capture that fails leaves its own stream behind.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def _compiled(tower: Tower, pixels: torch.Tensor) -> Callable[[], object]:
    compiled = torch.compile(tower._tower, dynamic=False)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        embeddings: torch.Tensor = compiled(tower._normalise(pixels))
        return embeddings

    call()
    return captured(call)


def _pixels(machine: Machine, side: int, batch: int) -> torch.Tensor:
    # Made on the CPU: before torch 2.15 the GPU's generator gives no more numbers once a capture has failed.
    return torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8).to(machine.device)


def _inferring(tower: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    return torch.inference_mode()(lambda: tower(images))


def _tower(machine: Machine, dtype: torch.dtype, change: Callable[[nn.Module], object]) -> nn.Module:
    tower = machine.load().tower
    change(tower)
    return tower.to(machine.device, dtype)


def _as_is(_: nn.Module) -> None:
    """Change nothing."""


def _channels_last(tower: nn.Module) -> None:
    tower.to(memory_format=torch.channels_last)


def _folded(tower: nn.Module) -> None:
    fold_quick_gelu(tower)
    tower.to(memory_format=torch.channels_last)
