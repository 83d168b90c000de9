"""Pictures to pixels: by a core, by all of them, and by the GPU's decoder, with its distance from `reference`."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import ClassVar

import numpy as np

from tests.benchmarks.gpu.machine import Machine
from tests.benchmarks.gpu.pictures import SIDES, jpegs
from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.broker.forks import forkserver
from worker.errors import DeviceError
from worker.fit import Geometry
from worker.images import Fast, Reference
from worker.nvjpeg import NvJpeg, nvjpeg_decoder
from worker.prepare import Preprocess
from worker.records import ModelInput
from worker.system import prefer_throughput

PART = "preparation"
UNIT = "images/s"
MAX_PIXELS = 50_000_000
_ROUND_S = 1.0
_READY_S = 120.0
_TOGETHER = "a process on each core"
_THREADS_A_CORE = 4  # of the GPU's decoder: the more threads have a file, the more it gets at once


def preparing(machine: Machine, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield images/s of `fast` on one thread, on as many as there are cores, and in as many processes."""
    model = machine.load()
    fast = Fast(model.input, model.geometry, MAX_PIXELS)
    own = model.input, model.geometry, forkserver.Barrier(machine.cores)
    with ProcessPoolExecutor(machine.cores, forkserver, _begin_process, own) as pool:
        for name in SIDES:
            for threads in sorted({1, machine.cores}):
                say(f"{name}, {threads} threads")
                yield _rate(PART, f"fast, {name}, {threads} threads", fast, jpegs(name), threads, size)
            say(f"{name}, {machine.cores} processes")
            rates = [_rate_together(pool, machine.cores, name, size) for _ in range(size.rounds)]
            yield Measurement(PART, f"fast, {name}, {_TOGETHER}", UNIT, rates)


def preparation_rate(results: Sequence[Result], name: str) -> float:
    """Return the images/s of this kind of picture that all cores prepare at once: hyperthreads share what a core has.

    By processes, which have no lock in common.
    """
    measured = [it for it in results if isinstance(it, Measurement) and it.part == PART]
    [found] = [it for it in measured if it.name == f"fast, {name}, {_TOGETHER}"]
    return found.median


def _rate_together(pool: ProcessPoolExecutor, processes: int, name: str, size: Size) -> float:
    tasks = [pool.submit(_rate_of_one, name, _ROUND_S * size.scale) for _ in range(processes)]
    return sum(task.result() for task in tasks)


class _Process:
    """What a process of the pool has once it has begun: its preprocessing, and where all of them meet."""

    fast: ClassVar[Fast]
    together: ClassVar[Barrier]


def _begin_process(model_input: ModelInput, geometry: Geometry, together: Barrier) -> None:
    prefer_throughput()
    _Process.fast, _Process.together = Fast(model_input, geometry, MAX_PIXELS), together


def _rate_of_one(name: str, seconds: float) -> float:
    """Return the images/s of this process, which begins when all are ready."""
    files = jpegs(name)
    _Process.fast(files[0])
    _Process.together.wait(_READY_S)
    begun_s = time.perf_counter()
    done = _prepare_until(_Process.fast, files, 0, begun_s + seconds)
    return done / (time.perf_counter() - begun_s)


def has_nvjpeg(machine: Machine, say: Callable[[str], None]) -> bool:
    """Return whether the GPU's decoder is there, and say why not."""
    try:
        nvjpeg_decoder(machine.device)
    except DeviceError as error:
        say(f"left out: {error}")
        return False
    return True


def decoding(machine: Machine, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield images/s of nvJPEG beside `fast` with the same threads, and how far both are from `reference`."""
    if not has_nvjpeg(machine, say):
        return
    model = machine.load()
    arguments = model.input, model.geometry, MAX_PIXELS
    fast, reference = Fast(*arguments), Reference(*arguments)
    nvjpeg = NvJpeg(*arguments, nvjpeg_decoder(machine.device))
    for name in SIDES:
        files = jpegs(name)
        for threads in (1, machine.cores, _THREADS_A_CORE * machine.cores):
            say(f"{name}, {threads} threads")
            measured = [
                _rate("decoding", f"{way}, {name}, {threads} threads", prepare, files, threads, size)
                for way, prepare in (("nvjpeg", nvjpeg), ("fast", fast))
            ]
            yield from measured
            ratio = measured[0].median / measured[1].median
            yield Bound("decoding", f"nvjpeg against fast, {name}, {threads} threads", [ratio])
        yield from _distances(f"nvjpeg from reference, {name}", nvjpeg, reference, files)
        yield from _distances(f"fast from reference, {name}", fast, reference, files)


def _distances(name: str, prepare: Preprocess, reference: Preprocess, files: Sequence[bytes]) -> Iterator[Measurement]:
    levels = np.stack([np.abs(prepare(file).astype(int) - reference(file)) for file in files])
    yield Measurement("distances", f"{name}, furthest value", "levels", [float(levels.max())])
    yield Measurement("distances", f"{name}, mean", "levels", [float(levels.mean())])


def _rate(part: str, name: str, prepare: Preprocess, files: Sequence[bytes], threads: int, size: Size) -> Measurement:
    """Let every thread prepare all files in turn, for as long as a round is."""
    values = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(size.rounds):
            begun_s = time.perf_counter()
            until_s = begun_s + _ROUND_S * size.scale
            counts = [pool.submit(_prepare_until, prepare, files, first, until_s) for first in range(threads)]
            done = sum(count.result() for count in counts)
            values.append(done / (time.perf_counter() - begun_s))
    return Measurement(part, name, UNIT, values)


def _prepare_until(prepare: Preprocess, files: Sequence[bytes], first: int, until_s: float) -> int:
    done = 0
    while not done or time.perf_counter() < until_s:
        prepare(files[(first + done) % len(files)])
        done += 1
    return done
