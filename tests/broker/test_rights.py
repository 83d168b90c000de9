"""A worker that may not do what it has to, and topics that take too little, on a real broker."""

import json
import os
from collections.abc import Iterator
from itertools import product

import pytest
from click.testing import CliRunner
from confluent_kafka import Message
from confluent_kafka.admin import AclOperation, ResourceType

from tests.broker.kafka import Kafka, Sent, Topics, deny, produce, read_all, start_kafka
from tests.broker.members import (
    DELIVERIES,
    WORK_TIMEOUT_S,
    Feed,
    by_partition,
    commits,
    document,
    every_offset_once,
    everything_is_committed,
    make_topics,
    member,
    place_of,
    places,
    side_by_side,
)
from tests.broker.processes import group_of, running_worker, started_worker
from worker.cli.main import group
from worker.errors import KafkaSetupError

BAD = b"\xc1"

# Rights.

AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


@pytest.fixture(scope="module")
def guarded_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker that knows rights."""
    broker = start_kafka(tmp_path_factory.mktemp("guarded"), AUTHORIZER)
    yield broker
    broker.close()


def deny_by_name(kafka: Kafka, topics: Topics, denied: str) -> str:
    """Take a right away; return the name of what it is on."""
    operation, kind, name = {
        "write on the output topic": (AclOperation.WRITE, ResourceType.TOPIC, topics.output),
        "write on the dead-letter topic": (AclOperation.WRITE, ResourceType.TOPIC, topics.dead_letters),
        "read on the input topic": (AclOperation.READ, ResourceType.TOPIC, topics.input),
        "read on the group": (AclOperation.READ, ResourceType.GROUP, group_of(topics)),
        "write on the transactional id": (AclOperation.WRITE, ResourceType.TRANSACTIONAL_ID, f"{topics.output}-alone"),
    }[denied]
    deny(kafka.bootstrap_servers, operation, kind, name)
    return name


OF_TOPICS_AND_GROUP = (
    "write on the output topic",
    "write on the dead-letter topic",
    "read on the input topic",
    "read on the group",
)
OF_TRANSACTIONS = "write on the transactional id"


def test_a_missing_right_ends_the_process_and_is_named_and_no_offset_passes_what_was_not_written(
    guarded_kafka: Kafka,
) -> None:
    def scenario(delivery: str, denied: str) -> None:
        topics = make_topics(guarded_kafka)
        name = deny_by_name(guarded_kafka, topics, denied)
        feed = Feed(guarded_kafka, topics)
        feed.give(40)
        produce(guarded_kafka.bootstrap_servers, topics.input, [Sent(b"bad", BAD, partition=1)])

        with member(guarded_kafka, topics, "alone", delivery=delivery) as alone:
            error = alone.wait_for_end()

        assert isinstance(error, KafkaSetupError), repr(error)
        assert name in str(error)
        assert "no right on" in str(error)
        assert commits(guarded_kafka, topics).get(1, 0) <= 10
        if denied != "write on the dead-letter topic":
            assert commits(guarded_kafka, topics) == {}

    side_by_side(scenario, [*product(DELIVERIES, OF_TOPICS_AND_GROUP), ("exactly-once", OF_TRANSACTIONS)])


def test_check_names_every_right_that_is_missing(guarded_kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WORKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "300")
    topics = make_topics(guarded_kafka)
    denied = [deny_by_name(guarded_kafka, topics, each) for each in OF_TOPICS_AND_GROUP]
    transactional_id = deny_by_name(guarded_kafka, topics, OF_TRANSACTIONS)
    flags = {
        "--bootstrap-servers": guarded_kafka.bootstrap_servers,
        "--group-id": group_of(topics),
        "--input-topic": topics.input,
        "--output-topic": topics.output,
        "--dead-letter-topic": topics.dead_letters,
        "--delivery": "exactly-once",
        "--transactional-id": transactional_id,
        "--weights": "random",
        "--model": "ViT-S-32-alt",
    }

    result = CliRunner().invoke(group, ["check", *(word for flag in flags.items() for word in flag)])

    assert result.exit_code == 1
    [verdict] = [line for line in result.output.splitlines() if "run would not work" in line]
    for name in denied:
        assert name in verdict
    assert f"right on transactional id {transactional_id}" in result.output  # no request asks for that one


# Limits of topics.


def test_a_topic_that_takes_not_even_an_embedding_stops_the_start(kafka: Kafka) -> None:
    def scenario(output_bytes: int, dead_letter_bytes: int) -> None:
        topics = make_topics(kafka, output_bytes, dead_letter_bytes)
        small = topics.output if output_bytes == 2000 else topics.dead_letters

        with started_worker(kafka, topics) as worker:
            exit_code = worker.wait(WORK_TIMEOUT_S)
            [said] = messages(worker.log, "CRITICAL")

        assert exit_code == KafkaSetupError.exit_code
        assert f"{small}: max.message.bytes=2000 is under" in said
        assert "`clip-worker topics` raises it" in said

    side_by_side(scenario, [(2000, 100_000), (100_000, 2000)])


def test_what_a_topic_takes_too_little_for_becomes_a_dead_letter_that_says_so(kafka: Kafka) -> None:
    def scenario(delivery: str) -> None:
        topics = make_topics(kafka, output_bytes=5_000, dead_letter_bytes=20_000)
        feed = Feed(kafka, topics)
        feed.give(40)
        with_tags = Sent(b"tags", document(0, text="x" * 10_000), partition=2)
        large = Sent(b"large", BAD + bytes(100_000), partition=3)
        produce(kafka.bootstrap_servers, topics.input, [with_tags, large])
        feed.give(40)

        with running_worker(kafka, topics, "--delivery", delivery) as worker:
            worker.wait_until(lambda: everything_is_committed(kafka, topics), WORK_TIMEOUT_S, "everything is committed")
            assert worker.stop() == 0
            warnings = messages(worker.log, "WARNING")

        for topic, limit in ((topics.output, 5_000), (topics.dead_letters, 20_000)):
            [warning] = [it for it in warnings if it.startswith(f"{topic}: max.message.bytes={limit}")]
            assert "WORKER_MAX_IMAGE_BYTES=16777216" in warning
        letters = {letter.key(): letter for letter in read_all(kafka.bootstrap_servers, topics.dead_letters)}
        assert letters.keys() == {b"tags", b"large"}
        assert header(letters[b"tags"], "dlq.reason") == "output-too-large"
        assert topics.output in header(letters[b"tags"], "dlq.detail")
        assert "max.message.bytes=5000" in header(letters[b"tags"], "dlq.detail")
        assert (letters[b"tags"].value(), letters[b"large"].value()) == (with_tags.value, None)
        assert header(letters[b"large"], "dlq.reason") == "not-msgpack"
        assert header(letters[b"large"], "dlq.value-bytes") == "100001"
        every = [*places(kafka, topics), *(place_of(letter, "dlq.") for letter in letters.values())]
        assert {partition: sorted(offsets) for partition, offsets in by_partition(every).items()} == every_offset_once(
            kafka, topics
        )
        for offsets in by_partition(places(kafka, topics)).values():
            assert offsets == sorted(offsets)

    side_by_side(scenario, [(delivery,) for delivery in DELIVERIES])


def test_a_dead_letter_that_does_not_even_fit_without_its_value_ends_the_process_and_is_not_passed(
    kafka: Kafka,
) -> None:
    def scenario(delivery: str) -> None:
        topics = make_topics(kafka, dead_letter_bytes=5_000)
        feed = Feed(kafka, topics)
        feed.give(40)
        bad = Sent(b"bad", BAD, headers=(("note", b"x" * 10_000),), partition=1)
        produce(kafka.bootstrap_servers, topics.input, [bad])
        feed.give(40)

        with started_worker(kafka, topics, "--delivery", delivery) as worker:
            exit_code = worker.wait(WORK_TIMEOUT_S)
            [said] = messages(worker.log, "CRITICAL")

        assert exit_code == KafkaSetupError.exit_code
        assert f"{topics.dead_letters} takes no record over max.message.bytes=5000" in said
        assert f"{topics.input}[1]@10" in said
        assert "`clip-worker topics` raises the limit" in said
        assert commits(kafka, topics).get(1, 0) <= 10
        assert read_all(kafka.bootstrap_servers, topics.dead_letters) == []

    side_by_side(scenario, [(delivery,) for delivery in DELIVERIES])


def messages(log: str, level: str) -> list[str]:
    """Return what a worker says at a level."""
    lines = [json.loads(line) for line in log.splitlines()]
    return [line["message"] for line in lines if line["level"] == level]


def header(message: Message, name: str) -> str:
    """Return the one header of a name."""
    value = dict(message.headers() or ())[name]
    assert isinstance(value, bytes)
    return value.decode()
