"""`clip-worker replay` on a real broker: what was rejected goes back as it came, each letter once over all calls."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from schemas.dead_letter import DeadLetter, Headers, Reason
from tests.broker.kafka import (
    REQUEST_TIMEOUT_S,
    Kafka,
    Sent,
    Topics,
    committed,
    create_topic,
    end_offsets,
    produce,
    read_all,
    wait_until,
)
from tests.broker.processes import group_of, running_worker
from worker.cli.main import group
from worker.errors import KafkaSetupError

ROOT = Path(__file__).parents[2]
WORK_TIMEOUT_S = 60
STAMP_MS = 1_700_000_000_000
REFUSED = 1
SIGNALLED = 130


# Letters, and the command.


def letter(
    value: bytes | None,
    topics: Topics,
    *,
    reason: str = Reason.BAD_IMAGE,
    key: bytes | None = b"key",
    headers: Headers = (),
    timestamp_ms: int | None = STAMP_MS,
    origin: tuple[int, int] = (0, 0),
    more: Headers = (),
) -> Sent:
    """Return a dead letter of a record that stood at `origin` of the input topic."""
    said = DeadLetter(reason, "what was wrong", topics.input, *origin, timestamp_ms, group_of(topics), "host-1")
    return Sent(key, value, said.headers(headers) + more)


def numbered(topics: Topics, count: int, reasons: Sequence[str] = (Reason.BAD_IMAGE,)) -> Iterator[Sent]:
    """Yield letters whose values are their numbers, the reasons in their turn.

    Their time is now: a broker that has restarted knows a producer again by the time of its records, for a day.
    """
    now_ms = int(time.time() * 1000)
    for number in range(count):
        reason, origin = reasons[number % len(reasons)], (number % 4, number)
        yield letter(b"%d" % number, topics, reason=reason, origin=origin, timestamp_ms=now_ms)


def settings_of(kafka: Kafka, topics: Topics) -> dict[str, str]:
    return {
        "WORKER_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "WORKER_GROUP_ID": group_of(topics),
        "WORKER_DEAD_LETTER_TOPIC": topics.dead_letters,
    }


def replay(kafka: Kafka, topics: Topics, *flags: str) -> Result:
    return CliRunner().invoke(group, ["replay", *flags], env=settings_of(kafka, topics))


def replayed(kafka: Kafka, topics: Topics, *flags: str) -> str:
    """Return what a call says that has nothing to complain of."""
    result = replay(kafka, topics, *flags)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WORKER_")]:
        monkeypatch.delenv(name)


def values(kafka: Kafka, topics: Topics) -> list[bytes | None]:
    """Return the values on the input topic."""
    return [message.value() for message in read_all(kafka.bootstrap_servers, topics.input)]


def numbers(kafka: Kafka, topics: Topics) -> Counter[int]:
    return Counter(int(value or b"") for value in values(kafka, topics))


def content(message: Message) -> tuple[object, ...]:
    """Return all that a record holds, and the partition that it is in."""
    return message.partition(), message.key(), message.value(), message.headers(), message.timestamp()


def counts(said: str) -> dict[str, dict[str, int]]:
    """Return the table that was printed: the numbers by reason and heading."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()]
    [headings] = [line[1:] for line in lines if line[0] == "reason"]
    rows = [line for line in lines if len(line) == len(headings) + 1 and line[1].isdecimal()]
    return {reason: dict(zip(headings, map(int, row), strict=True)) for reason, *row in rows}


def admin_of(kafka: Kafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers})


