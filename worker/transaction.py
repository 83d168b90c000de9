"""Outcomes and offsets in one Kafka transaction. Belongs to the main thread.

Guarantee of `ExactlyOnce`: a `read_committed` reader sees every outcome once. A transaction begins
with the first outcome after a checkpoint, so an empty one can't exist. What is done about an error
follows from its flags alone: retriable, call again; requires abort, abort and `Rewind`; else the
client has failed. A commit whose end is unknown is called again, never aborted.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import NoReturn, Protocol

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from worker.clients import Properties, failure, is_denied
from worker.dispatch import Dispatch, is_refusal_of_batch, refusal, said, unwritable
from worker.errors import ClientFailed, KafkaSetupError, Rewind
from worker.outbound import Attempt, Outbox, written
from worker.outcall import Outcall
from worker.records import Outcome, TopicLimits, Written

log = logging.getLogger(__name__)

# How long one call may keep the main thread, which has to take in meanwhile: the client goes on with what a call
# began when it is made again. An abort gets the time that it needs.
_OPEN_S = 1.0
_COMMIT_S = 0.02
_ABORT_S = 10.0

# Sending the offsets has a timeout that isn't kept (librdkafka #5456): 20 s were seen with the coordinator away, and no
# end at all where brokers moved. A new session's producer is not held up by that.
_OFFSETS_S = 10.0
_OFFSETS_GIVEN_UP_S = 15.0
_AGAIN_S = 0.1

Place = tuple[int, int]
"""An input record's partition and offset."""


class Offsets(Protocol):
    """Whose offsets a transaction commits; see `worker.source.Source`."""

    def group_metadata(self) -> object:
        """Return the member's identity in its group."""

    def offsets(self, positions: Mapping[int, int]) -> list[TopicPartition]:
        """Return the next offset of each partition as the clients want them."""


