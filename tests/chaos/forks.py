"""Chaos workers in forks: `launch_fork` starts one; a signal makes it write what its threads are at into its log."""

import faulthandler
import signal
import sys
from collections.abc import Sequence
from functools import partial

from tests.broker import instant_worker
from tests.broker.forks import Fork, forkserver
from tests.broker.processes import INSTANT, REAL, Launch
from worker.cli.main import main

forkserver.set_forkserver_preload([instant_worker.__name__])

STACKS = signal.SIGUSR1


def _run(command: Sequence[str]) -> None:
    faulthandler.register(STACKS)  # also of a thread that hangs in native code
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    if command[: len(REAL)] == REAL:
        sys.argv[1:] = command[1:]
        main()
    else:
        instant_worker.start(command[len(INSTANT) :])


launch_fork: Launch = partial(Fork, _run)
