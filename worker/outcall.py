"""A call in a thread of its own, for one that may never come back."""

import time
from collections.abc import Callable
from threading import Thread


class Outcall:
    """A call under way. Belongs to the thread that began it; the call's own thread ends with the call."""

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        """Begin the call."""
        self._call = call
        self._begun_s = time.monotonic()
        self._error: Exception | None = None
        # A daemon: where the call hangs, the process must end all the same.
        self._thread = Thread(target=self._make, name=name, daemon=True)
        self._thread.start()

    @property
    def age_s(self) -> float:
        """Return for how many seconds the call has been under way."""
        return time.monotonic() - self._begun_s

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
            self._call()
        except Exception as error:  # noqa: BLE001 - the thread boundary: raised where the end is waited for
            self._error = error
