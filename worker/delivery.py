"""Outcomes -> the output topics, then the offsets behind them. Belongs to the main thread.

Guarantee of `AtLeastOnce`: an offset is committed only after every outcome up to it has been
acknowledged by all in-sync replicas. A record whose output the broker refuses becomes a dead letter.
"""

from collections import deque
from collections.abc import Callable, Mapping

from confluent_kafka import KafkaError, KafkaException

from worker.clients import Properties, failure
from worker.dispatch import Dispatch, is_refusal_of_batch, refusal, said, unwritable
from worker.errors import ClientFailed, KafkaSetupError
from worker.outbound import Attempt, Outbox, written
from worker.records import Outcome, TopicLimits, Written


class AtLeastOnce:
    """An idempotent producer, and the consumer's commit once everything has been acknowledged."""

    def __init__(
        self,
        properties: Properties,
        limits: Mapping[str, TopicLimits],
        outbox: Outbox,
        commit: Callable[[Mapping[int, int]], float | None],
        on_written: Callable[[Written], None],
    ) -> None:
        """Connect the producer.

        `limits` are what each topic admits, `commit` commits the consumer's offsets as `Source.commit` does,
        `on_written` is told every outcome that is acknowledged, or has nothing to write.
        """
        self._dispatch = Dispatch(properties, limits, self._note)
        self._outbox = outbox
        self._commit = commit
        self._on_written = on_written
        self._again: deque[Attempt] = deque()  # what was refused: sent again, each alone, before anything else
        self._failure: ClientFailed | KafkaSetupError | None = None
        self._is_waiting = False  # for the acknowledgements: what is sent meanwhile would put their end off for ever
        self._acknowledged: Mapping[int, int] = {}  # the positions whose outcomes are, and whose commit has to wait

    def open(self) -> bool:
        """Return True: there is nothing to wait for."""
        return True

    def poll(self) -> None:
        """Look at the reports that are there, and send again what was refused.

        Raises: `ClientFailed`, `KafkaSetupError`.
        """
        self._dispatch.poll()
        if self._failure is not None:
            raise self._failure
        if self._again:
            attempt = self._again.popleft()
            if not self._dispatch_one(attempt, alone=True):
                self._again.appendleft(attempt)

    def send(self, outcome: Outcome) -> bool:
        """Hand an outcome to the producer; False where it has to wait: then send it again after a poll.

        Raises: `ClientFailed`, `KafkaSetupError`.
        """
        if self._is_waiting or self._again:
            return False
        outbound = self._outbox.outbound(outcome)
        if outbound is None:
            self._on_written(written(outcome))
            return True
        return self._dispatch_one(Attempt(outcome, outbound))

    def hurry(self) -> None:
        """Let nothing that was sent wait for company on its way. Raises: `ClientFailed`."""
        self._dispatch.hurry()

    def commit(self, positions: Mapping[int, int]) -> float | None:
        """Wait a moment for the acknowledgements, then commit; None once that is done, else when to call again.

        Raises: `ClientFailed`, `KafkaSetupError`.
        """
        if not positions.items() <= self._acknowledged.items():
            self._is_waiting = True
            self._dispatch.flush()
            self.poll()
            if self._dispatch.unacknowledged or self._again:
                return 0.0
            self._is_waiting = False
            self._acknowledged = dict(positions)
        return self._commit(positions)

    def abandon(self) -> None:
        """Let what was written stay: it is written again by the partition's next owner."""
        self._is_waiting = False

    def close(self) -> None:
        """Give up what is not acknowledged; nothing is written any more."""
        self._dispatch.purge()

    def _dispatch_one(self, attempt: Attempt, *, alone: bool = False) -> bool:
        try:
            return self._dispatch.send(attempt, alone=alone)
        except KafkaException as exception:
            raise failure(f"producing to {attempt.outbound.topic}", said(exception)) from exception

    def _note(self, attempt: Attempt, error: KafkaError | None, alone: bool) -> None:  # noqa: FBT001 - a fact
        """Look at a delivery report."""
        if error is None:
            self._on_written(written(attempt.outcome))
            return
        if is_refusal_of_batch(error) and not alone:
            self._again.append(attempt)
            return
        reason = refusal(error)
        limit_bytes = self._dispatch.limit_bytes(attempt.outbound.topic)
        instead = None if reason is None else self._outbox.instead(attempt, reason, limit_bytes)
        if instead is not None:
            self._again.appendleft(instead)
        else:
            self._failure = unwritable(attempt, error, limit_bytes)
