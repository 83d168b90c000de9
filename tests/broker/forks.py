"""Workers forked from a process that has imported everything: they start in a moment, and many are started.

What runs is the same as in `tests.broker.processes.launch`.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

forkserver = multiprocessing.get_context("forkserver")

Work = Callable[[Sequence[str]], object]
"""Does what the command says, in the forked process."""


class Fork:
    """A forked worker in the shape of `tests.broker.processes.Process`; `work` and what it needs are pickled."""

    def __init__(self, work: Work, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        log.touch()
        self._process = forkserver.Process(target=_work, args=(work, tuple(command), log, dict(env)))
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


def _work(work: Work, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    for name in [name for name in os.environ if name.startswith("WORKER_")]:
        del os.environ[name]
    os.environ.update(env)
    work(command)
