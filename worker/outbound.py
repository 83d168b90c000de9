"""An outcome -> the Kafka record to write. The only place that tells embeddings from dead letters."""

import hashlib
from dataclasses import dataclass, replace

from schemas.dead_letter import HEADER_PREFIX, DeadLetter, Reason, without_dlq
from schemas.document import Document
from schemas.embedding import Origin, pack_embedding
from worker.records import Deleted, Embedded, Outbound, Outcome, Record, Rejected, Skipped, Written


@dataclass(frozen=True, slots=True)
class Attempt:
    """An outcome with the record that is to say it."""

    outcome: Outcome
    outbound: Outbound

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the input record and the one to write hold."""
        return self.outcome.record.size_bytes + len(self.outbound.value or b"")


@dataclass(frozen=True, slots=True)
class Outbox:
    """What turns outcomes into records for the output topic and the dead-letter topic."""

    output_topic: str
    dead_letter_topic: str
    origin: Origin
    group: str
    worker: str

    def outbound(self, outcome: Outcome) -> Outbound | None:
        """Return the record to write, None where there is nothing to write."""
        match outcome:
            case Embedded(record, document, embeddings):
                value = pack_embedding(document, embeddings, self.origin)
                return self._output(record, value, _key(record, document))
            case Deleted(record):
                return self._output(record, None, record.key)
            case Rejected():
                return self._dead_letter(outcome)
            case Skipped():
                return None

    def instead(self, refused: Attempt, reason: Reason, limit_bytes: int) -> Attempt | None:
        """Return what is written instead of what the broker refused for `reason`, None where nothing is left.

        That is a dead letter, or the dead letter without its value where that is what is too large. `limit_bytes` is
        what the topic takes.
        """
        outcome, outbound = refused.outcome, refused.outbound
        if isinstance(outcome, Embedded | Deleted):
            rejected = Rejected(outcome.record, reason, _refusal(outbound, reason, limit_bytes))
            return Attempt(rejected, self._dead_letter(rejected))
        if reason is Reason.OUTPUT_TOO_LARGE and outbound.value:
            return Attempt(outcome, _without_value(outbound))
        return None

    def _output(self, record: Record, value: bytes | None, key: bytes | None) -> Outbound:
        source = (
            ("source.topic", record.topic.encode()),
            ("source.partition", b"%d" % record.partition),
            ("source.offset", b"%d" % record.offset),
        )
        return Outbound(self.output_topic, key, value, record.timestamp_ms, without_dlq(record.headers) + source)

    def _dead_letter(self, rejected: Rejected) -> Outbound:
        record = rejected.record
        letter = DeadLetter(
            reason=rejected.reason,
            detail=rejected.detail,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp_ms,
            group=self.group,
            worker=self.worker,
        )
        return Outbound(self.dead_letter_topic, record.key, record.value, None, letter.headers(record.headers))


def _refusal(outbound: Outbound, reason: Reason, limit_bytes: int) -> str:
    if reason is Reason.BAD_TIMESTAMP:
        return (
            f"{outbound.topic} refused the timestamp {outbound.timestamp_ms} ms: it is further from now than its "
            "message.timestamp.before.max.ms or message.timestamp.after.max.ms allows"
        )
    return (
        f"{outbound.topic} refused {len(outbound.value or b'')} bytes: with key and headers that exceeds its "
        f"max.message.bytes={limit_bytes}"
    )


def _without_value(dead_letter: Outbound) -> Outbound:
    value = dead_letter.value or b""
    facts = {
        "value-omitted": "true",
        "value-bytes": str(len(value)),
        "value-sha256": hashlib.sha256(value).hexdigest(),
    }
    told = tuple((HEADER_PREFIX + name, text.encode()) for name, text in facts.items())
    return replace(dead_letter, value=None, headers=dead_letter.headers + told)


def written(outcome: Outcome) -> Written:
    """Return what is left of an outcome once it is durable."""
    match outcome:
        case Embedded(embeddings=embeddings):
            return Written(Embedded, images=len(embeddings))
        case Rejected(reason=reason):
            return Written(Rejected, reason=reason)
        case Deleted() | Skipped():
            return Written(type(outcome))


def _key(record: Record, document: Document) -> bytes | None:
    if record.key is not None or document.id is None:
        return record.key
    return document.id.encode()
