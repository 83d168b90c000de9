"""The consumer: subscribe, poll one record at a time, commit. Belongs to the main thread.

Guarantees: the rebalance callbacks run inside `poll` and never raise; what goes wrong in them is
raised by the `poll` that they ran in. A partition is given up only after its listener settled it.
No call waits for a broker without a limit. The client's own synchronous commit has none (seen: over six
minutes at a suspended broker), so a commit is sent, and then the group is asked what it has.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.dead_letter import Headers
from worker.clients import Properties, failure, guarded, log_error
from worker.errors import PartitionsLost
from worker.outcall import Outcall
from worker.records import Record

log = logging.getLogger(__name__)

# A commit that fails so is made again after the next poll, for what is still owned.
_COMMIT_AGAIN = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._WAIT_COORD,
        KafkaError._NO_OFFSET,
    }
)
_COMMIT_AGAIN_S = 0.1
_COMMIT_WAIT_S = 0.005
_COMMITTED_S = 5.0
_COMMITTED_IN_CALLBACK_S = 1.0

# After how long a commit is made again whose end isn't told: longer than the client makes a refused one again by
# itself. In a rebalance callback no end is told, and what the group refused before is of an older generation, so it
# can't land any more.
_ASKED_AGAIN_S = 3.0
_ASKED_AGAIN_IN_CALLBACK_S = 0.2

# The topic is gone, or isn't shown at the moment: a new session looks for it.
_NO_TOPIC = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})
# What the consumer reports and mends by itself, or follows up with the lost callback.
_PASSING = frozenset({KafkaError._MAX_POLL_EXCEEDED, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN})
# What the statistics say of a partition that isn't assigned, or no longer.
_NOT_FETCHED = frozenset({"none", "stopping", "stopped"})

_Question = tuple[Mapping[int, int], Outcall[list[TopicPartition]]]
"""Offsets that were sent, and what the group has."""


class RebalanceListener(Protocol):
    """Who is told of partitions that come and go. Runs inside `Source.poll`."""

    def assigned(self, partitions: Sequence[int]) -> None:
        """Note partitions that records will come from."""

    def revoked(self, partitions: Sequence[int]) -> None:
        """Settle partitions that are about to be given up."""


@dataclass(frozen=True, slots=True)
class GroupState:
    """What the client's statistics say: the consumer is settled in its group, seconds since a broker answered, lag."""

    joined: bool
    silent_s: float
    lag: Mapping[int, int]


