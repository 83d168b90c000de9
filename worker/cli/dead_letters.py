"""The dead letters as they are on their topic, and the originals of those that were written without their value."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from schemas.dead_letter import read_dead_letter, read_omitted_sha256, without_dlq
from worker.clients import QUIET, Properties, consumer_properties
from worker.errors import KafkaSetupError
from worker.records import Record
from worker.settings import Settings
from worker.source import read_headers

_POLL_S = 0.2
SILENCE_S = 60.0
_ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: its place on the dead-letter topic, its reason, and the record as its worker got it.

    `omitted_sha256` is set where the letter was too large with the value, so `record` has none.
    """

    partition: int
    offset: int
    reason: str
    record: Record
    omitted_sha256: str | None


class DeadLetters:
    """What is on the dead-letter topic from the given offsets to its present end."""

    def __init__(self, settings: Settings, admin: AdminClient, starts: Mapping[int, int]) -> None:
        """Look up the present end of every partition: what is rejected again comes after it."""
        self._topic = settings.dead_letter_topic
        self.ends = _ends(admin, self._topic, starts)
        self._unread = {partition for partition, end in self.ends.items() if starts[partition] < end}
        self.total = sum(self.ends[partition] - starts[partition] for partition in self._unread)
        self._consumer = Consumer(_reading(settings))
        self._consumer.assign([TopicPartition(self._topic, each, starts[each]) for each in sorted(self._unread)])

    def __iter__(self) -> Iterator[Message | None]:
        """Yield each record, and None now and then while none comes.

        Raises: `KafkaSetupError`.
        """
        heard_s = time.monotonic()
        while self._unread:
            message = self._consumer.poll(_POLL_S)
            if message is None:
                if time.monotonic() - heard_s > SILENCE_S:
                    raise KafkaSetupError(f"reading {self._topic}: nothing came for {SILENCE_S:g} s")
                yield None
                continue
            heard_s = time.monotonic()
            partition, error = message.partition() or 0, message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaSetupError(f"reading {self._topic}: {error.str()}")
            if error is None and (message.offset() or 0) < self.ends[partition]:
                yield message
            else:
                self._unread.discard(partition)
                self._consumer.pause([TopicPartition(self._topic, partition)])

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


class Originals:
    """Reads single records of input topics."""

    def __init__(self, settings: Settings) -> None:
        """Prepare to read; nothing is fetched in advance."""
        self._consumer = Consumer(_reading(settings) | {"queued.min.messages": 1})

    def value(self, record: Record, sha256: str) -> bytes | None:
        """Return the value at the record's place, None where it is gone or another one.

        Raises: `KafkaSetupError`.
        """
        self._consumer.assign([TopicPartition(record.topic, record.partition, record.offset)])
        message = self._consumer.poll(_ANSWER_S)
        if message is None:
            raise KafkaSetupError(f"reading {record}: nothing came for {_ANSWER_S:g} s")
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaSetupError(f"reading {record}: {error.str()}")
        value = message.value() or b""
        is_it = error is None and message.offset() == record.offset and hashlib.sha256(value).hexdigest() == sha256
        return value if is_it else None

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def read_letter(message: Message) -> Letter | None:
    """Return the letter, None where the record is somebody else's: its headers are not those of a dead letter."""
    headers = read_headers(message) or ()  # without them no worker has written it
    said = read_dead_letter(headers)
    if said is None:
        return None
    key, value, kept = message.key(), message.value(), without_dlq(headers)
    return Letter(
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        reason=said.reason,
        record=Record(said.topic, said.partition, said.offset, key, value, said.timestamp_ms, kept),
        omitted_sha256=read_omitted_sha256(headers),
    )


def _reading(settings: Settings) -> Properties:
    """Return the properties of a consumer that reads by itself: it joins no group and commits nothing."""
    own = {"group.id": "clip-worker-replay", "enable.partition.eof": True, "auto.offset.reset": "earliest"}
    return consumer_properties(settings) | QUIET | own


def _ends(admin: AdminClient, topic: str, starts: Mapping[int, int]) -> Mapping[int, int]:
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = admin.list_offsets(
        {TopicPartition(topic, partition): latest for partition in starts},
        isolation_level=IsolationLevel.READ_COMMITTED,
        request_timeout=_ANSWER_S,
    )
    try:
        return {each.partition: answer.result().offset for each, answer in asked.items()}
    except KafkaException as exception:
        raise KafkaSetupError(f"where {topic} ends is not told: {exception.args[0].str()}") from exception
