"""The session: take in, hand on, checkpoint; settle what is revoked, and everything at the end.

Belongs to the main thread. Guarantees: the position of a partition is the offset after the last
outcome handed on, and outcomes are handed on in order; so committing it never skips a record.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.activity import Activity, Clock
from worker.errors import DrainTimeout, Rewind
from worker.records import Outcome, Record

log = logging.getLogger(__name__)

_IDLE_POLL_S = 0.1
_OUTCOME_WAIT_S = 0.002
_LONGEST_QUIET_WAIT_S = 0.01
_ROOM_WAIT_S = 0.05
_FULL_BEFORE_PAUSE_S = 1.0
_COMMIT_WAIT_S = 0.02
_TAKEN_AT_ONCE = 64
_LAST_COMMIT_S = 5.0  # after a stop's deadline, for what is finished
_SHARE_OF_LAST_COMMIT = 0.2  # of the time for a revocation, likewise
# A call that waits for a broker comes back in its own time: seen to take 20 s where the coordinator is away.
_CLIENT_PATIENCE_S = 30.0


class Consumes(Protocol):
    """Where records come from; see `worker.source.Source`."""

    def subscribe(self, listener: "Loop") -> None:
        """Join the group, and tell the listener of partitions that come and go."""

    def poll(self, timeout_s: float) -> Record | None:
        """Return the next record, or None."""

    def rewind(self, positions: Mapping[int, int]) -> None:
        """Let the next records of these partitions be those at these offsets."""

    def note_committed(self, positions: Mapping[int, int]) -> None:
        """Note the next offset of each partition that the group has."""

    def pause(self) -> None:
        """Poll no records from what is assigned."""

    def resume(self) -> None:
        """Poll records again."""


class Flow(Protocol):
    """What turns records into outcomes; see `worker.pipeline.Pipeline`."""

    @property
    def in_flight(self) -> int:
        """Return the number of records taken in and not handed out."""

    @property
    def has_room(self) -> bool:
        """Return whether one more record may be taken in."""

    def submit(self, record: Record) -> None:
        """Take a record in."""

    def finished(self) -> Outcome | None:
        """Return the outcome that is next in order, if there is one."""

    def hand_out(self) -> None:
        """Take it off the line."""

    def wait(self, timeout_s: float) -> None:
        """Wait for any outcome."""

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until a good share of what is in flight is finished, or the time is up."""

    def has(self, partitions: Sequence[int]) -> bool:
        """Return whether anything of these partitions is in flight."""

    def drop(self, partitions: Sequence[int]) -> None:
        """Forget what is in flight of these partitions."""

    def linger(self, *, allowed: bool) -> None:
        """Say whether a batch may wait for more records than are there."""


class Delivers(Protocol):
    """Where outcomes go; see `worker.delivery.AtLeastOnce`."""

    def open(self) -> bool:
        """Get ready to send; False where it has to be called again."""

    def poll(self) -> None:
        """Look at what the producer reports, which would pile up unread."""

    def send(self, outcome: Outcome) -> bool:
        """Hand an outcome to the producer; False where it has to wait: then send it again after a poll."""

    def hurry(self) -> None:
        """Let nothing that was sent wait for company on its way."""

    def commit(self, positions: Mapping[int, int]) -> float | None:
        """Make what was sent durable, then the next offset of each partition.

        None once that is done; else in how many seconds to call again with the same positions. `send` says whether
        more may be sent meanwhile.
        """

    def abandon(self) -> None:
        """Take back what was sent and not committed, where it can be: its offsets will not follow."""

    def close(self) -> None:
        """Give up what is not acknowledged; nothing is written any more when it returns."""


class Observer(Protocol):
    """Who is told what the loop does; see `worker.metrics.Metrics`."""

    def checkpointed(self, seconds: float) -> None:
        """Note a checkpoint that was committed."""

    def rebalanced(self, kind: str, partitions: int) -> None:
        """Note partitions assigned or revoked; `partitions` is how many are owned now."""

    def rewound(self) -> None:
        """Note a transaction that was aborted."""


@dataclass(frozen=True, slots=True)
class Times:
    """When a checkpoint is due, and how long the others may take."""

    checkpoint_interval_s: float
    checkpoint_records: int
    drain_timeout_s: float
    revoke_timeout_s: float


