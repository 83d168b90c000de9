"""A queue whose reader may wait for so long and no longer, whatever interrupts it, and for as many items as it likes.

The standard library's has two such: `SimpleQueue.get` with a timeout waits for ever, before Python 3.13, where a signal
or the scheduler takes the rest of its time; `Queue` is slower by far. Any threads put, one reads.
"""

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
        if len(self) < items:
            self._wanted = items
            self._sleepers.append(self._bell)
            came = len(self) >= items  # before a thread that puts could see the sleeper
            if came or not self._bell.acquire(timeout=_FOR_EVER if timeout_s is None else timeout_s):
                self._wake()
        return bool(self)

    def take(self) -> Item:
        """Return the first item. Raises: `queue.Empty` where there is none."""
        return self._items.get_nowait()

    def _wake(self) -> None:
        """Sleep no more, though nobody rang."""
        try:
            self._sleepers.pop()
        except IndexError:  # somebody is about to
            self._bell.acquire()
