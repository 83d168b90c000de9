"""What each thread is at, and since when: written by that thread alone, read by the watchdog."""

import time
from collections.abc import Callable
from types import FunctionType
from typing import TypeVar

Result = TypeVar("Result")

Clock = Callable[[], float]
"""Seconds that only go forward; `time.monotonic` outside tests."""


class Activity:
    """One thread's present work. A thread that waits for work is at nothing."""

    def __init__(self, name: str, clock: Clock = time.monotonic) -> None:
        """Begin at nothing."""
        self.name = name
        self._clock = clock
        self._work: tuple[float, object, float] | None = None

    def begin(self, work: object, *, patience_s: float = 0.0) -> None:
        """Say what the thread does from now on; called again, it is a sign of life.

        `patience_s` is how much longer than other work it may take: what waits for a broker depends on the broker.
        """
        self._work = (self._clock(), work, patience_s)

    def end(self) -> None:
        """Say that the thread waits."""
        self._work = None

    @property
    def busy_s(self) -> float:
        """Return for how many seconds the thread has been at the same work; 0 where it waits."""
        work = self._work
        return 0.0 if work is None else self._clock() - work[0]

    @property
    def is_busy(self) -> bool:
        """Return whether the thread is at anything."""
        return self._work is not None

    def is_stalled(self, stall_timeout_s: float) -> bool:
        """Return whether the thread has been at the same work for longer than it may."""
        work = self._work
        return work is not None and self._clock() - work[0] > stall_timeout_s + work[2]

    def __str__(self) -> str:
        """Name the thread and its work."""
        work = self._work
        return f"{self.name} waits" if work is None else f"{self.name}: {work[1]} for {self.busy_s:.1f} s"


def call_as(name: str, call: Callable[[], Result]) -> Result:
    """Call in a frame that has this name, so that the stack says what a thread is at.

    Where native code crashes, nothing is left to log it but the stacks that faulthandler writes.
    """
    named: Callable[[Callable[[], Result]], Result] = FunctionType(_call.__code__.replace(co_name=name), {})
    return named(call)


def _call(call: Callable[[], Result]) -> Result:
    return call()