def set_config(kafka: Kafka, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = admin_of(kafka)
    admin.incremental_alter_configs([resource])[resource].result(REQUEST_TIMEOUT_S)


# What a letter becomes.

HEADERS: Headers = (("note", b"1"), ("empty", b""), ("note", None), ("note", b"\xff"), ("größe", b"2"), ("dlq", b"3"))
CASES = {
    "a key": Sent(b"\x00key", b"\x00\xff value", HEADERS, STAMP_MS, 3),
    "another partition than the key's": Sent(b"\x00key", b"elsewhere", (), STAMP_MS, 0),
    "an empty key": Sent(b"", b"value", (), STAMP_MS, 1),
    "no key": Sent(None, b"value", (), STAMP_MS, 2),
    "an empty value": Sent(b"key", b"", HEADERS, STAMP_MS, 2),
    "a tombstone without a key": Sent(None, None, HEADERS, STAMP_MS, 1),
    "a timestamp of 1970": Sent(b"key", b"old", (), 1, 0),
}


@dataclass(frozen=True, slots=True)
class Replays:
    """The records that replay has written, in their order in each partition, and how many letters there were."""

    written: Sequence[Message]
    said: str


@pytest.fixture(scope="module")
def cases(kafka: Kafka) -> Replays:
    topics = Topics("documents-of-cases", "", "dead-letters-of-cases")
    create_topic(kafka.bootstrap_servers, topics.input, 4)
    create_topic(kafka.bootstrap_servers, topics.dead_letters, 2)
    letters = [
        letter(
            each.value,
            topics,
            key=each.key,
            headers=each.headers,
            timestamp_ms=each.timestamp_ms,
            origin=(each.partition or 0, 7),
        )
        for each in CASES.values()
    ]
    produce(kafka.bootstrap_servers, topics.dead_letters, letters)
    said = replayed(kafka, topics)
    return Replays(read_all(kafka.bootstrap_servers, topics.input), said)


@pytest.mark.parametrize("name", CASES)
def test_a_letter_becomes_the_record_that_it_was(cases: Replays, name: str) -> None:
    sent = CASES[name]
    expected = (sent.partition, sent.key, sent.value, list(sent.headers) or None, sent.timestamp_ms)

    found = [(*content(message)[:4], message.timestamp()[1]) for message in cases.written]

    assert found.count(expected) == 1
    assert len(found) == len(CASES)


def test_a_letter_without_a_timestamp_gets_the_time_now(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.dead_letters, [letter(b"value", topics, timestamp_ms=None)])

    replayed(kafka, topics)

    [message] = read_all(kafka.bootstrap_servers, topics.input)
    assert abs(message.timestamp()[1] - time.time() * 1000) < 60_000


def test_letters_of_a_partition_that_is_no_more_go_where_their_key_does(kafka: Kafka, topics: Topics) -> None:
    keys = [b"%d" % number for number in range(20)]
    produce(kafka.bootstrap_servers, topics.input, [Sent(key, b"new") for key in keys])
    produce(
        kafka.bootstrap_servers,
        topics.dead_letters,
        [letter(b"old", topics, key=key, origin=(4 + number, 0)) for number, key in enumerate(keys)],
    )

    replayed(kafka, topics)

    places = Counter(
        (message.partition(), message.key()) for message in read_all(kafka.bootstrap_servers, topics.input)
    )
    assert len(places) == len(keys)
    assert set(places.values()) == {2}


def test_records_that_are_no_dead_letters_are_counted_and_left_alone(kafka: Kafka, topics: Topics) -> None:
    whole = letter(b"letter", topics).headers
    foreign = [Sent(b"key", b"foreign"), Sent(None, None), *(Sent(b"key", b"cut", whole[:end]) for end in range(1, 6))]
    produce(kafka.bootstrap_servers, topics.dead_letters, [*foreign, letter(b"letter", topics), *foreign])

    said = replayed(kafka, topics)

    assert f"records of {topics.dead_letters} that are no dead letters, and were left alone: 14" in said
    assert values(kafka, topics) == [b"letter"]


# Which letters, and which not again.


def test_only_the_letters_of_the_reasons_that_are_named_go_back(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.dead_letters, numbered(topics, 9, ("bad-image", "too-large", "no-id")))

    said = replayed(kafka, topics, "--reason", "bad-image", "--reason", "no-id")

    assert numbers(kafka, topics) == Counter([0, 2, 3, 5, 6, 8])
    assert counts(said) == {
        "bad-image": {"replayed": 3, "of another reason": 0},
        "no-id": {"replayed": 3, "of another reason": 0},
        "too-large": {"replayed": 0, "of another reason": 3},
        "all": {"replayed": 6, "of another reason": 3},
    }


def test_each_letter_goes_back_once_over_calls_of_every_kind(kafka: Kafka, topics: Topics) -> None:
    reasons = ("bad-image", "too-large", "no-id", "a-reason-of-another-version")
    produce(kafka.bootstrap_servers, topics.dead_letters, numbered(topics, 40, reasons))
    calls = (
        ("--reason", "bad-image"),
        ("--reason", "no-id", "--reason", "bad-image"),
        (),
        ("--reason", "too-large"),
        (),
    )

    found = []
    for flags in calls:
        replayed(kafka, topics, *flags)
        found.append(numbers(kafka, topics).total())

    assert found == [10, 20, 40, 40, 40]
    assert numbers(kafka, topics) == Counter(range(40))


def test_letters_that_came_since_go_back_with_the_next_call(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.dead_letters, numbered(topics, 4, ("bad-image", "no-id")))
    replayed(kafka, topics, "--reason", "no-id")
    produce(kafka.bootstrap_servers, topics.dead_letters, numbered(topics, 8, ("bad-image", "no-id")))

    replayed(kafka, topics, "--reason", "no-id")

    assert numbers(kafka, topics) == Counter([1, 3, 1, 3, 5, 7])


def test_again_begins_at_the_beginning_and_only_for_the_reasons_that_are_named(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.dead_letters, numbered(topics, 4, ("bad-image", "no-id")))
    replayed(kafka, topics)

    replayed(kafka, topics, "--again", "--reason", "no-id")
    assert numbers(kafka, topics) == Counter([0, 1, 1, 2, 3, 3])

    replayed(kafka, topics)
    assert numbers(kafka, topics) == Counter([0, 1, 1, 2, 3, 3])

    replayed(kafka, topics, "--again")
    assert numbers(kafka, topics) == Counter([0, 0, 1, 1, 1, 2, 2, 3, 3, 3])


def test_a_dry_run_counts_and_changes_nothing(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.dead_letters, numbered(topics, 5, ("bad-image", "no-id")))

    said = replayed(kafka, topics, "--dry-run")

    assert counts(said) == {"bad-image": {"to replay": 3}, "no-id": {"to replay": 2}, "all": {"to replay": 5}}
    assert "5 dead letters to replay; nothing was written" in said
    assert values(kafka, topics) == []
    assert committed(kafka.bootstrap_servers, f"{group_of(topics)}-replay", topics.dead_letters) == {}
    assert counts(replayed(kafka, topics))["all"] == {"replayed": 5}


def test_only_what_is_committed_goes_back(kafka: Kafka, topics: Topics) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topics.dead_letters})
    producer.init_transactions(REQUEST_TIMEOUT_S)
    for name, end in (("first", "commit"), ("aborted", "abort"), ("second", "commit"), ("open", "")):
        sent = letter(name.encode(), topics)
        producer.begin_transaction()
        producer.produce(topics.dead_letters, key=sent.key, value=sent.value, headers=list(sent.headers))
        producer.flush(REQUEST_TIMEOUT_S)
        if end:
            getattr(producer, f"{end}_transaction")(REQUEST_TIMEOUT_S)

    replayed(kafka, topics)
    assert values(kafka, topics) == [b"first", b"second"]

    producer.commit_transaction(REQUEST_TIMEOUT_S)
    replayed(kafka, topics)
    assert values(kafka, topics) == [b"first", b"second", b"open"]


