"""An outcome -> the Kafka record to write. The only place that tells embeddings from dead letters."""

import hashlib
from dataclasses import dataclass, replace

from schemas.dead_letter import HEADER_PREFIX, DeadLetter, Reason, without_dlq
from schemas.document import Document
from schemas.embedding import Origin, pack_embedding
from worker.records import Deleted, Embedded, Outbound, Outcome, Record, Rejected, Skipped


@dataclass(frozen=True, slots=True)
class Attempt:
    """An outcome with the record that is to say it."""

    outcome: Outcome
    outbound: Outbound


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

    def instead(self, refused: Attempt, reason: Reason, said: str) -> Attempt | None:
        """Return what is written instead of what the broker refused for `reason`, None where nothing is left.

        That is a dead letter, or the dead letter without its value where that is what is too large.
        """
        outcome, outbound = refused.outcome, refused.outbound
        if isinstance(outcome, Embedded | Deleted):
            size = len(outbound.value or b"")
            detail = f"{outbound.topic} refused {size} bytes stamped {outbound.timestamp_ms} ms: {said}"
            rejected = Rejected(outcome.record, reason, detail)
            return Attempt(rejected, self._dead_letter(rejected))
        if reason is Reason.OUTPUT_TOO_LARGE and outbound.value:
            return Attempt(outcome, _without_value(outbound))
        return None

    def _output(self, record: Record, value: bytes | None, key: bytes | None) -> Outbound:
        source = (
            ("source.topic", record.topic.encode()),
            ("source.partition", str(record.partition).encode()),
            ("source.offset", str(record.offset).encode()),
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


def _without_value(dead_letter: Outbound) -> Outbound:
    value = dead_letter.value or b""
    facts = {
        "value-omitted": "true",
        "value-bytes": str(len(value)),
        "value-sha256": hashlib.sha256(value).hexdigest(),
    }
    told = tuple((HEADER_PREFIX + name, text.encode()) for name, text in facts.items())
    return replace(dead_letter, value=None, headers=dead_letter.headers + told)


def _key(record: Record, document: Document) -> bytes | None:
    if record.key is not None or document.id is None:
        return record.key
    return document.id.encode()
