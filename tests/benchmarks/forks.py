"""Processes forked from one that has imported everything, each on cores of its own: they start in a moment."""

import multiprocessing.forkserver
import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module

import torch

from tests.broker.forks import Fork, forkserver
from tests.broker.processes import Launch

Cores = frozenset[int]

_ENTRIES = ("worker.cli.run", "tests.benchmarks.simulated", "tests.benchmarks.empty", "tests.benchmarks.stamped")

forkserver.set_forkserver_preload(list(_ENTRIES))


def forked(cores: Cores) -> Launch:
    """Return what starts the `command` of a module in a fork, on these cores only."""
    return partial(Fork, partial(_run, cores))


def pin(cores: Cores) -> None:
    """Keep this process to these cores, and torch to as many threads, as in a process that is started there."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))


def _run(cores: Cores, command: Sequence[str]) -> None:
    pin(cores)
    import_module(command[0]).command.main(args=list(command[1:]), prog_name=command[0])


def start_server() -> None:
    """Begin to import, on the cores that this process has now; without this the first fork waits for it."""
    multiprocessing.forkserver.ensure_running()
