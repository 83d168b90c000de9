"""JPEG records to embeddings by whole workers on the one device; in-process source, no Kafka."""

import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from tests.benchmarks.gpu.machine import Machine
from tests.benchmarks.gpu.pictures import SIDES
from tests.benchmarks.gpu.preparing import has_nvjpeg
from tests.benchmarks.report import Measurement, Result, Size

PART = "whole, in-process source, no Kafka"
UNIT = "images/s"
_ROUND_S, _LEAST_ROUND_S = 4.0, 0.3
_NVJPEG_THREADS_A_CORE = 4
_END_S = 60.0
_ANSWER_S = 300.0


def whole(machine: Machine, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield images/s of one worker and of several beside each other, decoding on the CPU, and on the GPU."""
    for decoder in ("cpu", "nvjpeg") if has_nvjpeg(machine, say) else ("cpu",):
        for processes in machine.processes:
            yield from _together(machine, decoder, processes, size, say)


def best_whole(results: Sequence[Result], name: str) -> float:
    """Return the most images/s of this kind of picture, by however many workers, that decode on the CPU."""
    found = [it.median for it in results if isinstance(it, Measurement) and it.name.startswith(f"{name}, cpu")]
    return max(found)


def _together(
    machine: Machine, decoder: str, processes: int, size: Size, say: Callable[[str], None]
) -> Iterator[Measurement]:
    """Start all, wait until each is warm, and let them begin at the same moment. Rounds are added up."""
    share = max(1, machine.cores // processes)
    threads = share * (_NVJPEG_THREADS_A_CORE if decoder == "nvjpeg" else 1)
    said = f"{decoder} decoding, {processes} workers of {threads} prepare threads"
    say(said)
    workers = [_start(machine, decoder, threads, size) for _ in range(processes)]
    try:
        for worker in workers:
            _read(worker, size)
        for name in SIDES:
            for worker in workers:
                _ask(worker, name)
            rates: list[list[float]] = [_read(worker, size) for worker in workers]
            yield Measurement(PART, f"{name}, {said}", UNIT, [sum(of_one) for of_one in zip(*rates, strict=True)])
    finally:
        for worker in workers:
            _end(worker)


def _start(machine: Machine, decoder: str, threads: int, size: Size) -> "subprocess.Popen[str]":
    options = {
        "device": machine.device,
        "model": machine.model,
        "precision": machine.precisions[0],
        "decoder": decoder,
        "max-batch": machine.max_batch,
        "threads": threads,
        "rounds": size.rounds,
        "round-s": max(_LEAST_ROUND_S, _ROUND_S * size.scale),
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.gpu.worker", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _ask(worker: "subprocess.Popen[str]", name: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(f"{name}\n")
    worker.stdin.flush()


def _read(worker: "subprocess.Popen[str]", size: Size) -> list[float]:
    """Return what it says, a line at a time; a worker that says nothing for too long is ended."""
    assert worker.stdout is not None
    in_time, _, _ = select.select([worker.stdout], [], [], _ANSWER_S + 2 * size.rounds * _ROUND_S)
    if not in_time:
        worker.kill()
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"a worker ended with {worker.wait(_END_S)}: see its lines above")
    said: list[float] = json.loads(line)
    return said


def _end(worker: "subprocess.Popen[str]") -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):
        worker.stdin.close()
    try:
        worker.wait(_END_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