def test_a_first_call_says_that_it_begins_at_the_beginning(kafka: Kafka, topics: Topics) -> None:
    first, second = replayed(kafka, topics), replayed(kafka, topics)

    said = f"group {group_of(topics)}-replay knows of no earlier replay: from the beginning of {topics.dead_letters}"
    assert said in first
    assert said not in second


# Letters that can't go back.


def test_a_value_that_was_omitted_is_fetched_from_its_place(kafka: Kafka, topics: Topics) -> None:
    originals = [b"large %d" % number for number in range(6)]
    produce(kafka.bootstrap_servers, topics.input, [Sent(b"key", value, partition=1) for value in originals])
    produce(
        kafka.bootstrap_servers,
        topics.dead_letters,
        [
            letter(None, topics, headers=HEADERS, origin=(1, offset), more=omitted(originals[offset]))
            for offset in (4, 0, 5, 2)
        ],
    )

    replayed(kafka, topics)

    written = read_all(kafka.bootstrap_servers, topics.input)[len(originals) :]
    assert [(message.value(), message.headers()) for message in written] == [
        (originals[offset], list(HEADERS)) for offset in (4, 0, 5, 2)
    ]


def test_letters_whose_value_is_gone_are_named_and_the_others_go_back(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.input, [Sent(b"key", b"value %d" % n, partition=0) for n in range(3)])
    admin = admin_of(kafka)
    deleted = admin.delete_records([TopicPartition(topics.input, 0, 2)])
    for future in deleted.values():
        future.result(REQUEST_TIMEOUT_S)
    gone = {
        "deleted": letter(None, topics, origin=(0, 1), more=omitted(b"value 1")),
        "another one": letter(None, topics, origin=(0, 2), more=omitted(b"value 1")),
        "not there yet": letter(None, topics, origin=(0, 9), more=omitted(b"value 1")),
        "in an empty partition": letter(None, topics, origin=(2, 0), more=omitted(b"value 1")),
        "in no partition": letter(None, topics, origin=(9, 0), more=omitted(b"value 1")),
        "without a digest": letter(None, topics, origin=(0, 2), more=(("dlq.value-omitted", b"true"),)),
    }
    produce(
        kafka.bootstrap_servers,
        topics.dead_letters,
        [letter(b"first", topics), *gone.values(), letter(b"last", topics)],
    )

    result = replay(kafka, topics)

    assert result.exit_code == REFUSED
    said = f"written without the value, which is gone from {topics.input}: {topics.dead_letters}[0]@1-6"
    assert said in result.output
    assert counts(result.output) == {"bad-image": {"replayed": 2, "value gone": 6}}
    assert values(kafka, topics) == [b"value 2", b"first", b"last"]