class ExactlyOnce:
    """A transactional producer that commits the consumer's offsets with the outcomes."""

    def __init__(
        self,
        properties: Properties,
        limits: Mapping[str, TopicLimits],
        outbox: Outbox,
        source: Offsets,
        on_written: Callable[[Written], None],
    ) -> None:
        """Connect the producer.

        `limits` are what each topic admits, `on_written` is told every outcome of a transaction that is committed.
        """
        self._dispatch = Dispatch(properties, limits, self._note)
        self._producer = self._dispatch.producer
        self._outbox = outbox
        self._name = f"transaction of {properties['transactional.id']} over {', '.join(limits)}"
        self._source = source
        self._on_written = on_written
        self._begun = False
        self._is_closing = False  # nothing more goes into the transaction
        self._offsets: Outcall[object] | None = None
        self._committing = False
        self._sent: list[Written] = []
        # What the broker refused is known in the second try, or it would be refused for ever.
        self._suspects: set[Place] = set()  # refused with their whole batch: they travel alone
        self._instead: dict[Place, Attempt] = {}  # refused alone
        self._broken: str | None = None  # why the transaction must be aborted
        self._failure: ClientFailed | KafkaSetupError | None = None

    def open(self) -> bool:
        """Fence an older producer of the same transactional id; False where that has to be tried again.

        Raises: `ClientFailed`, `KafkaSetupError`.
        """
        return self._call(self._producer.init_transactions, _OPEN_S)

    def poll(self) -> None:
        """Look at the reports that are there.

        Raises: `Rewind` where one of them breaks the transaction, `ClientFailed`, `KafkaSetupError`.
        """
        self._dispatch.poll()
        if self._failure is not None:
            raise self._failure
        if self._broken is not None:
            self._abort(self._broken)

    def send(self, outcome: Outcome) -> bool:
        """Hand an outcome to the transaction; False where it has to wait: then send it again after a poll.

        Raises: `Rewind`, `ClientFailed`, `KafkaSetupError`.
        """
        self.poll()  # what goes into a transaction that is broken already makes its end take longer
        if self._is_closing:
            return False
        attempt = self._attempt(outcome)
        if attempt is None:
            self._sent.append(written(outcome))
            return True
        self._begin()
        try:
            sent = self._dispatch.send(attempt, alone=_place(outcome) in self._suspects)
        except KafkaException as exception:  # the client knows already that the transaction is broken
            self._abort(str(said(exception)))
        if sent:
            self._sent.append(written(attempt.outcome))
        return sent

    def hurry(self) -> None:
        """Do nothing: readers see what was sent once it is committed."""

    def commit(self, positions: Mapping[int, int]) -> float | None:
        """Wait a moment for the acknowledgements, then commit; None once that is done, else when to call again.

        Raises: `Rewind`, `ClientFailed`, `KafkaSetupError`.
        """
        self._is_closing = True
        self._dispatch.flush()
        self.poll()
        if self._dispatch.unacknowledged:
            return 0.0
        if not self._committing:
            again_s = self._send_offsets(positions)
            if again_s is not None:
                return again_s
            self._committing = True
        if not self._call(self._producer.commit_transaction, _COMMIT_S):
            return 0.0
        self._begun = self._is_closing = self._committing = False
        for each in self._sent:
            self._on_written(each)
        self._sent.clear()
        self._suspects = {place for place in self._suspects if not _is_before(place, positions)}
        self._instead = {place: it for place, it in self._instead.items() if not _is_before(place, positions)}
        return None

    def abandon(self) -> None:
        """Abort the transaction: outcomes whose offsets are not to follow may not be seen.

        Raises: `Rewind`; `ClientFailed` where it is being committed already, with an unknown end.
        """
        if self._committing or self._offsets is not None:
            raise ClientFailed("a partition was given up while its transaction was being committed")
        self._is_closing = False
        if self._begun:
            self._abort("a partition was given up before its outcomes were committed")

    def close(self) -> None:
        """Give up the open transaction: the broker aborts it when its time is up, or for a successor at once."""
        self._dispatch.purge()

    def _send_offsets(self, positions: Mapping[int, int]) -> float | None:
        """Add the offsets to the transaction; None once that is done, else when to call again, in seconds.

        Raises: `Rewind`, `ClientFailed`, `KafkaSetupError`.
        """
        if self._offsets is None:
            self._begin()
            offsets, member = self._source.offsets(positions), self._source.group_metadata()
            send = partial(self._producer.send_offsets_to_transaction, offsets, member, _OFFSETS_S)
            self._offsets = Outcall("offsets", send)
        try:
            is_done = self._offsets.is_done(_COMMIT_S)
        except KafkaException as exception:
            self._offsets = None
            self._judge(said(exception))
            return _AGAIN_S
        if is_done:
            self._offsets = None
            return None
        if self._offsets.age_s > _OFFSETS_GIVEN_UP_S:
            raise ClientFailed(f"the offsets of a transaction were not taken within {_OFFSETS_GIVEN_UP_S:g} s")
        return 0.0

    def _begin(self) -> None:
        if not self._begun:
            self._call(self._producer.begin_transaction)
            self._begun = True

    def _attempt(self, outcome: Outcome) -> Attempt | None:
        """Return what is to be written, None where it is nothing."""
        if _place(outcome) in self._instead:
            return self._instead[_place(outcome)]
        outbound = self._outbox.outbound(outcome)
        return None if outbound is None else Attempt(outcome, outbound)

    def _note(self, attempt: Attempt, error: KafkaError | None, alone: bool) -> None:  # noqa: FBT001 - a fact
        """Look at a delivery report."""
        if error is None or error.code() in _CONSEQUENCES:
            return
        place = _place(attempt.outcome)
        reason = refusal(error) if alone else None
        limit_bytes = self._dispatch.limit_bytes(attempt.outbound.topic)
        instead = None if reason is None else self._outbox.instead(attempt, reason, limit_bytes)
        if instead is not None:
            self._instead[place] = instead
        elif is_refusal_of_batch(error) and not alone:
            self._suspects.add(place)
        elif not (error.txn_requires_abort() or error.code() == KafkaError._MSG_TIMED_OUT):
            self._failure = unwritable(attempt, error, limit_bytes)
        self._broken = self._broken or f"output of {attempt.outcome.record}: {error.str()}"

    def _call(self, call: Callable[..., object], *arguments: object) -> bool:
        """Make a transactional call; False where the same call has to be made again.

        Raises: `Rewind` after aborting, `ClientFailed`, `KafkaSetupError`.
        """
        try:
            call(*arguments)
        except KafkaException as exception:
            self._judge(said(exception))
            return False
        return True

    def _judge(self, error: KafkaError) -> None:
        """Return where the call has to be made again.

        Raises: `Rewind` after aborting, `ClientFailed`, `KafkaSetupError`.
        """
        if is_denied(error):  # first, for its abort may fail, and says less
            raise failure(self._name, error)
        if error.txn_requires_abort():
            self._abort(error.str())
        if not error.retriable():
            raise failure(self._name, error)
        if error.code() != KafkaError._TIMED_OUT:
            log.warning("transaction: %s; trying again", error)

    def _abort(self, why: str) -> NoReturn:
        """Abort the transaction, with the reports of all that it held. Raises: `Rewind`, `ClientFailed`."""
        if self._offsets is not None:
            raise ClientFailed(f"a transaction had to be aborted while its offsets were on their way: {why}")
        self._dispatch.purge()
        if self._failure is not None:  # one of the reports says what is behind it
            raise self._failure
        try:
            self._producer.abort_transaction(_ABORT_S)
        except KafkaException as exception:
            raise ClientFailed(f"aborting a transaction: {said(exception)}") from exception
        self._begun = self._is_closing = self._committing = False
        self._sent.clear()
        self._broken = None
        raise Rewind(f"a transaction was aborted: {why}")


def _place(outcome: Outcome) -> Place:
    return outcome.record.partition, outcome.record.offset


def _is_before(place: Place, positions: Mapping[int, int]) -> bool:
    partition, offset = place
    return offset < positions.get(partition, 0)


# What every record of a transaction that is given up reports.
_CONSEQUENCES = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
