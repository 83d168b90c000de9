"""A queue whose reader may wait for so long and no longer, whatever interrupts it, and for as many items as it likes.

The standard library's has two such: `SimpleQueue.get` with a timeout waits for ever, before Python 3.13, where a signal
or the scheduler takes the rest of its time; `Queue` is slower by far. Any threads put, one reads.
"""

import time
from collections import deque
from queue import SimpleQueue
from threading import Lock
from typing import Generic, TypeVar

Item = TypeVar("Item")

_FOR_EVER = -1


class Mailbox(Generic[Item]):
    """Items in the order in which they came."""

    def __init__(self) -> None:
        """Begin with none."""
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._bell = Lock()
        self._bell.acquire()  # released, it wakes the reader
        self._sleepers: deque[Lock] = deque()  # the bell while the reader sleeps: who takes it out has to ring
        self._wanted = 1

    def __len__(self) -> int:
        """Return how many items are there."""
        return self._items.qsize()

    def put(self, item: Item) -> None:
        """Add an item. Called by any thread."""
        self._items.put(item)
        if self._sleepers and len(self) >= self._wanted:
            try:
                self._sleepers.pop().release()
            except IndexError:  # another thread rings
                return

    def wait(self, timeout_s: float | None, items: int = 1) -> bool:
        """Wait for so many items, without an end where there is no timeout; return whether there is one."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while len(self) < items and self._sleep(items, end_s):
            pass  # it may be the ring for an item that was taken before
        return bool(self)

    def take(self) -> Item:
        """Return the first item. Raises: `queue.Empty` where there is none."""
        return self._items.get_nowait()

    def _sleep(self, items: int, end_s: float | None) -> bool:
        """Sleep until somebody rings, or the time is up; return whether somebody rang."""
        self._wanted = items
        self._sleepers.append(self._bell)
        if len(self) < items:  # nobody put the last of them before there was a sleeper to see
            timeout_s = _FOR_EVER if end_s is None else max(0.0, end_s - time.monotonic())
            if self._bell.acquire(timeout=timeout_s):
                return True
        try:
            self._sleepers.pop()
        except IndexError:  # somebody is about to ring
            self._bell.acquire()
        return False
