"""Outcomes -> the output topics, and the offsets behind them. Belongs to the main thread.

Guarantee of `AtLeastOnce`: an offset is committed only after every outcome up to it has been
acknowledged by all in-sync replicas. A record whose output the broker refuses becomes a dead letter.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.dead_letter import Reason
from worker.clients import Properties
from worker.errors import ClientFailed
from worker.outbound import Outbox
from worker.records import Deleted, Embedded, Outbound, Outcome, Rejected, TimestampWindow

log = logging.getLogger(__name__)

# The broker refuses this one record's output: the record's fault.
_REFUSALS = {
    KafkaError.MSG_SIZE_TOO_LARGE: Reason.OUTPUT_TOO_LARGE,
    KafkaError.INVALID_TIMESTAMP: Reason.BAD_TIMESTAMP,
}
# … and with it all others that travelled in the same batch (KIP-467).
_SAME_BATCH = KafkaError._INVALID_DIFFERENT_RECORD

_FLUSH_S = 0.5  # a broker that is away must not keep the main thread from polling
_CLOSE_S = 10.0
_CLOCKS_DIFFER_MS = 60_000


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An outcome with the record that is to say it."""

    outcome: Outcome
    outbound: Outbound


class AtLeastOnce:
    """An idempotent producer, and the consumer's commit once everything has been acknowledged."""

    def __init__(
        self,
        properties: Properties,
        outbox: Outbox,
        commit: Callable[[Mapping[int, int]], bool],
        window: TimestampWindow,
    ) -> None:
        """Connect the producer; `commit` commits the consumer's offsets, `window` is the output topic's."""
        self._producer = Producer(properties, logger=log)
        self._outbox = outbox
        self._commit = commit
        self._window = window
        self._unacknowledged = 0
        self._alone = False  # what is unacknowledged is one record that the broker may refuse
        self._again: deque[_Attempt] = deque()
        self._failure: ClientFailed | None = None

    def send(self, outcome: Outcome) -> bool:
        """Hand an outcome to the producer; False where it has to wait: then send it again later.

        Raises: `ClientFailed`.
        """
        self._poll()
        if self._alone or self._again:
            return False
        outbound = self._outbox.outbound(outcome)
        if outbound is None:
            return True
        risky = self._is_risky(outbound)
        if risky and self._unacknowledged:
            return False
        return self._produce(_Attempt(outcome, outbound), alone=risky)

    def commit(self, positions: Mapping[int, int]) -> bool:
        """Wait a moment for the acknowledgements, then commit; False where it has to be tried again.

        Raises: `ClientFailed`.
        """
        self._producer.flush(_FLUSH_S)
        self._poll()
        if self._unacknowledged or self._again:
            return False
        return self._commit(positions)

    def close(self) -> None:
        """Give up what is not acknowledged, and wait until the client says so."""
        self._producer.purge()
        self._producer.flush(_CLOSE_S)

    def _poll(self) -> None:
        self._producer.poll(0)
        if self._failure is not None:
            raise self._failure
        if self._unacknowledged:
            return
        self._alone = False
        if self._again and self._produce(self._again[0], alone=True):
            self._again.popleft()

    def _is_risky(self, outbound: Outbound) -> bool:
        """Return whether the broker may refuse the record for its timestamp.

        It then refuses its whole batch, and what is sent again lands behind what came later; so such
        a record travels alone.
        """
        stamp = outbound.timestamp_ms
        return stamp is not None and not self._window.admits(stamp, time.time_ns() // 1_000_000, _CLOCKS_DIFFER_MS)

    def _produce(self, attempt: _Attempt, *, alone: bool) -> bool:
        outbound = attempt.outbound
        try:
            self._producer.produce(
                outbound.topic,
                key=outbound.key,
                value=outbound.value,
                headers=list(outbound.headers),
                timestamp=outbound.timestamp_ms or 0,  # 0 is the client's word for now
                on_delivery=partial(self._acknowledge, attempt),
            )
        except BufferError:
            return False
        except KafkaException as exception:
            raise ClientFailed(f"producing to {outbound.topic}: {exception}") from exception
        self._unacknowledged += 1
        self._alone = alone
        return True

    def _acknowledge(self, attempt: _Attempt, error: KafkaError | None, _: Message) -> None:
        """Look at a delivery report. Runs inside the producer's poll and flush, where nothing may be raised."""
        self._unacknowledged -= 1
        if error is None:
            return
        at_fault = error.code() in _REFUSALS
        if error.code() == _SAME_BATCH or (at_fault and not self._alone):
            self._again.append(attempt)
        elif at_fault and (next_attempt := self._instead(attempt, error)) is not None:
            self._again.append(next_attempt)
        else:
            self._failure = ClientFailed(f"record for {attempt.outbound.topic} was not written: {error}")

    def _instead(self, refused: _Attempt, error: KafkaError) -> _Attempt | None:
        """Return what is written instead: a dead letter, or the dead letter without its value; else None."""
        outcome, outbound = refused.outcome, refused.outbound
        if isinstance(outcome, Embedded | Deleted):
            size = len(outbound.value or b"")
            detail = f"{outbound.topic} refused {size} bytes stamped {outbound.timestamp_ms} ms: {error.str()}"
            rejected = Rejected(outcome.record, _REFUSALS[error.code()], detail)
            letter = self._outbox.outbound(rejected)
            return None if letter is None else _Attempt(rejected, letter)
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE and outbound.value:
            return _Attempt(outcome, self._outbox.without_value(outbound))
        return None
