"""Where replayed records go, and where is kept how far that is: Kafka, or nowhere for a dry run."""

import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from worker.cli.progress import Progress
from worker.clients import QUIET, Properties, consumer_properties, producer_properties
from worker.errors import KafkaSetupError
from worker.records import Record
from worker.settings import Settings

_FLUSH_S = 0.2
_POLL_S = 0.2
_COMMIT_POLL_S = 0.005
_ANSWER_S = 30.0
_NO_PARTITION = -1  # the client's word for: the partitioner chooses

# Half of what a broker takes by default (offset.metadata.max.bytes): the letters up to the next commit need room too.
_METADATA_BYTES = 2048

# A batch of its own for each, so that a refusal is of this record alone (KIP-467) and none is sent again behind a later
# one. After a refusal the client begins its sequence anew, a pause later: 100 ms by default.
_ONE_BY_ONE: Properties = {"batch.num.messages": 1, "linger.ms": 0, "retry.backoff.ms": 10}

_COORDINATOR_MOVES = frozenset(
    {KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR}
)

Answer = TypeVar("Answer")
Report = Callable[[KafkaError | None], None]
"""Told how a record fared: None where it is acknowledged. Nothing may be raised in it."""


class Outlet(Protocol):
    """Takes records, and the progress once they are acknowledged."""

    def send(self, record: Record, report: Report) -> bool:
        """Take a record; False where it has to wait."""

    def flush(self) -> bool:
        """Wait a moment for the acknowledgements; return whether all are there."""

    def commit(self, progress: Mapping[int, Progress]) -> bool:
        """Keep the progress by partition; return whether there is room for more letters that can't be replayed."""


class DryRun:
    """Takes everything and does nothing."""

    def send(self, record: Record, report: Report) -> bool:  # noqa: ARG002 - the protocol's signature
        """Say that it is acknowledged."""
        report(None)
        return True

    def flush(self) -> bool:
        """Have nothing to wait for."""
        return True

    def commit(self, progress: Mapping[int, Progress]) -> bool:  # noqa: ARG002
        """Keep nothing, for which there is always room."""
        return True


class ReplayGroup:
    """The progress in Kafka: the offsets of a consumer group without members, and their metadata.

    A consumer that reads nothing asks and commits, for the admin client's question for offsets ends the process where
    the group's coordinator is moving (seen with librdkafka 2.16.0: a null pointer in rd_kafka_cgrp_op). It is no member
    that has to leave, and its close would wait for the answer to a commit as long as it takes: it is never closed.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        """Connect."""
        self.name = f"{settings.group_id}-replay"
        self._topic = topic
        self._answers: list[KafkaError | None] = []
        own = {"group.id": self.name, "on_commit": self._note}
        self._consumer = Consumer(consumer_properties(settings) | QUIET | own)

    def read(self, partitions: int) -> Mapping[int, Progress]:
        """Return the progress of the partitions that have one.

        Raises: `KafkaSetupError`.
        """
        places = [TopicPartition(self._topic, partition) for partition in range(partitions)]
        found = self._ask(lambda: self._consumer.committed(places, timeout=_ANSWER_S))
        try:
            return {
                each.partition: Progress.read(each.offset, each.metadata or "") for each in found if each.offset >= 0
            }
        except ValueError as error:
            raise KafkaSetupError(f"group {self.name} is not of replay: {error}") from error

    def commit(self, progress: Mapping[int, Progress]) -> bool:
        """Commit the progress; return whether there is room in the metadata.

        Raises: `KafkaSetupError`.
        """
        places = [
            TopicPartition(self._topic, partition, each.offset, metadata=each.metadata)
            for partition, each in progress.items()
        ]
        self._ask(lambda: self._commit(places))
        return all(len(each.metadata) <= _METADATA_BYTES for each in progress.values())

    def _ask(self, ask: Callable[[], Answer]) -> Answer:
        """Ask until a coordinator answers: it may be on its way from one broker to another."""
        deadline_s = time.monotonic() + _ANSWER_S
        while True:
            try:
                return ask()
            except KafkaException as exception:
                error = exception.args[0]
                if error.code() not in _COORDINATOR_MOVES or time.monotonic() > deadline_s:
                    raise KafkaSetupError(f"group {self.name}: {error.str()}") from exception
            self._consumer.poll(_POLL_S)

    def _commit(self, places: list[TopicPartition]) -> None:
        # Not the synchronous call: that waits for a coordinator as long as it takes, signals unheard.
        self._consumer.commit(offsets=places, asynchronous=True)
        deadline_s = time.monotonic() + _ANSWER_S
        while not self._answers:
            self._consumer.poll(_COMMIT_POLL_S)
            if time.monotonic() > deadline_s:
                raise KafkaSetupError(f"group {self.name}: no answer to a commit within {_ANSWER_S:g} s")
        error = self._answers.pop()
        if error is not None:
            raise KafkaException(error)

    def _note(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        refused = [place.error for place in places if place.error is not None]
        self._answers.append(error or next(iter(refused), None))


class KafkaOutlet:
    """Sends records to the topics and partitions that they came from, and keeps the progress in a group."""

    def __init__(self, settings: Settings, topics: Mapping[str, int], group: ReplayGroup) -> None:
        """Connect; `topics` are the partitions that each topic has."""
        self._producer = Producer(producer_properties(settings) | QUIET | _ONE_BY_ONE)
        self._topics = topics
        self._group = group

    def send(self, record: Record, report: Report) -> bool:
        """Hand a record to the producer's queue.

        It goes to the partition that it came from, whatever its key: that is the one that its producer chose, by a
        partitioner that isn't known here, so the key's later records are there too. Where the topic has no such
        partition any more, the key chooses, as with every Java client.
        """
        is_there = record.partition < self._topics[record.topic]

        def note(error: KafkaError | None, _: Message) -> None:
            report(error)

        try:
            self._producer.produce(
                record.topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                partition=record.partition if is_there else _NO_PARTITION,
                timestamp=record.timestamp_ms or 0,  # 0 is the client's word for now
                on_delivery=note,
            )
        except BufferError:
            self._producer.poll(_FLUSH_S)
            return False
        except KafkaException as exception:
            report(exception.args[0])  # it hasn't left the client
        self._producer.poll(0)
        return True

    def flush(self) -> bool:
        """Wait a moment for the acknowledgements; return whether all are there."""
        return self._producer.flush(_FLUSH_S) == 0

    def commit(self, progress: Mapping[int, Progress]) -> bool:
        """Keep the progress in the group."""
        return self._group.commit(progress)


def is_refusal(error: KafkaError) -> bool:
    """Return whether a broker has refused this record; the client's own codes, below 0, say that it may be written."""
    return error.code() > 0