def omitted(value: bytes) -> Headers:
    return (
        ("dlq.value-omitted", b"true"),
        ("dlq.value-bytes", b"%d" % len(value)),
        ("dlq.value-sha256", hashlib.sha256(value).hexdigest().encode()),
    )


def test_letters_that_the_broker_refuses_are_named_and_stay_and_the_others_go_back(kafka: Kafka) -> None:
    topics = small_topics()
    create_topic(kafka.bootstrap_servers, topics.input, 1, {"max.message.bytes": "2000"})
    create_topic(kafka.bootstrap_servers, topics.dead_letters)
    in_a_year = int(time.time() * 1000) + 365 * 24 * 60 * 60 * 1000
    letters = list(numbered(topics, 300))
    for number in (50, 51, 120, 299):
        letters[number] = letter(b"%d" % number + b" " * 3_000, topics, reason="too-large")
    letters[200] = letter(b"200", topics, reason="bad-timestamp", timestamp_ms=in_a_year)
    refused = {50, 51, 120, 200, 299}
    produce(kafka.bootstrap_servers, topics.dead_letters, letters)

    result = replay(kafka, topics)

    assert result.exit_code == REFUSED
    place = f"{topics.dead_letters}[0]@"
    assert f"size too large: {place}50-51,120,299\n" in result.output
    assert f"timestamp: {place}200\n" in result.output.lower()
    assert [int(value or b"") for value in values(kafka, topics)] == [n for n in range(300) if n not in refused]

    set_config(kafka, topics.input, "max.message.bytes", "1000000")
    wait_until(
        lambda: replay(kafka, topics, "--reason", "too-large").exit_code == 0, WORK_TIMEOUT_S, "a limit is raised"
    )
    assert numbers(kafka, topics) == Counter(set(range(300)) - {200})
    set_config(kafka, topics.input, "message.timestamp.after.max.ms", str(2**62))
    wait_until(lambda: replay(kafka, topics).exit_code == 0, WORK_TIMEOUT_S, "a limit is raised")
    assert numbers(kafka, topics) == Counter(range(300))


