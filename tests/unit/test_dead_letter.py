import hashlib

import numpy as np
import pytest

from schemas.dead_letter import DeadLetter, Headers, Reason, Rejection
from schemas.document import Document
from schemas.embedding import Origin, pack_embedding
from worker.outbound import Attempt, Outbox
from worker.records import Deleted, Embedded, Outbound, Record, Rejected

ORIGIN = Origin("ViT-B/32:random:000000000000", "fast", normalized=False)
OUTBOX = Outbox("embeddings", "dead-letters", ORIGIN, group="clip-worker", worker="host-1")


def _letter(detail: str = "what was wrong", timestamp_ms: int | None = 1_700_000_000_000) -> DeadLetter:
    return DeadLetter(Reason.BAD_IMAGE, detail, "documents", 3, 42, timestamp_ms, "clip-worker", "host-1")


def _dlq(detail: str = "what was wrong", reason: str = "bad-image", timestamp_ms: str = "1700000000000") -> Headers:
    return (
        ("dlq.reason", reason.encode()),
        ("dlq.detail", detail.encode()),
        ("dlq.topic", b"documents"),
        ("dlq.partition", b"3"),
        ("dlq.offset", b"42"),
        ("dlq.timestamp", timestamp_ms.encode()),
        ("dlq.group", b"clip-worker"),
        ("dlq.worker", b"host-1"),
    )


def _detail(said: str) -> str:
    detail = dict(_letter(said).headers(()))["dlq.detail"]
    assert detail is not None
    return detail.decode()


def _record(key: bytes | None = b"key", value: bytes | None = b"\x00 not msgpack", headers: Headers = ()) -> Record:
    return Record("documents", 3, 42, key, value, 1_700_000_000_000, headers)


# The reasons.


def test_the_reasons_are_those_that_replay_and_alerts_know() -> None:
    assert [reason.value for reason in Reason] == [
        "not-msgpack",
        "not-a-map",
        "no-id",
        "bad-id",
        "bad-blob",
        "bad-chunks",
        "bad-traversal",
        "bad-image",
        "too-large",
        "too-many-pixels",
        "too-many-images",
        "too-deep",
        "no-key",
        "model-error",
        "not-finite",
        "output-too-large",
        "bad-timestamp",
    ]


def test_a_rejection_says_its_reason_and_its_detail() -> None:
    assert str(Rejection(Reason.NO_ID, "the document has no id")) == "no-id: the document has no id"


# The headers.


def test_the_headers_say_why_and_where_from() -> None:
    assert _letter().headers(()) == _dlq()


def test_a_record_without_a_timestamp_has_an_empty_one() -> None:
    assert _letter(timestamp_ms=None).headers(()) == _dlq(timestamp_ms="")


def test_headers_are_kept_in_their_order_with_duplicates_and_nulls() -> None:
    carried = (("b", b"1"), ("a", None), ("b", b"1"), ("", b""), ("a", b"\xff\x00"), ("größe", b"2"))

    assert _letter().headers(carried) == carried + _dlq()


def test_the_headers_of_an_older_dead_letter_are_replaced() -> None:
    older = _letter("the first time", timestamp_ms=1).headers((("a", b"1"),))
    omitted = (("dlq.value-omitted", b"true"), ("dlq.value-bytes", b"1"), ("dlq.unknown", None), ("dlq.", b""))

    assert _letter().headers((*older, *omitted, ("b", b"2"))) == (("a", b"1"), ("b", b"2"), *_dlq())


def test_headers_that_only_look_like_those_of_a_dead_letter_are_kept() -> None:
    carried = (("dlq", b"1"), ("dlqx.reason", b"2"), ("DLQ.reason", b"3"), ("x.dlq.reason", b"4"), (" dlq.", b"5"))

    assert _letter().headers(carried) == carried + _dlq()


@pytest.mark.parametrize(
    ("said", "line"),
    [
        pytest.param("two\nlines\r\nof three", "two lines of three", id="line breaks"),
        pytest.param("  a\t\tb  ", "a b", id="tabs and spaces"),
        pytest.param("a\x00\x1b[31m\x7fb", "a [31m b", id="control characters"),
        pytest.param("a\u2028b\u2029c\x85d\x0be", "a b c d e", id="every line separator"),
        pytest.param("a\u202eb\u200bc", "a b c", id="invisible characters"),
        pytest.param("Größe 3×4 … 😀", "Größe 3×4 … 😀", id="text"),
        pytest.param("a\ud800b", "a b", id="a surrogate"),
        pytest.param("\n\n", "", id="nothing"),
    ],
)
def test_a_detail_is_one_printable_line(said: str, line: str) -> None:
    assert _detail(said) == line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        pytest.param("x" * 1024, "x" * 1024, id="1,024 bytes"),
        pytest.param("x" * 1025, "x" * 1024, id="1,025 bytes"),
        pytest.param("é" * 600, "é" * 512, id="letters of two bytes"),
        pytest.param("x" + "é" * 600, "x" + "é" * 511, id="cut inside of two bytes"),
        pytest.param("xx" + "😀" * 600, "xx" + "😀" * 255, id="cut inside of four bytes"),
        pytest.param("x\n" * 100_000, "x " * 512, id="many lines"),
    ],
)
def test_a_detail_is_at_most_1024_bytes_of_text(said: str, line: str) -> None:
    assert _detail(said) == line


