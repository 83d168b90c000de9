"""Processes forked from one that has imported everything, each on cores of its own: they start in a moment."""

import multiprocessing
import multiprocessing.forkserver
import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from tests.broker.processes import Launch

Cores = frozenset[int]

_ENTRIES = ("worker.cli.run", "tests.benchmarks.simulated", "tests.benchmarks.empty", "tests.benchmarks.stamped")

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(list(_ENTRIES))


def forked(cores: Cores) -> Launch:
    """Return what starts the `command` of a module in a fork, on these cores only."""
    return partial(_Fork, cores)


class _Fork:
    """A forked worker in the shape of `tests.broker.processes.Process`."""

    def __init__(self, cores: Cores, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        log.touch()
        self._process = forkserver.Process(target=_work, args=(cores, tuple(command), log, dict(env)))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int, /) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def pin(cores: Cores) -> None:
    """Keep this process to these cores, and torch to as many threads, as in a process that is started there."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))


def _work(cores: Cores, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
    pin(cores)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    for name in [name for name in os.environ if name.startswith("WORKER_")]:
        del os.environ[name]
    os.environ.update(env)
    import_module(command[0]).command.main(args=list(command[1:]), prog_name=command[0])


def start_server() -> None:
    """Begin to import, on the cores that this process has now; without this the first fork waits for it."""
    multiprocessing.forkserver.ensure_running()
