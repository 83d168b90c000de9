"""A call in a thread of its own, for one that may never come back."""

import time
from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Outcall(Generic[Result]):
    """A call under way. Belongs to the thread that began it; the call's own thread ends with the call."""

    def __init__(self, name: str, call: Callable[[], Result]) -> None:
        """Begin the call."""
        self._call = call
        self._begun_s = time.monotonic()
        self._error: Exception | None = None
        self._results: list[Result] = []
        # A daemon: where the call hangs, the process must end all the same.
        self._thread = Thread(target=self._make, name=name, daemon=True)
        self._thread.start()

    @property
    def age_s(self) -> float:
        """Return for how many seconds the call has been under way."""
        return time.monotonic() - self._begun_s

    @property
    def result(self) -> Result:
        """Return what the call returned; only once it is done."""
        return self._results[0]

    def is_done(self, timeout_s: float) -> bool:
        """Wait for the end of the call; False where it doesn't come in time.

        Raises: what the call raised.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def _make(self) -> None:
        try:
            self._results.append(self._call())
        except Exception as error:  # noqa: BLE001 - the thread boundary: raised where the end is waited for
            self._error = error