class Source:
    """A member of the consumer group on the input topic."""

    def __init__(
        self,
        properties: Properties,
        topic: str,
        on_state: Callable[[GroupState], None],
    ) -> None:
        """Connect the consumer; `on_state` is called inside `poll`."""
        self._topic = topic
        self._on_state = on_state
        self._failure: Exception | None = None
        self._closing = False
        self._asked: Mapping[int, int] | None = None  # what was sent, and is not known to be committed or refused
        self._asked_s = 0.0
        self._question: _Question | None = None
        self._is_in_callback = False
        self._name = f"consumer of {topic} in group {properties['group.id']}"
        callbacks = {
            "stats_cb": self._read_statistics,
            "on_commit": self._note_commit,
            "error_cb": self._note_error,
        }
        self._consumer = Consumer({**properties, **callbacks}, logger=log)

    def subscribe(self, listener: RebalanceListener) -> None:
        """Join the group, and tell the listener of partitions that come and go."""
        self._consumer.subscribe(
            [self._topic],
            on_assign=lambda _, partitions: self._tell(listener.assigned, partitions),
            on_revoke=lambda _, partitions: self._tell(listener.revoked, partitions),
            on_lost=lambda _, partitions: self._tell(self._lose, partitions),
        )

    def poll(self, timeout_s: float) -> Record | None:
        """Return the next record, or None if none came in time.

        Raises: `PartitionsLost`, `ClientFailed`, and what a rebalance listener raised.
        """
        try:
            message = self._consumer.poll(timeout_s)
        except KafkaException as exception:
            raise failure(self._name, exception.args[0]) from exception
        if self._failure is not None and message is not None and message.error() is None:
            self._let_come_again(message)
        self._raise_failure()
        if message is None:
            return None
        error = message.error()
        if error is None:
            return self._record(message)
        if error.fatal() or error.code() not in _PASSING:
            raise failure(self._name, error)
        log.warning("consumer: %s", error)
        return None

    def commit(self, positions: Mapping[int, int]) -> float | None:
        """Commit the next offset of each partition; None once the group has them, else when to call again, in seconds.

        A refusal for good is raised by the next `poll`. No second commit is sent while the first has no end: the client
        makes a refused one again by itself, and it would land behind the second and take the group back.
        """
        try:
            if self._is_in_callback:
                # Here a call in another thread waits for the end of this one; and the group isn't waiting for anybody.
                asked = self._send_commit(positions, _ASKED_AGAIN_IN_CALLBACK_S)
                known = self._consumer.committed(self.offsets(asked), timeout=_COMMITTED_IN_CALLBACK_S)
            else:
                if self._question is None:
                    self._question = self._ask(positions)
                asked, answer = self._question
                if not answer.is_done(_COMMIT_WAIT_S):
                    return 0.0
                self._question = None
                known = answer.result
        except KafkaException as exception:
            log.warning("commit: %s", exception.args[0])
            self._question = None
            return _COMMIT_AGAIN_S
        if any(it.offset != asked[it.partition] for it in known):
            return _COMMIT_AGAIN_S
        self._asked = None
        return None if positions.items() <= asked.items() else 0.0

    def _ask(self, positions: Mapping[int, int]) -> _Question:
        """Commit, and ask the group what it has, in a thread of its own.

        The answer may be a while in coming: the broker answers nothing else while it waits for the others to join.
        """
        asked = self._send_commit(positions, _ASKED_AGAIN_S)
        ask = partial(self._consumer.committed, self.offsets(asked), timeout=_COMMITTED_S)
        return asked, Outcall("committed", ask)

    def _send_commit(self, positions: Mapping[int, int], patience_s: float) -> Mapping[int, int]:
        """Commit, unless that is under way already; return what is."""
        if self._asked is None or time.monotonic() - self._asked_s > patience_s:
            self._consumer.commit(offsets=self.offsets(positions), asynchronous=True)
            self._asked, self._asked_s = dict(positions), time.monotonic()
        return self._asked

    def _note_commit(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        for refusal in (error, *(it.error for it in partitions)):
            if refusal is None:
                continue
            self._asked = None
            log.warning("commit refused: %s", refusal)
            if not (refusal.code() in _COMMIT_AGAIN or refusal.retriable()):
                self._failure = self._failure or failure(f"commit of the {self._name}", refusal)

    def note_committed(self, positions: Mapping[int, int]) -> None:
        """Note what the group has, for the lag: a transaction commits offsets of which the consumer isn't told."""
        with suppress(KafkaException):  # of what isn't assigned any more there is no lag
            self._consumer.store_offsets(offsets=self.offsets(positions))

    def rewind(self, positions: Mapping[int, int]) -> None:
        """Let the next records of these partitions be those at these offsets.

        Raises: `ClientFailed`.
        """
        with guarded(f"going back on {self._topic}"):
            for partition, offset in positions.items():
                self._consumer.seek(TopicPartition(self._topic, partition, offset))

    def group_metadata(self) -> object:
        """Return what a transaction needs to commit this member's offsets."""
        with guarded(self._name):
            return self._consumer.consumer_group_metadata()

    def offsets(self, positions: Mapping[int, int]) -> list[TopicPartition]:
        """Return the next offset of each partition as the clients want them."""
        return [TopicPartition(self._topic, partition, offset) for partition, offset in positions.items()]

    def pause(self) -> None:
        """Stop fetching from what is assigned now, so that polling returns no records."""
        with guarded(f"pausing {self._topic}"):
            self._consumer.pause(self._consumer.assignment())

    def resume(self) -> None:
        """Fetch again."""
        with guarded(f"resuming {self._topic}"):
            self._consumer.resume(self._consumer.assignment())

    def close(self) -> None:
        """Leave the group. Nothing is settled any more."""
        self._closing = True
        if self._question is not None:  # the client may not go away under a call
            with suppress(KafkaException):
                self._question[1].is_done(2 * _COMMITTED_S)
        try:
            self._consumer.close()
        except KafkaException as exception:  # a fatal error that nobody was told of yet
            log.warning("closing the consumer: %s", exception.args[0])

    def _note_error(self, error: KafkaError) -> None:
        """Note what the client says of its connections, which it mends by itself, and of its topic, which it can't."""
        log_error(error)
        if error.code() in _NO_TOPIC:
            self._failure = self._failure or failure(self._name, error)

    def _let_come_again(self, message: Message) -> None:
        """Go back to a record that came with a callback that failed: nobody takes it."""
        record = self._record(message)
        if record.partition in {owned.partition for owned in self._consumer.assignment()}:
            self.rewind({record.partition: record.offset})

    def _lose(self, partitions: Sequence[int]) -> None:
        raise PartitionsLost(f"lost partitions {sorted(partitions)} of {self._topic}")

    def _tell(self, listen: Callable[[Sequence[int]], None], partitions: Sequence[TopicPartition]) -> None:
        """Tell the listener; what it raises would lose records if it went through librdkafka (#1013)."""
        if self._closing:
            return
        self._is_in_callback = True
        try:
            listen([partition.partition for partition in partitions])
        except Exception as error:  # noqa: BLE001 - the rebalance callback: raised by the poll that it runs in
            self._failure = self._failure or error
        finally:
            self._is_in_callback = False

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _read_statistics(self, text: str) -> None:
        """Read https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md."""
        statistics = json.loads(text)
        group = statistics.get("cgrp", {})
        silent_us = [broker["rxidle"] for broker in statistics["brokers"].values() if broker["state"] == "UP"]
        partitions = statistics["topics"].get(self._topic, {}).get("partitions", {}).values()
        self._on_state(
            GroupState(
                joined=group.get("state") == "up" and group.get("join_state") == "steady",
                silent_s=min(silent_us, default=float("inf")) / 1e6,
                lag={it["partition"]: lag for it in partitions if (lag := _lag(it)) is not None},
            )
        )

    def _record(self, message: Message) -> Record:
        kind, timestamp_ms = message.timestamp()
        headers = read_headers(message)
        return Record(
            topic=self._topic,
            partition=message.partition(),  # type: ignore[arg-type]  # None only where there is an error
            offset=message.offset(),  # type: ignore[arg-type]
            key=message.key(),
            value=message.value(),
            timestamp_ms=None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms,
            headers=headers or (),
            headers_readable=headers is not None,
        )


def _lag(partition: Mapping[str, Any]) -> int | None:
    """Return how many records the group hasn't committed, by what was noted of this session, else by what it had.

    None where that isn't known, and of a partition that is gone: its last figures stay in the statistics.
    """
    if partition["fetch_state"] in _NOT_FETCHED:
        return None
    lags = [lag for lag in (partition["consumer_lag"], partition["consumer_lag_stored"]) if lag >= 0]
    return min(lags, default=None)


def read_headers(message: Message) -> Headers | None:
    """Return the headers in their order, None where the client can't give them: a name isn't UTF-8."""
    try:
        return tuple(message.headers() or ())  # type: ignore[arg-type]  # a list of pairs
    except (SystemError, UnicodeDecodeError):  # a SystemError is how the client's C code tells of the other
        return None
