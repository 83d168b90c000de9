"""`clip-worker run` from topic to topic, as a process on a real broker.

The worker is the real one; where the model doesn't matter, an instant one takes its place.
"""

import hashlib
import io
import json
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, KafkaException, Message
from PIL import Image
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from schemas.dead_letter import Reason
from schemas.document import pack_document
from schemas.embedding import read_embedding
from tests.broker.instant_worker import DELAY, GEOMETRY, MODEL_INPUT, InstantEncoder
from tests.broker.kafka import (
    Kafka,
    Sent,
    Topics,
    committed,
    create_topic,
    end_offsets,
    produce,
    read_all,
    start_kafka,
    wait_until,
)
from tests.broker.processes import REAL, Worker, group_of, running_worker, started_worker
from worker.errors import DrainTimeout, KafkaSetupError, SettingsError, WeightsError
from worker.images import Fast
from worker.metrics import Metrics

WORK_TIMEOUT_S = 60
PARTITIONS = 4
GOOD = 200
TWO_DAYS_MS = 2 * 24 * 60 * 60 * 1000
FOR_EVER_MS = str(2**62)

Source = tuple[int, int]
"""Partition and offset of an input record."""


# Pictures and documents.


@cache
def jpeg(number: int) -> bytes:
    """Return a photograph of 64×64 pixels; each number has its own."""
    colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((64, 64)).save(file, "JPEG")
    return file.getvalue()


def one_colour(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(file, "PNG")
    return file.getvalue()


def document(number: int, **fields: object) -> bytes:
    return pack({"id": f"document-{number}", "blob": jpeg(number), **fields})


def pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


@cache
def expected_embeddings() -> npt.NDArray[np.float32]:
    """Return float32 [GOOD, 512]: what the instant encoder makes of each photograph."""
    preprocess = Fast(MODEL_INPUT, GEOMETRY, max_pixels=1_000_000)
    pixels = np.stack([preprocess(jpeg(number)) for number in range(GOOD)])
    return InstantEncoder().encode(pixels, np.empty((0, 224, 224, 3), np.float32))


def shown(value: object) -> object:
    """Return an unpacked embedding record with the number of the photograph in place of each embedding."""
    match value:
        case {"dtype": "float32", "shape": [512], "data": bytes(data)}:
            found = np.isclose(expected_embeddings(), np.frombuffer(data, "<f4"), rtol=1e-3, atol=1e-3).all(axis=1)
            [number] = np.flatnonzero(found)
            return int(number)
        case dict():
            return {name: shown(field) for name, field in value.items()}
        case list():
            return [shown(element) for element in value]
    return value


ORIGIN = {"model": InstantEncoder.model_name, "preprocessing": "fast", "normalized": False}

NESTED = pack(
    {
        "id": "nested",
        "blob": jpeg(0),
        "tags": {"of": "root"},
        "chunks": [
            {"id": "first", "blob": jpeg(1), "more": [1]},
            {"id": "second", "tags": {1: b"raw", "of": ["second", None]}},
            {"blob": jpeg(2), "chunks": [{"id": "below", "blob": jpeg(3)}, {"tags": {}}]},
        ],
    }
)
SECOND = {"id": "second", "tags": {1: b"raw", "of": ["second", None]}}
ROOT = {"id": "nested", "tags": {"of": "root"}, **ORIGIN}
NESTED_SHOWN = {
    "r": ROOT | {"embedding": 0},
    "c": ROOT | {"chunks": [{"id": "first", "embedding": 1}, SECOND, {"embedding": 2}]},
    "r,c": ROOT | {"embedding": 0, "chunks": [{"id": "first", "embedding": 1}, SECOND, {"embedding": 2}]},
    "cc": ROOT | {"chunks": [{"id": "first"}, SECOND, {"chunks": [{"id": "below", "embedding": 3}, {"tags": {}}]}]},
}


# Topics and what is on them.


def make_topics(
    kafka: Kafka,
    partitions: int = PARTITIONS,
    *,
    input_config: Mapping[str, str] | None = None,
    output_config: Mapping[str, str] | None = None,
) -> Topics:
    """Make new topics; the dead letters' has Kafka's own limits, the others too where none are given."""
    names = Topics.named_anew()
    create_topic(kafka.bootstrap_servers, names.input, partitions, input_config)
    create_topic(kafka.bootstrap_servers, names.output, 1, output_config)
    create_topic(kafka.bootstrap_servers, names.dead_letters, 1)
    return names


def good_records(count: int, first: int = 0) -> Iterator[Sent]:
    """Yield documents that are spread over the partitions, one after the other."""
    for number in range(first, first + count):
        yield Sent(f"key-{number}".encode(), document(number % GOOD), partition=number % PARTITIONS)


def source_of(message: Message, prefix: str = "source.") -> Source:
    """Return where the record came from that a message is the outcome of."""
    told = dict(headers_of(message))
    return int(told[f"{prefix}partition"] or b""), int(told[f"{prefix}offset"] or b"")


def headers_of(message: Message) -> list[tuple[str, bytes | None]]:
    return list(message.headers() or ())  # type: ignore[arg-type]  # a list of pairs


def sources(kafka: Kafka, topics: Topics) -> list[Source]:
    """Return where the records on the output topic came from, in their order there."""
    return [source_of(message) for message in read_all(kafka.bootstrap_servers, topics.output)]


def by_partition(places: Iterable[Source]) -> dict[int, list[int]]:
    """Return the offsets of each partition, in the order in which they are given."""
    found: dict[int, list[int]] = {}
    for partition, offset in places:
        found.setdefault(partition, []).append(offset)
    return dict(sorted(found.items()))


def every_offset_once(kafka: Kafka, topics: Topics) -> dict[int, list[int]]:
    """Return what `by_partition` is where each input record has had one outcome, in order."""
    ends = end_offsets(kafka.bootstrap_servers, topics.input)
    return {partition: list(range(end)) for partition, end in sorted(ends.items()) if end}


def outcomes(kafka: Kafka, topics: Topics) -> int:
    """Return how many records are on the output topic."""
    return end_offsets(kafka.bootstrap_servers, topics.output)[0]


def commits(kafka: Kafka, topics: Topics) -> dict[int, int]:
    return committed(kafka.bootstrap_servers, group_of(topics), topics.input)


def everything_is_committed(kafka: Kafka, topics: Topics) -> bool:
    ends = {partition: end for partition, end in end_offsets(kafka.bootstrap_servers, topics.input).items() if end}
    try:
        return commits(kafka, topics) == ends
    except KafkaException as exception:
        if not exception.args[0].retriable():  # the group's coordinator is on its way
            raise
        return False


def wait_until_committed(kafka: Kafka, topics: Topics, worker: Worker) -> None:
    worker.wait_until(lambda: everything_is_committed(kafka, topics), WORK_TIMEOUT_S, "everything is committed")


def wait_for_outcomes(kafka: Kafka, topics: Topics, worker: Worker, count: int) -> None:
    worker.wait_until(lambda: outcomes(kafka, topics) >= count, WORK_TIMEOUT_S, f"{count} outcomes")


def wait_until_it_owns(worker: Worker, partitions: int) -> None:
    worker.wait_until(
        lambda: worker.metric("clip_worker_assigned_partitions") == partitions,
        WORK_TIMEOUT_S,
        f"it owns {partitions} partitions",
    )


# By default a member learns of another that joins or leaves after up to 3 s.
QUICK_TO_NOTICE = ("--kafka", "heartbeat.interval.ms=300")


# A worker that waits for a broker, while the other tests run.


@dataclass(frozen=True, slots=True)
class WithoutBroker:
    """A worker, and the address at which it looks for a broker."""

    worker: Worker
    address: str


@pytest.fixture(scope="module")
def without_broker(kafka: Kafka) -> Iterator[WithoutBroker]:
    with socket.socket() as unanswered:
        unanswered.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unanswered.getsockname()[1]}"
        topics = Topics("documents", "embeddings", "dead-letters")
        with started_worker(kafka, topics, "--bootstrap-servers", address) as worker:
            yield WithoutBroker(worker, address)