# The record on its topic.


@pytest.mark.parametrize("key", [b"key", b"", None], ids=["key", "empty key", "no key"])
@pytest.mark.parametrize("value", [b"\x00\xff value", b"", None], ids=["value", "empty value", "no value"])
def test_a_dead_letter_is_the_record_as_it_came(key: bytes | None, value: bytes | None) -> None:
    record = _record(key, value)

    outbound = OUTBOX.outbound(Rejected(record, Reason.BAD_IMAGE, "what was wrong"))

    assert outbound == Outbound("dead-letters", key, value, None, _dlq())


def test_a_record_that_was_replayed_has_one_set_of_dead_letter_headers() -> None:
    first = OUTBOX.outbound(Rejected(_record(headers=(("a", b"1"),)), Reason.BAD_IMAGE, "the first time"))
    assert first is not None

    second = OUTBOX.outbound(Rejected(_record(headers=first.headers), Reason.TOO_LARGE, "the second time"))

    assert second == Outbound(
        "dead-letters", b"key", b"\x00 not msgpack", None, (("a", b"1"), *_dlq("the second time", "too-large"))
    )


# What the broker refuses.

TIMESTAMP_REFUSED = (
    "the timestamp 1700000000000 ms: it is further from now than its "
    "message.timestamp.before.max.ms or message.timestamp.after.max.ms allows"
)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (Reason.OUTPUT_TOO_LARGE, "{bytes} bytes: with key and headers that exceeds its max.message.bytes=4096"),
        (Reason.BAD_TIMESTAMP, TIMESTAMP_REFUSED),
    ],
)
def test_an_embedding_that_the_broker_refuses_becomes_a_dead_letter(reason: Reason, said: str) -> None:
    embedded = Embedded(_record(), Document("a", memoryview(b"x")), np.ones((1, 2), np.float32))
    value = pack_embedding(embedded.document, embedded.embeddings, ORIGIN)
    outbound = OUTBOX.outbound(embedded)
    assert outbound is not None

    instead = OUTBOX.instead(Attempt(embedded, outbound), reason, 4_096)

    detail = "embeddings refused " + said.format(bytes=len(value))
    assert instead == Attempt(
        Rejected(embedded.record, reason, detail),
        Outbound("dead-letters", b"key", b"\x00 not msgpack", None, _dlq(detail, reason.value)),
    )


def test_a_deletion_that_the_broker_refuses_becomes_a_dead_letter() -> None:
    deleted = Deleted(_record(value=None))
    outbound = OUTBOX.outbound(deleted)
    assert outbound is not None

    instead = OUTBOX.instead(Attempt(deleted, outbound), Reason.BAD_TIMESTAMP, 4_096)

    detail = f"embeddings refused {TIMESTAMP_REFUSED}"
    assert instead == Attempt(
        Rejected(deleted.record, Reason.BAD_TIMESTAMP, detail),
        Outbound("dead-letters", b"key", None, None, _dlq(detail, "bad-timestamp")),
    )


def test_a_dead_letter_that_is_too_large_is_written_without_its_value() -> None:
    value = bytes(range(256)) * 1_000
    rejected = Rejected(_record(value=value), Reason.BAD_IMAGE, "what was wrong")
    outbound = OUTBOX.outbound(rejected)
    assert outbound is not None

    instead = OUTBOX.instead(Attempt(rejected, outbound), Reason.OUTPUT_TOO_LARGE, 4_096)

    omitted = (
        ("dlq.value-omitted", b"true"),
        ("dlq.value-bytes", b"256000"),
        ("dlq.value-sha256", hashlib.sha256(value).hexdigest().encode()),
    )
    assert instead == Attempt(rejected, Outbound("dead-letters", b"key", None, None, _dlq() + omitted))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(b"value", Reason.BAD_TIMESTAMP, id="for its timestamp"),
        pytest.param(None, Reason.OUTPUT_TOO_LARGE, id="too large without a value"),
        pytest.param(b"", Reason.OUTPUT_TOO_LARGE, id="too large with an empty value"),
    ],
)
def test_nothing_stands_in_for_a_dead_letter_that_is_refused_otherwise(value: bytes | None, reason: Reason) -> None:
    rejected = Rejected(_record(value=value), Reason.BAD_IMAGE, "what was wrong")
    outbound = OUTBOX.outbound(rejected)
    assert outbound is not None

    assert OUTBOX.instead(Attempt(rejected, outbound), reason, 4_096) is None


def test_a_detail_of_any_length_costs_no_more_than_its_beginning() -> None:
    assert _detail("a" * 10_000_000) == "a" * 1024
    assert _detail(" " * 10_000_000 + "a") == ""
