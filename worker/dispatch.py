"""The producer: hands records to Kafka, one alone where the broker may refuse it, and looks at every report.

Belongs to the main thread.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.dead_letter import Reason
from worker.clients import Properties, failure, guarded, log_error
from worker.errors import ClientFailed, KafkaSetupError
from worker.outbound import Attempt
from worker.records import Outbound, TopicLimits

log = logging.getLogger(__name__)

_FLUSH_S = 0.02  # the main thread has to take in meanwhile, or the device would wait
_HURRY_S = 0.002  # as long as a flush is on, the client sends what it has in spite of its linger.ms
_CLOSE_S = 10.0
_CLOCKS_DIFFER_MS = 60_000
_BATCH_BYTES = 1_000_000  # librdkafka's own default

# https://kafka.apache.org/documentation/#messageformat: a batch's header, and the most that the fields take which say
# what a record and each of its headers hold.
_BATCH_HEADER_BYTES = 61
_RECORD_FIELDS_BYTES = 36
_HEADER_FIELDS_BYTES = 10

# The broker refuses a record's output: the record's fault, or that of another one in its batch.
_REFUSALS = {
    KafkaError.MSG_SIZE_TOO_LARGE: Reason.OUTPUT_TOO_LARGE,
    KafkaError.INVALID_TIMESTAMP: Reason.BAD_TIMESTAMP,
}

Report = Callable[[Attempt, KafkaError | None, bool], None]
"""Told of every record that is acknowledged, with None, or failed, and whether the error is of this record alone.

Nothing may be raised in it.
"""


def refusal(error: KafkaError) -> Reason | None:
    """Return the reason for which the broker refused a record that travelled alone; None where it is no refusal."""
    return _REFUSALS.get(error.code())


def is_refusal_of_batch(error: KafkaError) -> bool:
    """Return whether the broker refused a whole batch for one record in it (KIP-467): seen to be told of all alike."""
    return error.code() in _REFUSALS or error.code() == KafkaError._INVALID_DIFFERENT_RECORD


def unwritable(attempt: Attempt, error: KafkaError, limit_bytes: int) -> ClientFailed | KafkaSetupError:
    """Return what to raise for a record that can't be written, with nothing left to write instead."""
    topic = attempt.outbound.topic
    if refusal(error) is Reason.OUTPUT_TOO_LARGE:
        return KafkaSetupError(
            f"{topic} takes no record over max.message.bytes={limit_bytes}, not even the dead letter of "
            f"{attempt.outcome.record} without its value: `clip-worker topics` raises the limit"
        )
    return failure(f"the record for {topic} of {attempt.outcome.record} was not written", error)


class Dispatch:
    """A producer that counts what is unacknowledged.

    A record whose size or timestamp the broker may refuse travels alone: the broker refuses the whole batch with it,
    and what is sent again lands behind what came later. No batch of several exceeds what a topic takes.

    What is unacknowledged is bounded by the client's `queue.buffering.max.kbytes`: the input records, which a dead
    letter would need, together with what is to be written. One may exceed it.
    """

    def __init__(self, properties: Properties, limits: Mapping[str, TopicLimits], report: Report) -> None:
        """Connect; `limits` are what each topic admits."""
        own_bytes = int(properties["message.max.bytes"])
        self._limits = {
            topic: replace(limit, max_message_bytes=min(limit.max_message_bytes, own_bytes))
            for topic, limit in limits.items()
        }
        admitted = min(each.max_message_bytes for each in self._limits.values())
        batch_bytes = min(int(properties.get("batch.size", _BATCH_BYTES)), admitted)
        self.producer = Producer(properties | {"batch.size": batch_bytes, "error_cb": log_error}, logger=log)
        self.unacknowledged = 0
        self._bytes = 0
        self._max_bytes = int(properties["queue.buffering.max.kbytes"]) * 1024
        self.alone = False  # what is unacknowledged is one record
        self._report = report

    def send(self, attempt: Attempt, *, alone: bool = False) -> bool:
        """Hand a record to the producer's queue; False where it has to wait.

        Raises: `KafkaException`.
        """
        alone = alone or self._is_risky(attempt)
        if self.unacknowledged and (alone or self.alone or self._bytes + attempt.size_bytes > self._max_bytes):
            return False
        outbound = attempt.outbound
        try:
            self.producer.produce(
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
            if said(exception).code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            self._report(attempt, said(exception), True)  # over message.max.bytes: it hasn't left the client
            return True
        self.unacknowledged += 1
        self._bytes += attempt.size_bytes
        self.alone = alone
        return True

    def poll(self) -> None:
        """Look at the reports that are there. Raises: `ClientFailed`."""
        try:
            self.producer.poll(0)
        except KafkaException as exception:
            raise failure("producer", said(exception)) from exception

    def flush(self) -> None:
        """Wait for reports, for a moment at most. Raises: `ClientFailed`."""
        self._flush(_FLUSH_S)

    def hurry(self) -> None:
        """Let nothing in the queue wait for company. Raises: `ClientFailed`."""
        if self.unacknowledged:
            self._flush(_HURRY_S)

    def _flush(self, timeout_s: float) -> None:
        with guarded("producer"):
            self.producer.flush(timeout_s)

    def purge(self) -> None:
        """Give up what is not acknowledged, and wait until the client says so."""
        deadline_s = time.monotonic() + _CLOSE_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                self.producer.purge()
                self.producer.flush(left_s)
            except KafkaException as exception:  # a fatal error that nobody was told of yet
                log.warning("closing the producer: %s", said(exception))
            else:
                return

    def limit_bytes(self, topic: str) -> int:
        """Return the topic's `max.message.bytes`, or the client's `message.max.bytes` where that is less."""
        return self._limits[topic].max_message_bytes

    def _is_risky(self, attempt: Attempt) -> bool:
        outbound = attempt.outbound
        limits, stamp = self._limits[outbound.topic], outbound.timestamp_ms
        if _batch_bytes(outbound) > limits.max_message_bytes:
            return True
        return stamp is not None and not limits.window.admits(stamp, time.time_ns() // 1_000_000, _CLOCKS_DIFFER_MS)

    def _acknowledge(self, attempt: Attempt, error: KafkaError | None, _: Message) -> None:
        self.unacknowledged -= 1
        self._bytes -= attempt.size_bytes
        self._report(attempt, error, self.alone)


def _batch_bytes(outbound: Outbound) -> int:
    """Return how large a batch of this one record is at most."""
    headers = sum(_HEADER_FIELDS_BYTES + len(name.encode()) + len(value or b"") for name, value in outbound.headers)
    content = len(outbound.key or b"") + len(outbound.value or b"") + headers
    return _BATCH_HEADER_BYTES + _RECORD_FIELDS_BYTES + content


def said(exception: KafkaException) -> KafkaError:
    """Return the error that an exception carries."""
    error: KafkaError = exception.args[0]
    return error
