"""How many records may become dead letters before the worker stops. Belongs to the main thread.

Only what is durable counts, so every record counts once. Nothing is dropped at a limit: what was taken in
is finished and committed, and the process ends.
"""

from collections import deque

from worker.errors import TooManyRejections
from worker.records import Written


class RejectionLimits:
    """A share of the last records, and a run of them one after the other; None is no limit."""

    def __init__(self, max_share: float | None, window_records: int, max_in_a_row: int | None) -> None:
        """Begin with no record seen; the share is judged once the window is full."""
        self._max_share = max_share
        self._max_in_a_row = max_in_a_row
        self._window: deque[bool] = deque(maxlen=window_records)
        self._rejected = 0
        self._in_a_row = 0
        self._exceeded: str | None = None

    @property
    def are_reached(self) -> bool:
        """Return whether a limit has been reached."""
        return self._exceeded is not None

    def note(self, written: Written) -> None:
        """Count an outcome."""
        is_rejected = written.reason is not None
        if len(self._window) == self._window.maxlen:
            self._rejected -= self._window[0]
        self._window.append(is_rejected)
        self._rejected += is_rejected
        self._in_a_row = self._in_a_row + 1 if is_rejected else 0
        self._exceeded = self._exceeded or self._judge(written)

    def check(self) -> None:
        """Raise where a limit has been reached.

        Raises: `TooManyRejections` that names the limit and the last reason.
        """
        if self._exceeded is not None:
            raise TooManyRejections(self._exceeded)

    def _judge(self, last: Written) -> str | None:
        reason = last.reason or "none"
        if self._max_in_a_row is not None and self._in_a_row >= self._max_in_a_row:
            return (
                f"{self._in_a_row} records in a row became dead letters, WORKER_MAX_REJECTED_IN_A_ROW="
                f"{self._max_in_a_row}; the last reason: {reason}"
            )
        window = len(self._window)
        if self._max_share is None or window < (self._window.maxlen or 0):
            return None
        share = self._rejected / window
        if share < self._max_share:
            return None
        return (
            f"{self._rejected} of the last {window} records became dead letters, a share of {share:.3g}, "
            f"WORKER_MAX_REJECTED_SHARE={self._max_share:g}; the last reason: {reason}"
        )