def small_topics() -> Topics:
    return Topics.named_anew()


def test_letters_of_a_topic_that_is_missing_are_named_and_stay(kafka: Kafka, topics: Topics) -> None:
    missing = small_topics()
    letters = [*numbered(topics, 3), *numbered(missing, 3), *numbered(topics, 3)]
    produce(kafka.bootstrap_servers, topics.dead_letters, letters)

    result = replay(kafka, topics)

    assert result.exit_code == REFUSED
    said = f"no such topic, or no right to see it: {missing.input}: {topics.dead_letters}[0]@3-5"
    assert said in result.output
    assert numbers(kafka, topics) == Counter([0, 1, 2] * 2)

    create_topic(kafka.bootstrap_servers, missing.input, 4)
    replayed(kafka, topics)
    assert numbers(kafka, missing) == Counter(range(3))
    assert numbers(kafka, topics) == Counter([0, 1, 2] * 2)


def test_where_too_many_are_refused_one_by_one_it_stops_and_each_still_goes_back_once(
    kafka: Kafka, topics: Topics
) -> None:
    missing, count = small_topics(), 2_000
    there, elsewhere = numbered(topics, count), numbered(missing, count)
    letters = [each for pair in zip(there, elsewhere, strict=True) for each in pair]
    produce(kafka.bootstrap_servers, topics.dead_letters, letters)

    result = replay(kafka, topics)

    assert result.exit_code == REFUSED
    assert "too many letters are refused to note each" in result.output
    assert 0 < numbers(kafka, topics).total() < count

    create_topic(kafka.bootstrap_servers, missing.input, 4)
    replayed(kafka, topics)
    assert numbers(kafka, topics) == numbers(kafka, missing) == Counter(range(count))


# What stops it.


def test_a_dead_letter_topic_that_is_missing_is_named(kafka: Kafka) -> None:
    topics = small_topics()

    result = replay(kafka, topics)

    assert isinstance(result.exception, KafkaSetupError)
    assert f"no such topic at {kafka.bootstrap_servers}, or no right to see it: {topics.dead_letters};" in str(
        result.exception
    )


def test_progress_of_somebody_else_is_not_overwritten(kafka: Kafka, topics: Topics) -> None:
    name = f"{group_of(topics)}-replay"
    with Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": name}) as somebody:
        place = TopicPartition(topics.dead_letters, 0, 0, metadata="not ours")
        somebody.commit(offsets=[place], asynchronous=False)
    produce(kafka.bootstrap_servers, topics.dead_letters, numbered(topics, 1))

    result = replay(kafka, topics)

    assert isinstance(result.exception, KafkaSetupError)
    assert f"group {name} is not of replay: 'not ours'" in str(result.exception)
    assert values(kafka, topics) == []


MANY = 6_000
CHECKPOINT = 100