class Loop:
    """One session over a source, a pipeline and a delivery."""

    def __init__(
        self,
        source: Consumes,
        pipeline: Flow,
        delivery: Delivers,
        times: Times,
        observer: Observer,
        activity: Activity,
        clock: Clock = time.monotonic,
    ) -> None:
        """Wire the session; nothing is taken in before `run`."""
        self._source = source
        self._pipeline = pipeline
        self._delivery = delivery
        self._times = times
        self._observer = observer
        self._activity = activity
        self._clock = clock
        self._owned: set[int] = set()
        self._positions: dict[int, int] = {}  # the next offset of each partition with outcomes that aren't committed
        self._committing: dict[int, int] = {}  # the positions of a checkpoint that has begun
        self._committed: dict[int, int] = {}  # where each partition goes on after an aborted transaction
        self._next_checkpoint_s = 0.0
        self._since_checkpoint = 0
        self._full_since_s: float | None = None
        self._quiet_wait_s = _OUTCOME_WAIT_S
        self._paused: set[int] = set()
        self.checkpoints = 0

    def run(self, stopping: Callable[[], bool]) -> None:
        """Work until `stopping`, then finish what was taken in.

        Raises: `DrainTimeout`, and what ends a session or the process.
        """
        self._activity.begin("opening the producer", patience_s=_CLIENT_PATIENCE_S)
        while not self._delivery.open():
            if stopping():
                return
            self._activity.begin("opening the producer", patience_s=_CLIENT_PATIENCE_S)
        self._source.subscribe(self)
        while not stopping():
            self._activity.begin("the loop")
            try:
                self._work()
            except Rewind as rewind:
                self._rewind(rewind)
        log.info("stopping: %d records in flight; a second signal ends at once", self._pipeline.in_flight)
        self._settle_everything()

    def assigned(self, partitions: Sequence[int]) -> None:
        """Note partitions that records will come from; they arrive unpaused."""
        self._owned.update(partitions)
        self._paused.difference_update(partitions)
        self._observer.rebalanced("assigned", len(self._owned))
        log.info("assigned %s, own %d partitions", sorted(partitions), len(self._owned))

    def revoked(self, partitions: Sequence[int]) -> None:
        """Settle partitions before they are given up.

        What isn't finished in time goes to their next owner; what was finished before it is committed.
        """
        settled = committed = False
        try:
            deadline_s = self._clock() + self._times.revoke_timeout_s
            finished_by_s = deadline_s - _SHARE_OF_LAST_COMMIT * self._times.revoke_timeout_s
            settled = committed = self._settle(partitions, finished_by_s, self._pipeline.wait)
            if not settled:
                committed = self._commit_by(deadline_s, self._pipeline.wait)
        finally:
            self._give_up(partitions)
            said = "" if settled else " before all of it was done"
            log.info("revoked %s%s, own %d partitions", sorted(partitions), said, len(self._owned))
        if not committed:
            self._delivery.abandon()

    def _give_up(self, partitions: Sequence[int]) -> None:
        self._pipeline.drop(partitions)
        for partition in partitions:
            self._positions.pop(partition, None)
            self._committing.pop(partition, None)
            self._committed.pop(partition, None)
        self._owned.difference_update(partitions)
        self._paused.difference_update(partitions)
        self._observer.rebalanced("revoked", len(self._owned))

    def _work(self) -> None:
        self._take_in()
        self._move_on()

    def _move_on(self) -> None:
        # A transaction that is broken is aborted here.
        self._activity.begin("handing on", patience_s=_CLIENT_PATIENCE_S)
        self._delivery.poll()
        self._hand_on()
        if self._checkpoint_due():
            self._checkpoint()

    def _rewind(self, rewind: Rewind) -> None:
        """Forget what is in flight, and go on from what is committed: the transaction took all since then with it."""
        log.warning("%s; going on from the last checkpoint", rewind)
        self._pipeline.drop(list(self._owned))
        self._positions.clear()
        self._since_checkpoint = 0
        self._committing.clear()
        self._source.rewind(self._committed)
        self._observer.rewound()

    def _take_in(self) -> None:
        if not self._pipeline.has_room:
            self._stand_by()
            return
        self._full_since_s = None
        if self._paused:
            self._source.resume()
            self._paused.clear()
        for _ in range(_TAKEN_AT_ONCE):
            record = self._next()
            if record is None:
                self._wait_for_outcome()
                return
            self._submit(record)
            if not self._pipeline.has_room:
                return

    def _next(self) -> Record | None:
        """Return the next record if there is one; where nothing is in flight, wait for it."""
        record = self._source.poll(0)
        if record is not None or self._pipeline.in_flight:
            return record
        self._delivery.hurry()
        return self._source.poll(_COMMIT_WAIT_S if self._committing else _IDLE_POLL_S)

    def _wait_for_outcome(self) -> None:
        """Wait for any outcome, longer while nothing comes: a look for records every 2 ms slows a model on the CPU."""
        self._pipeline.wait(self._quiet_wait_s if self._pipeline.in_flight else 0)
        self._quiet_wait_s = min(2 * self._quiet_wait_s, _LONGEST_QUIET_WAIT_S)

    def _submit(self, record: Record) -> None:
        self._quiet_wait_s = _OUTCOME_WAIT_S
        self._committed.setdefault(record.partition, record.offset)
        self._pipeline.submit(record)

    def _stand_by(self) -> None:
        """Wait for room. When that takes long, keep polling for rebalances, with fetching paused."""
        self._pipeline.wait_for_room(_ROOM_WAIT_S)
        now = self._clock()
        self._full_since_s = now if self._full_since_s is None else self._full_since_s
        if now - self._full_since_s < _FULL_BEFORE_PAUSE_S:
            return
        if self._paused != self._owned:
            self._source.pause()
            self._paused = set(self._owned)
        record = self._source.poll(0)
        if record is not None:  # of a partition that was assigned just now
            self._submit(record)

    def _hand_on(self) -> None:
        while not self._checkpoint_is_full():
            outcome = self._pipeline.finished()
            if outcome is None or not self._delivery.send(outcome):
                return
            self._pipeline.hand_out()
            self._quiet_wait_s = _OUTCOME_WAIT_S
            self._positions[outcome.record.partition] = outcome.record.offset + 1
            self._since_checkpoint += 1

    def _checkpoint_is_full(self) -> bool:
        return bool(self._positions) and self._since_checkpoint >= self._times.checkpoint_records

    def _checkpoint_due(self) -> bool:
        is_full = self._checkpoint_is_full() and not self._committing
        return bool(self._positions) and (is_full or self._clock() >= self._next_checkpoint_s)

    def _checkpoint(self) -> float | None:
        """Commit the positions; where that has to wait, keep them and return in how many seconds to try again."""
        begun_s = self._clock()
        self._activity.begin("a checkpoint", patience_s=_CLIENT_PATIENCE_S)
        if not self._committing:
            self._committing = dict(self._positions)
            self._since_checkpoint = 0
        again_s = self._delivery.commit(self._committing)
        if again_s is not None:
            self._next_checkpoint_s = self._clock() + again_s
            return again_s
        self.checkpoints += 1
        self._source.note_committed(self._committing)
        self._committed.update(self._committing)
        self._positions = dict(self._positions.items() - self._committing.items())
        self._committing.clear()
        self._next_checkpoint_s = self._clock() + self._times.checkpoint_interval_s
        self._observer.checkpointed(self._clock() - begun_s)
        return None

    def _settle(self, partitions: Sequence[int], deadline_s: float, wait: Callable[[float], object]) -> bool:
        """Finish and commit what is in flight of these partitions; False where the time runs out.

        `wait` passes the seconds before a commit is tried again.
        """
        if not self._finish(partitions, deadline_s):
            return False
        while any(partition in self._positions for partition in partitions):
            if self._clock() >= deadline_s:
                return False
            again_s = self._checkpoint()
            if again_s is not None:
                wait(max(again_s, _OUTCOME_WAIT_S))
                self._hand_on()
        return True

    def _finish(self, partitions: Sequence[int], deadline_s: float) -> bool:
        self._pipeline.linger(allowed=False)
        try:
            while self._pipeline.has(partitions):
                if self._clock() >= deadline_s:
                    return False
                self._activity.begin("settling")
                self._pipeline.wait(_OUTCOME_WAIT_S)
                self._move_on()
        finally:
            self._pipeline.linger(allowed=True)
        return True

    def _settle_everything(self) -> None:
        """Finish what is in flight, and commit it. Raises: `DrainTimeout`, with what is finished committed."""
        deadline_s = self._clock() + self._times.drain_timeout_s
        try:
            # A group that rebalances goes on only while its members poll; a record that comes is not taken in.
            if self._settle(sorted(self._owned), deadline_s, self._source.poll):
                return
            committed = self._commit_by(self._clock() + _LAST_COMMIT_S, self._source.poll)
        except Rewind as rewind:  # nothing of it was written, and nothing of it is committed
            log.warning("%s: left to the next worker", rewind)
            return
        raise DrainTimeout(
            f"{self._pipeline.in_flight} records were unfinished after {self._times.drain_timeout_s:g} s"
            + ("" if committed else ", and what was finished could not be committed")
        )

    def _commit_by(self, deadline_s: float, wait: Callable[[float], object]) -> bool:
        """Commit what is finished; see `_settle` for `wait`. False where the time runs out."""
        self._hand_on()
        while self._positions:
            again_s = self._checkpoint()
            if again_s is None:
                continue
            if self._clock() >= deadline_s:
                return False
            wait(max(again_s, _OUTCOME_WAIT_S))
        return True