def test_before_a_broker_answers_it_is_alive_and_not_ready(without_broker: WithoutBroker) -> None:
    assert without_broker.worker.get("/livez") == (200, "ok\n")
    assert without_broker.worker.get("/readyz")[0] == 503


# One run over good records with one of every other kind between them.

LIMITS = ("--max-image-bytes", "700000", "--max-image-pixels", "100000", "--max-images-per-record", "4")
OUTPUT_LIMIT = 20_000  # bytes: seven embeddings, or tags


def rejected(
    value: bytes | None,
    key: bytes | None = b"key",
    headers: tuple[tuple[str, bytes | None], ...] = (("note", b"\xff"),),
    timestamp_ms: int | None = None,
) -> Sent:
    return Sent(key, value, headers, timestamp_ms)


def with_blob(blob: object, name: str = "bad") -> bytes:
    return pack({"id": name, "blob": blob})


def ndarray(array: npt.NDArray[np.generic], **instead: object) -> dict[str, object]:
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": array.tobytes(), **instead}


def traversal(paths: bytes | None) -> tuple[tuple[str, bytes | None], ...]:
    return (("note", b"\xff"), ("traversal", paths))


REJECTED = {
    "garbage": (Reason.NOT_MSGPACK, rejected(b"\xc1 garbage")),
    "an empty value": (Reason.NOT_MSGPACK, rejected(b"")),
    "an image without a document": (Reason.NOT_MSGPACK, rejected(jpeg(0))),
    "a document with more behind it": (Reason.NOT_MSGPACK, rejected(document(0) + b"\x00")),
    "a list": (Reason.NOT_A_MAP, rejected(pack([document(0)]))),
    "no id": (Reason.NO_ID, rejected(pack({"blob": jpeg(0)}))),
    "an id that is a number": (Reason.BAD_ID, rejected(pack({"id": 7, "blob": jpeg(0)}))),
    "an empty id": (Reason.BAD_ID, rejected(pack({"id": "", "blob": jpeg(0)}))),
    "an id of 513 bytes": (Reason.BAD_ID, rejected(pack({"id": "ä" * 256 + "b", "blob": jpeg(0)}))),
    "a blob that is text": (Reason.BAD_BLOB, rejected(with_blob("text"))),
    "an empty blob": (Reason.BAD_BLOB, rejected(with_blob(b""))),
    "float64": (Reason.BAD_BLOB, rejected(with_blob(ndarray(np.zeros((2, 2, 3), np.float64))))),
    "four channels": (Reason.BAD_BLOB, rejected(with_blob(ndarray(np.zeros((4, 4, 4), np.uint8))))),
    "float32 of another size": (Reason.BAD_BLOB, rejected(with_blob(ndarray(np.zeros((8, 8, 3), np.float32))))),
    "a byte too few": (Reason.BAD_BLOB, rejected(with_blob(ndarray(np.zeros((4, 4, 3), np.uint8), data=bytes(47))))),
    "NaN": (Reason.BAD_BLOB, rejected(with_blob(ndarray(np.full((224, 224, 3), np.nan, np.float32))))),
    "chunks that are a map": (
        Reason.BAD_CHUNKS,
        rejected(pack({"id": "bad", "chunks": {}}), headers=traversal(b"c")),
    ),
    "a chunk that is a number": (
        Reason.BAD_CHUNKS,
        rejected(pack({"id": "bad", "chunks": [7]}), headers=traversal(b"c")),
    ),
    "an unknown path": (Reason.BAD_TRAVERSAL, rejected(document(0), headers=traversal(b"r,x"))),
    "a path that is null": (Reason.BAD_TRAVERSAL, rejected(document(0), headers=traversal(None))),
    "an unknown format": (Reason.BAD_IMAGE, rejected(with_blob(b"garbage\n\x00"))),
    "half a JPEG": (Reason.BAD_IMAGE, rejected(with_blob(jpeg(0)[: len(jpeg(0)) // 2]))),
    "one bad image among good ones": (
        Reason.BAD_IMAGE,
        rejected(document(0, chunks=[{"blob": jpeg(1)}, {"blob": jpeg(2)[:300]}]), headers=traversal(b"r,c")),
    ),
    "too large": (Reason.TOO_LARGE, rejected(with_blob(bytes(700_001)))),
    "too many pixels": (Reason.TOO_MANY_PIXELS, rejected(with_blob(one_colour(401, 250)))),
    "too many images": (
        Reason.TOO_MANY_IMAGES,
        rejected(document(0, chunks=[{"blob": jpeg(1)}] * 4), headers=traversal(b"r,c")),
    ),
    "too deep": (Reason.TOO_DEEP, rejected(b"\x82\xa2id\xa3bad\xa1x" + b"\x91" * 2_000 + b"\xc0")),
    "null without a key": (Reason.NO_KEY, rejected(None, key=None)),
    "too large for the model": (
        Reason.NOT_FINITE,
        rejected(with_blob(ndarray(np.full((224, 224, 3), 3e38, np.float32)))),
    ),
    "too large for the output topic": (Reason.OUTPUT_TOO_LARGE, rejected(document(0, tags={"text": "x" * 30_000}))),
    "in two days": (
        Reason.BAD_TIMESTAMP,
        rejected(document(0), timestamp_ms=int(time.time() * 1000) + TWO_DAYS_MS),
    ),
    "null in two days": (Reason.BAD_TIMESTAMP, rejected(None, timestamp_ms=int(time.time() * 1000) + TWO_DAYS_MS)),
    "rejected before": (
        Reason.NOT_MSGPACK,
        rejected(b"\xc1", headers=(("dlq.reason", b"old"), ("note", b"1"), ("dlq.more", None), ("note", b"2"))),
    ),
}
OVERSIZED = rejected(b"\xc1" + bytes(2_000_000), key=b"oversized")
HEADERS = (("note", b"1"), ("empty", b""), ("note", None), ("note", b"\xff"), ("größe", b"2"))
CARRIED = {
    "with headers": Sent(b"\x00key", document(0), HEADERS, timestamp_ms=1_000_000),
    "replayed": Sent(b"key", document(0), (("dlq.reason", b"old"), ("note", b"1"), ("dlq.x", None)), timestamp_ms=1),
    "without a key": Sent(None, document(0, id="größe")),
    "with an empty key": Sent(b"", document(0)),
    "a tombstone": Sent(b"key", None, HEADERS, timestamp_ms=2_000_000),
    "a tombstone with an empty key": Sent(b"", None),
}
SKIPPED = {
    "no image": Sent(b"skipped", pack({"id": "skipped", "tags": {}})),
    "no image on the path": Sent(b"skipped", pack({"id": "skipped", "chunks": [{"blob": jpeg(0)}]})),
}
BY_HEADER = {f"paths {paths}": Sent(b"nested", NESTED, (("traversal", paths.encode()),)) for paths in NESTED_SHOWN}
OTHERS = {
    **{name: record for name, (_, record) in REJECTED.items()},
    "oversized": OVERSIZED,
    **CARRIED,
    **SKIPPED,
    **BY_HEADER,
}


@dataclass(frozen=True, slots=True)
class Mixed:
    """What came of a run: messages by the place of their input record, and in their order on their topic."""

    topics: Topics
    places: Mapping[str, Source]
    originals: Mapping[Source, Message]
    embeddings: Sequence[Message]
    letters: Sequence[Message]
    commits: Mapping[int, int]
    ends: Mapping[int, int]
    scraped: str
    exit_code: int

    def original(self, name: str) -> Message:
        return self.originals[self.places[name]]

    def embedding(self, name: str) -> Message:
        [found] = [each for each in self.embeddings if source_of(each) == self.places[name]]
        return found

    def letter(self, name: str) -> Message:
        [found] = [each for each in self.letters if source_of(each, "dlq.") == self.places[name]]
        return found

    def good_places(self) -> list[Source]:
        return [self.places[f"good {number}"] for number in range(GOOD)]


def mixed_records() -> tuple[list[Sent], dict[str, Source]]:
    """Return good records in their order with the others between them, and the place that each will have."""
    queue = list(OTHERS.items())
    every = GOOD // len(queue)
    records: list[Sent] = []
    places: dict[str, Source] = {}
    ends: Counter[int] = Counter()

    def put(name: str, record: Sent) -> None:
        partition = len(records) % PARTITIONS
        records.append(Sent(record.key, record.value, record.headers, record.timestamp_ms, partition))
        places[name] = (partition, ends[partition])
        ends[partition] += 1

    for number in range(GOOD):
        put(f"good {number}", Sent(f"key-{number}".encode(), document(number)))
        if queue and number % every == 0:
            put(*queue.pop(0))
    assert not queue
    return records, places


@pytest.fixture(scope="module")
def mixed(kafka: Kafka) -> Mixed:
    """Run one worker over everything."""
    topics = make_topics(
        kafka,
        input_config={"max.message.bytes": "10000000", "message.timestamp.after.max.ms": FOR_EVER_MS},
        output_config={"max.message.bytes": str(OUTPUT_LIMIT)},
    )
    records, places = mixed_records()
    produce(kafka.bootstrap_servers, topics.input, records)
    with running_worker(kafka, topics, *LIMITS) as worker:
        wait_until_committed(kafka, topics, worker)
        _, scraped = worker.get("/metrics")
        exit_code = worker.stop()
    originals = read_all(kafka.bootstrap_servers, topics.input)
    return Mixed(
        topics=topics,
        places=places,
        originals={(message.partition() or 0, message.offset() or 0): message for message in originals},
        embeddings=read_all(kafka.bootstrap_servers, topics.output),
        letters=read_all(kafka.bootstrap_servers, topics.dead_letters),
        commits=commits(kafka, topics),
        ends=end_offsets(kafka.bootstrap_servers, topics.input),
        scraped=scraped,
        exit_code=exit_code,
    )


@pytest.mark.parametrize("name", REJECTED)
def test_a_record_at_fault_becomes_one_dead_letter(mixed: Mixed, name: str) -> None:
    reason, sent = REJECTED[name]
    (partition, offset), original = mixed.places[name], mixed.original(name)

    letter = mixed.letter(name)

    assert (letter.key(), letter.value()) == (sent.key, sent.value)
    carried = [header for header in headers_of(letter) if not header[0].startswith("dlq.")]
    assert carried == [header for header in sent.headers if not header[0].startswith("dlq.")]
    told = [(name, (text or b"").decode()) for name, text in headers_of(letter) if name.startswith("dlq.")]
    facts = dict(told)
    assert len(facts) == len(told)
    detail, worker = facts.pop("dlq.detail"), facts.pop("dlq.worker")
    assert facts == {
        "dlq.reason": reason.value,
        "dlq.topic": mixed.topics.input,
        "dlq.partition": str(partition),
        "dlq.offset": str(offset),
        "dlq.timestamp": str(original.timestamp()[1]),
        "dlq.group": group_of(mixed.topics),
    }
    assert re.fullmatch(r"clip-worker-.+-\d+-[0-9a-f]{8}", worker)
    assert 1 <= len(detail.encode()) <= 1024
    assert len(detail.splitlines()) == 1
    kind, timestamp_ms = letter.timestamp()
    assert kind == TIMESTAMP_CREATE_TIME
    assert abs(timestamp_ms - time.time() * 1000) < 10 * 60 * 1000


def test_a_record_at_fault_has_no_other_outcome(mixed: Mixed) -> None:
    at_fault = {mixed.places[name] for name in [*REJECTED, "oversized"]}

    assert at_fault.isdisjoint(source_of(message) for message in mixed.embeddings)
    assert Counter(source_of(letter, "dlq.") for letter in mixed.letters) == Counter(at_fault)


def test_a_dead_letter_that_is_too_large_for_its_topic_is_written_without_its_value(mixed: Mixed) -> None:
    letter = mixed.letter("oversized")

    assert (letter.key(), letter.value()) == (OVERSIZED.key, None)
    told = dict(headers_of(letter))
    assert told["dlq.reason"] == Reason.NOT_MSGPACK.value.encode()
    assert told["dlq.value-omitted"] == b"true"
    assert told["dlq.value-bytes"] == b"2000001"
    assert told["dlq.value-sha256"] == hashlib.sha256(OVERSIZED.value or b"").hexdigest().encode()


def test_good_records_among_others_come_out_once_and_in_order(mixed: Mixed) -> None:
    good = set(mixed.good_places())

    found = [source_of(message) for message in mixed.embeddings]

    assert by_partition(place for place in found if place in good) == by_partition(mixed.good_places())


def test_all_outcomes_of_a_partition_leave_in_its_order(mixed: Mixed) -> None:
    embeddings = by_partition(source_of(message) for message in mixed.embeddings)
    letters = by_partition(source_of(letter, "dlq.") for letter in mixed.letters)

    assert embeddings == {partition: sorted(offsets) for partition, offsets in embeddings.items()}
    assert letters == {partition: sorted(offsets) for partition, offsets in letters.items()}


def test_every_document_gets_the_embedding_of_its_own_image(mixed: Mixed) -> None:
    good = set(mixed.good_places())

    found = {
        source_of(message): shown(msgpack.unpackb(message.value() or b""))
        for message in mixed.embeddings
        if source_of(message) in good
    }

    assert found == {
        mixed.places[f"good {number}"]: {"id": f"document-{number}", "embedding": number, **ORIGIN}
        for number in range(GOOD)
    }


def test_everything_is_committed_when_the_worker_stops(mixed: Mixed) -> None:
    assert mixed.commits == mixed.ends
    assert mixed.exit_code == 0


@pytest.mark.parametrize("name", CARRIED)
def test_key_headers_and_timestamp_are_carried_over(mixed: Mixed, name: str) -> None:
    original = mixed.original(name)
    partition, offset = mixed.places[name]

    message = mixed.embedding(name)

    assert message.key() == {"without a key": "größe".encode()}.get(name, original.key())
    assert message.timestamp() == original.timestamp()
    assert headers_of(message) == [
        *[header for header in headers_of(original) if not header[0].startswith("dlq.")],
        ("source.topic", mixed.topics.input.encode()),
        ("source.partition", str(partition).encode()),
        ("source.offset", str(offset).encode()),
    ]


@pytest.mark.parametrize("name", ["a tombstone", "a tombstone with an empty key"])
def test_a_tombstone_becomes_a_tombstone(mixed: Mixed, name: str) -> None:
    assert mixed.embedding(name).value() is None


def test_a_document_without_an_image_has_no_outcome_but_a_count(mixed: Mixed) -> None:
    places = {mixed.places[name] for name in SKIPPED}

    written = [source_of(message) for message in mixed.embeddings]
    written += [source_of(letter, "dlq.") for letter in mixed.letters]

    assert places.isdisjoint(written)
    assert samples(mixed.scraped)["clip_worker_records_total", "skipped"] == len(SKIPPED)


@pytest.mark.parametrize("paths", NESTED_SHOWN)
def test_a_record_s_header_says_which_of_its_images_are_embedded(mixed: Mixed, paths: str) -> None:
    value = mixed.embedding(f"paths {paths}").value() or b""

    assert shown(msgpack.unpackb(value, strict_map_key=False)) == NESTED_SHOWN[paths]


def samples(scraped: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a scrape by name and values of labels."""
    families = text_string_to_metric_families(scraped)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_every_metric_of_the_worker_is_scraped(mixed: Mixed) -> None:
    scraped = {family.name for family in text_string_to_metric_families(mixed.scraped)}

    declared = {
        family.name + ("_info" if family.type == "info" else "")  # as the text format has it
        for family in Metrics(CollectorRegistry()).registry.collect()
    }
    assert len(declared) > 10
    assert declared <= scraped


def labelled(found: Mapping[tuple[str, ...], float], name: str) -> dict[str, float]:
    """Return the samples of one name by the value of their one label."""
    return {labels[0]: value for (each, *labels), value in found.items() if each == name}


def lags(worker: Worker) -> Mapping[str, float]:
    """Return the lag that a worker tells of each partition."""
    return labelled(samples(worker.get("/metrics")[1]), "clip_worker_lag_records")


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_the_lag_is_what_the_group_has_not_committed(kafka: Kafka, topics: Topics, delivery: str) -> None:
    produce(kafka.bootstrap_servers, topics.input, good_records(400))

    slow = ("--delivery", delivery, "--max-batch", "1")
    with running_worker(kafka, topics, *slow, env={DELAY: "0.01"}) as worker:
        worker.wait_until(lambda: 0 < sum(lags(worker).values()) < 400, WORK_TIMEOUT_S, "some of it is committed")
        wait_until_committed(kafka, topics, worker)
        nothing = {str(partition): 0 for partition in range(PARTITIONS)}
        worker.wait_until(lambda: lags(worker) == nothing, WORK_TIMEOUT_S, "no lag in any partition")


def test_the_lag_of_a_partition_is_told_by_its_owner_alone(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.input, good_records(60))
    everything = sorted(str(partition) for partition in range(PARTITIONS))

    with running_worker(kafka, topics) as first:
        first.wait_until(lambda: sorted(lags(first)) == everything, WORK_TIMEOUT_S, "it tells of all partitions")
        with running_worker(kafka, topics) as second:
            first.wait_until(
                lambda: len(lags(second)) > 0 and sorted([*lags(first), *lags(second)]) == everything,
                WORK_TIMEOUT_S,
                "each partition is told of once",
            )


def test_the_metrics_count_outcomes_reasons_and_images(mixed: Mixed) -> None:
    found = samples(mixed.scraped)

    tombstones = [name for name, record in CARRIED.items() if record.value is None]
    embedded = GOOD + len(CARRIED) - len(tombstones) + len(BY_HEADER)
    images_by_header = 1 + 2 + 3 + 1  # r, c, r,c and cc of the nested document
    reasons = Counter(reason.value for reason, _ in REJECTED.values()) + Counter([Reason.NOT_MSGPACK.value])
    assert labelled(found, "clip_worker_records_total") == {
        "embedded": embedded,
        "deleted": len(tombstones),
        "rejected": reasons.total(),
        "skipped": len(SKIPPED),
    }
    assert Counter(labelled(found, "clip_worker_rejections_total")) == reasons  # the others are 0
    assert found["clip_worker_images_total",] == embedded - len(BY_HEADER) + images_by_header
    assert found["clip_worker_sessions_total",] == 1
    assert found["clip_worker_assigned_partitions",] == PARTITIONS
    assert found["clip_worker_in_flight_records",] == 0
    assert found["clip_worker_in_flight_bytes",] == 0


def test_refused_batches_keep_their_order(kafka: Kafka) -> None:
    # Eight embeddings leave at a time, every few milliseconds: some batches exceed the limit, and others follow them.
    topics = make_topics(kafka, output_config={"max.message.bytes": str(OUTPUT_LIMIT)})
    produce(kafka.bootstrap_servers, topics.input, good_records(1_000))

    with running_worker(kafka, topics, env={DELAY: "0.003"}) as worker:
        wait_until_committed(kafka, topics, worker)

    assert by_partition(sources(kafka, topics)) == every_offset_once(kafka, topics)


# Settings and the model.


@pytest.fixture(scope="module")
def nested_by_setting(kafka: Kafka) -> Mapping[str, Sequence[Message]]:
    """Run one worker for each setting of the paths, side by side, over a document with and one without a header."""
    found = {}
    with ExitStack() as stack:
        runs = {}
        for paths in NESTED_SHOWN:
            topics = make_topics(kafka, 1)
            records = [Sent(b"key", NESTED), Sent(b"key", NESTED, (("traversal", b"r"),))]
            produce(kafka.bootstrap_servers, topics.input, records)
            worker = stack.enter_context(started_worker(kafka, topics, "--traversal-paths", paths))
            runs[paths] = (topics, worker)
        for paths, (topics, worker) in runs.items():
            wait_until_committed(kafka, topics, worker)
            found[paths] = read_all(kafka.bootstrap_servers, topics.output)
    return found


@pytest.mark.parametrize("paths", NESTED_SHOWN)
def test_the_setting_says_which_images_are_embedded(
    nested_by_setting: Mapping[str, Sequence[Message]], paths: str
) -> None:
    without_header, _ = nested_by_setting[paths]

    assert shown(msgpack.unpackb(without_header.value() or b"", strict_map_key=False)) == NESTED_SHOWN[paths]


@pytest.mark.parametrize("paths", NESTED_SHOWN)
def test_a_record_s_header_wins_over_the_setting(
    nested_by_setting: Mapping[str, Sequence[Message]], paths: str
) -> None:
    _, with_header = nested_by_setting[paths]

    assert shown(msgpack.unpackb(with_header.value() or b"", strict_map_key=False)) == NESTED_SHOWN["r"]


def test_the_real_model_embeds(kafka: Kafka, topics: Topics) -> None:
    records = [Sent(b"same", pack_document("same", jpeg(0)), partition=0) for _ in range(2)]
    records += [Sent(b"other", pack_document("other", jpeg(1)), partition=0)]
    produce(kafka.bootstrap_servers, topics.input, records)

    with running_worker(kafka, topics, "--weights", "random", "--device", "cpu", module=REAL) as worker:
        wait_until_committed(kafka, topics, worker)
        assert worker.stop() == 0

    found = [read_embedding(message.value() or b"") for message in read_all(kafka.bootstrap_servers, topics.output)]
    assert [each.id for each in found] == ["same", "same", "other"]
    first, second, other = [each.embedding for each in found if each.embedding is not None]
    assert first.shape == (512,)
    assert np.allclose(first, second, atol=1e-4)
    assert not np.allclose(first, other, atol=1e-2)
    [origin] = {each.origin for each in found}
    assert origin is not None
    assert origin.model.startswith("ViT-B/32:random:")


def test_main_and_the_threads_of_the_clients_are_scheduled_as_batch_work(kafka: Kafka, topics: Topics) -> None:
    with running_worker(kafka, topics) as worker:
        tasks = list(Path(f"/proc/{worker.pid}/task").iterdir())
        clients = [int(task.name) for task in tasks if (task / "comm").read_text().startswith("rdk:")]
        policies = [os.sched_getscheduler(thread) for thread in (worker.pid, *clients)]

    assert len(clients) >= 4
    assert set(policies) == {os.SCHED_BATCH}


def test_a_record_does_not_wait_for_company_where_none_comes(kafka: Kafka, topics: Topics) -> None:
    patient = ("--kafka", "linger.ms=120000", "--checkpoint-interval-s", "120")
    with running_worker(kafka, topics, *patient) as worker:
        for number in range(1, 4):  # the first checkpoint, which sends what is there, comes with the first
            produce(kafka.bootstrap_servers, topics.input, good_records(1))
            wait_for_outcomes(kafka, topics, worker, number)


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_worker_finish_what_it_has_taken_in(
    kafka: Kafka, topics: Topics, number: signal.Signals
) -> None:
    produce(kafka.bootstrap_servers, topics.input, good_records(1_000))

    with running_worker(kafka, topics, env={DELAY: "0.05"}) as worker:
        wait_for_outcomes(kafka, topics, worker, 20)
        in_flight = worker.metric("clip_worker_in_flight_records")
        exit_code = worker.stop(number, timeout_s=15)

    assert in_flight > 0
    assert exit_code == 0
    found = by_partition(sources(kafka, topics))
    assert found == {partition: list(range(end)) for partition, end in commits(kafka, topics).items()}
    assert outcomes(kafka, topics) < 1_000


def test_a_stop_that_runs_out_of_time_commits_what_is_finished_and_a_restart_repeats_none_of_it(
    kafka: Kafka, topics: Topics
) -> None:
    produce(kafka.bootstrap_servers, topics.input, good_records(40))
    slow = ("--max-batch", "1", "--drain-timeout-s", "1")

    with running_worker(kafka, topics, *slow, env={DELAY: "0.4"}) as worker:
        wait_for_outcomes(kafka, topics, worker, 3)
        exit_code = worker.stop()

    assert exit_code == DrainTimeout.exit_code
    finished = by_partition(sources(kafka, topics))
    assert finished == {partition: list(range(end)) for partition, end in commits(kafka, topics).items()}
    assert outcomes(kafka, topics) < 40
    with running_worker(kafka, topics) as worker:
        wait_until_committed(kafka, topics, worker)
    assert by_partition(sources(kafka, topics)) == every_offset_once(kafka, topics)


def test_a_stop_whose_batch_outlasts_the_drain_timeout_exits_as_one_that_ran_out_of_time(
    kafka: Kafka, topics: Topics
) -> None:
    produce(kafka.bootstrap_servers, topics.input, good_records(4))

    with running_worker(kafka, topics, "--drain-timeout-s", "1", env={DELAY: "20"}) as worker:
        worker.wait_until(lambda: worker.metric("clip_worker_in_flight_records") == 4, WORK_TIMEOUT_S, "all taken in")
        exit_code = worker.stop(timeout_s=10)

    assert exit_code == DrainTimeout.exit_code
    assert commits(kafka, topics) == {}


def test_a_second_signal_ends_at_once(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.input, good_records(4))

    with running_worker(kafka, topics, env={DELAY: "60"}) as worker:
        worker.wait_until(lambda: worker.metric("clip_worker_in_flight_records") == 4, WORK_TIMEOUT_S, "all taken in")
        worker.send(signal.SIGTERM)
        worker.wait_until_it_says("a second signal ends at once")
        exit_code = worker.stop(timeout_s=2)

    assert exit_code == 128 + signal.SIGINT
    assert commits(kafka, topics) == {}


# Checkpoints and rebalances.


def test_the_last_record_before_a_silence_is_committed_within_two_checkpoint_intervals(
    kafka: Kafka, topics: Topics
) -> None:
    interval_s = 2
    with running_worker(kafka, topics, "--checkpoint-interval-s", str(interval_s)) as worker:
        # The first outcome ever is committed at once; the one after it has to wait for its time.
        produce(kafka.bootstrap_servers, topics.input, [Sent(b"key", document(0), partition=0)])
        wait_until_committed(kafka, topics, worker)

        produce(kafka.bootstrap_servers, topics.input, [Sent(b"key", document(1), partition=0)])

        worker.wait_until(lambda: commits(kafka, topics) == {0: 2}, 2 * interval_s, "the last record is committed")


def test_of_two_workers_one_stops_in_the_middle_and_no_record_is_missing_or_repeated(
    kafka: Kafka, topics: Topics
) -> None:
    slow = {DELAY: "0.01"}
    with (
        started_worker(kafka, topics, *QUICK_TO_NOTICE, env=slow) as leaving,
        started_worker(kafka, topics, *QUICK_TO_NOTICE, env=slow) as staying,
    ):
        for worker in (leaving, staying):
            wait_until_it_owns(worker, PARTITIONS // 2)
        produce(kafka.bootstrap_servers, topics.input, good_records(2_000))
        wait_for_outcomes(kafka, topics, leaving, 400)

        assert leaving.stop() == 0

        assert outcomes(kafka, topics) < 2_000
        wait_until_committed(kafka, topics, staying)
        assert staying.stop() == 0
    assert by_partition(sources(kafka, topics)) == every_offset_once(kafka, topics)
    assert outcomes(kafka, topics) == 2_000
    assert end_offsets(kafka.bootstrap_servers, topics.dead_letters) == {0: 0}


def test_a_worker_that_joins_and_leaves_again_costs_no_record_and_repeats_none(kafka: Kafka, topics: Topics) -> None:
    sent = 0

    def produce_until(condition: Callable[[], bool], what: str) -> None:
        def more() -> bool:
            nonlocal sent
            produce(kafka.bootstrap_servers, topics.input, good_records(100, first=sent))
            sent += 100
            return condition()

        wait_until(more, WORK_TIMEOUT_S, what)

    slow = {DELAY: "0.01"}
    with running_worker(kafka, topics, *QUICK_TO_NOTICE, env=slow) as staying:
        produce_until(lambda: outcomes(kafka, topics) > 100, "the first worker is at work")
        with started_worker(kafka, topics, *QUICK_TO_NOTICE, env=slow) as guest:
            guest.wait_until_it_says("http on port")
            produce_until(lambda: guest.metric("clip_worker_records_total", outcome="embedded") > 100, "both work")
            assert guest.stop() == 0
        wait_until_it_owns(staying, PARTITIONS)
        produce_until(lambda: True, "there is work for the first one alone")
        wait_until_committed(kafka, topics, staying)
        assert staying.stop() == 0
    assert by_partition(sources(kafka, topics)) == every_offset_once(kafka, topics)
    assert outcomes(kafka, topics) == sent


@pytest.mark.parametrize("topics", [1], indirect=True)
def test_a_worker_that_owns_no_partition_is_ready(kafka: Kafka, topics: Topics) -> None:
    with (
        started_worker(kafka, topics, *QUICK_TO_NOTICE) as first,
        started_worker(kafka, topics, *QUICK_TO_NOTICE) as second,
    ):
        for worker in (first, second):
            worker.wait_until_ready()

        owned = [worker.metric("clip_worker_assigned_partitions") for worker in (first, second)]

        assert sorted(owned) == [0, 1]
        for worker in (first, second):
            assert worker.get("/livez") == (200, "ok\n")
            assert worker.get("/readyz") == (200, "ok\n")
            assert worker.stop() == 0


# Trouble.


def critical_lines(log: str) -> list[str]:
    """Return what a worker says of its end; what isn't a line of the log, such as a traceback, is an error."""
    lines = [json.loads(line) for line in log.splitlines()]
    return [line["message"] for line in lines if line["level"] == "CRITICAL"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a worker ended that couldn't start."""

    exit_code: int
    log: str


@pytest.fixture(scope="module")
def refusals(kafka: Kafka) -> Mapping[str, Refusal]:
    """Start workers with one thing wrong each, side by side."""
    topics = make_topics(kafka)
    with ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        started = {
            "topic": started_worker(kafka, topics, "--dead-letter-topic", "nowhere"),
            "variable": started_worker(kafka, topics, env={"WORKER_MAX_BACH": "8"}),
            "port": started_worker(kafka, topics, "--http-port", str(taken)),
            "weights": started_worker(kafka, topics, "--weights", "heavy", module=REAL),
        }
        workers = {name: stack.enter_context(worker) for name, worker in started.items()}
        return {name: Refusal(worker.wait(WORK_TIMEOUT_S), worker.log) for name, worker in workers.items()}


def test_a_missing_topic_stops_the_start(refusals: Mapping[str, Refusal]) -> None:
    assert refusals["topic"].exit_code == KafkaSetupError.exit_code
    [line] = critical_lines(refusals["topic"].log)
    assert "no such topic" in line
    assert ": nowhere;" in line


def test_an_unknown_variable_stops_the_start(refusals: Mapping[str, Refusal]) -> None:
    assert refusals["variable"].exit_code == SettingsError.exit_code
    [line] = refusals["variable"].log.splitlines()  # nothing says yet how to log
    assert "WORKER_MAX_BACH" in line


def test_a_taken_port_stops_the_start(refusals: Mapping[str, Refusal]) -> None:
    assert refusals["port"].exit_code == SettingsError.exit_code
    [line] = critical_lines(refusals["port"].log)
    assert "WORKER_HTTP_PORT=" in line


def test_unknown_weights_stop_the_start(refusals: Mapping[str, Refusal]) -> None:
    assert refusals["weights"].exit_code == WeightsError.exit_code
    [line] = critical_lines(refusals["weights"].log)
    assert "WEIGHTS=heavy" in line


def test_a_broker_that_never_answers_stops_the_start(without_broker: WithoutBroker) -> None:
    assert without_broker.worker.wait(WORK_TIMEOUT_S) == KafkaSetupError.exit_code

    [line] = critical_lines(without_broker.worker.log)
    assert f"no broker answers at {without_broker.address}" in line


@pytest.fixture(scope="module")
def mortal_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker that no other test needs."""
    broker = start_kafka(tmp_path_factory.mktemp("mortal"))
    yield broker
    broker.close()


def test_a_broker_that_goes_away_for_a_while_costs_nothing(mortal_kafka: Kafka) -> None:
    topics = make_topics(mortal_kafka)
    produce(mortal_kafka.bootstrap_servers, topics.input, good_records(500))
    patience = ("--kafka", "session.timeout.ms=6000", "--kafka", "heartbeat.interval.ms=1000")

    with running_worker(mortal_kafka, topics, *patience, env={DELAY: "0.05"}) as worker:
        wait_for_outcomes(mortal_kafka, topics, worker, 100)
        mortal_kafka.stop()
        worker.wait_until(lambda: worker.get("/readyz")[0] == 503, 15, "not ready")
        stays_alive(worker, 15)
        mortal_kafka.start()
        wait_until_committed(mortal_kafka, topics, worker)
        worker.wait_until_ready()
        exit_code = worker.stop()

    assert exit_code == 0
    first_times = dict.fromkeys(sources(mortal_kafka, topics))  # what wasn't committed may have come twice
    assert by_partition(first_times) == every_offset_once(mortal_kafka, topics)


def test_a_stop_that_can_not_write_everything_does_not_exit_with_0(mortal_kafka: Kafka) -> None:
    topics = make_topics(mortal_kafka)
    produce(mortal_kafka.bootstrap_servers, topics.input, good_records(80))

    with running_worker(mortal_kafka, topics, "--kafka", "delivery.timeout.ms=1000", env={DELAY: "0.3"}) as worker:
        wait_for_outcomes(mortal_kafka, topics, worker, 8)
        mortal_kafka.stop(hard=True)
        exit_code = worker.stop()
        [line] = critical_lines(worker.log)

    assert exit_code == DrainTimeout.exit_code
    assert f"the record for {topics.output} of {topics.input}[" in line
    assert "was not written" in line


def stays_alive(worker: Worker, seconds: float) -> None:
    """See that /livez never fails."""
    end_s = time.monotonic() + seconds

    def over() -> bool:
        assert worker.get("/livez")[0] == 200
        return time.monotonic() > end_s

    worker.wait_until(over, seconds + 1, f"{seconds} s are over")