@contextmanager
def process(kafka: Kafka, topics: Topics, **env: str) -> Iterator["subprocess.Popen[str]"]:
    """Start `clip-worker replay` of many letters, and wait until some of them are back."""
    produce(kafka.bootstrap_servers, topics.dead_letters, numbered(topics, MANY))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
    with subprocess.Popen(
        (sys.executable, "-m", "worker", "replay"),
        cwd=ROOT,
        env=environment | settings_of(kafka, topics) | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as started:
        try:
            wait_until(
                lambda: sum(end_offsets(kafka.bootstrap_servers, topics.input).values()) >= 500, 30, "500 are back"
            )
            yield started
        finally:
            started.kill()


def said_at_the_end(started: "subprocess.Popen[str]") -> str:
    output, _ = started.communicate(timeout=WORK_TIMEOUT_S)
    return str(output)


def stated(said: str, topic: str) -> set[int]:
    """Return the offsets of the letters that may be twice."""
    [line] = [line for line in said.splitlines() if line.startswith("may be twice")]
    spans = re.findall(r"[@,](\d+)(?:-(\d+))?", line.partition(f"{topic}[0]")[2])
    return {offset for first, last in spans for offset in range(int(first), int(last or first) + 1)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_after_a_signal_the_next_call_goes_on_and_nothing_is_twice(
    kafka: Kafka, topics: Topics, number: signal.Signals
) -> None:
    with process(kafka, topics) as started:
        started.send_signal(number)
        said = said_at_the_end(started)

    assert started.returncode == SIGNALLED
    assert "stopped by a signal: the next call goes on from here" in said
    written = numbers(kafka, topics)
    assert written == Counter(range(counts(said)["bad-image"]["replayed"]))
    assert written.total() < MANY
    replayed(kafka, topics)
    assert numbers(kafka, topics) == Counter(range(MANY))


def test_after_a_kill_nothing_is_lost_and_a_checkpoint_is_twice_at_most(kafka: Kafka, topics: Topics) -> None:
    with process(kafka, topics) as started:
        started.kill()

    replayed(kafka, topics)

    written = numbers(kafka, topics)
    assert written.keys() == set(range(MANY))
    assert set(written.values()) <= {1, 2}
    assert written.total() - MANY <= CHECKPOINT


def test_a_stop_without_a_broker_says_which_letters_may_be_twice(kafka: Kafka, topics: Topics) -> None:
    with process(kafka, topics, WORKER_DRAIN_TIMEOUT_S="1") as started:
        kafka.stop(hard=True)
        started.send_signal(signal.SIGTERM)
        said = said_at_the_end(started)
        kafka.start()

    assert started.returncode == SIGNALLED
    may_be_twice = stated(said, topics.dead_letters)
    assert 0 < len(may_be_twice) <= CHECKPOINT
    replayed(kafka, topics)
    written = numbers(kafka, topics)
    assert written.keys() == set(range(MANY))
    assert {number for number, times in written.items() if times > 1} <= may_be_twice
    assert set(written.values()) <= {1, 2}


def test_a_broker_that_restarts_costs_nothing(kafka: Kafka, topics: Topics) -> None:
    with process(kafka, topics) as started:
        kafka.stop()
        kafka.start()
        said = said_at_the_end(started)

    assert started.returncode == 0, said
    assert numbers(kafka, topics) == Counter(range(MANY))


# Rejected, replayed, and rejected again.

ROUNDS = 50


@pytest.mark.parametrize("topics", [1], indirect=True)
def test_a_record_that_is_rejected_50_times_does_not_grow(kafka: Kafka, topics: Topics) -> None:
    produce(
        kafka.bootstrap_servers, topics.input, [Sent(b"key", b"\xc1", HEADERS, STAMP_MS), Sent(None, None, HEADERS)]
    )

    with running_worker(kafka, topics) as worker:
        for number in range(1, ROUNDS + 1):
            worker.wait_until(partial(are_rejected, kafka, topics, 2 * number), WORK_TIMEOUT_S, "both are rejected")
            replayed(kafka, topics)

    records = read_all(kafka.bootstrap_servers, topics.input)
    assert len(records) == 2 * (ROUNDS + 1)
    assert len({str(content(record)) for record in records}) == 2
    letters = read_all(kafka.bootstrap_servers, topics.dead_letters)
    said = [[header for header in headers_of(each) if header[0] != "dlq.offset"] for each in letters]
    assert {len(headers) for headers in said} == {len(HEADERS) + 7}
    assert len({str(headers) for headers in said}) == 2


def are_rejected(kafka: Kafka, topics: Topics, count: int) -> bool:
    return end_offsets(kafka.bootstrap_servers, topics.dead_letters)[0] == count


def headers_of(message: Message) -> list[tuple[str, bytes | None]]:
    return list(message.headers() or ())  # type: ignore[arg-type]  # a list of pairs
