"""Workers forked from a process that has imported everything: they start in a moment, and many are started.

What runs is the same as in `tests.broker.processes.launch`.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.broker import instant_worker
from tests.broker.processes import INSTANT, REAL
from worker.cli.main import main

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload([instant_worker.__name__])

STACKS = signal.SIGUSR1
"""Makes a forked worker write what its threads are at into its log."""


class Fork:
    """A forked worker in the shape of `tests.broker.processes.Process`."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        log.touch()
        self._process = _forkserver.Process(target=_work, args=(tuple(command), log, dict(env)))
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


def _work(command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    faulthandler.register(STACKS)  # also of a thread that hangs in native code
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    for name in [name for name in os.environ if name.startswith("WORKER_")]:
        del os.environ[name]
    os.environ.update(env)
    if command[: len(REAL)] == REAL:
        sys.argv[1:] = command[1:]
        main()
    else:
        instant_worker.start(command[len(INSTANT) :])
