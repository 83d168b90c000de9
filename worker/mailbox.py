"""A queue whose reader may wait for so long and no longer, whatever interrupts it.

The standard library's has two such: `SimpleQueue.get` with a timeout waits for ever, before Python 3.13, where a signal
or the scheduler takes the rest of its time; `Queue` is slower by far. Any threads put, one reads.
"""

from queue import SimpleQueue
from threading import Event
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Items in the order in which they came."""

    def __init__(self) -> None:
        """Begin with none."""
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._came = Event()

    def __len__(self) -> int:
        """Return how many items are there."""
        return self._items.qsize()

    def put(self, item: Item) -> None:
        """Add an item. Called by any thread."""
        self._items.put(item)
        if not self._came.is_set():  # a reader that clears it looks for items after that
            self._came.set()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for an item, without an end where there is no timeout; return whether there is one."""
        if not self:
            self._came.clear()
            if not self:  # none came in between
                self._came.wait(timeout_s)
        return bool(self)

    def take(self) -> Item:
        """Return the first item. Raises: `queue.Empty` where there is none."""
        return self._items.get_nowait()
