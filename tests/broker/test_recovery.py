"""What a worker goes on from and what it ends at: a suspended process, records and topics that are gone, rejections."""

import signal
from collections.abc import Callable
from contextlib import closing
from itertools import product
from operator import attrgetter
from threading import Event

from confluent_kafka import Consumer, Producer
from PIL import Image

from tests.broker.instant_worker import DELAY, InstantEncoder
from tests.broker.kafka import (
    Kafka,
    Sent,
    Topics,
    commit_instead,
    delete_records,
    delete_topic,
    end_offsets,
    produce,
    read_all,
    wait_until,
)
from tests.broker.members import (
    COOPERATIVE,
    DELIVERIES,
    PARTITIONS,
    WORK_TIMEOUT_S,
    Feed,
    HeldEncoder,
    by_partition,
    commits,
    every_offset_once,
    everything_is_committed,
    make_topics,
    member,
    place_of,
    places,
    side_by_side,
)
from tests.broker.processes import group_of, running_worker, started_worker
from worker.errors import KafkaSetupError, TooManyRejections

# A batch at a time, so that most of the records are still on the broker.
FETCHES_LITTLE = COOPERATIVE | {"queued.min.messages": "1", "fetch.message.max.bytes": "1000"}
SESSION_TIMEOUT_MS = 6_000
PROCESS = ("--kafka", f"session.timeout.ms={SESSION_TIMEOUT_MS}", "--kafka", "heartbeat.interval.ms=500")


# By default a client asks for its topics every five minutes, and believes for 30 s that one that is missing will come.
QUICK_TO_NOTICE = (
    *("--kafka", "topic.metadata.refresh.interval.ms=1000"),
    *("--kafka", "topic.metadata.propagation.max.ms=1000"),
)


# A process that is suspended for longer than its session.


def test_a_zombie_that_wakes_up_writes_and_commits_nothing_over_the_new_owner_and_goes_on(kafka: Kafka) -> None:
    def scenario(delivery: str) -> None:
        topics = make_topics(kafka)
        feed = Feed(kafka, topics)
        # Its outcomes are written at once and stay without a commit.
        flags = (*PROCESS, "--delivery", delivery, "--checkpoint-interval-s", "4", "--max-batch", "4")

        with running_worker(kafka, topics, *flags, env={DELAY: "0.3"}) as zombie:
            feed.give(4)
            zombie.wait_until(lambda: commits(kafka, topics) != {}, WORK_TIMEOUT_S, "its first checkpoint")
            feed.give(196)
            zombie.wait_until(lambda: zombie.metric("clip_worker_in_flight_records") > 0, WORK_TIMEOUT_S, "it works")
            written = end_offsets(kafka.bootstrap_servers, topics.output)[0]
            wait_until(
                lambda: end_offsets(kafka.bootstrap_servers, topics.output)[0] > written + 8,
                WORK_TIMEOUT_S,
                "it writes",
            )
            zombie.send(signal.SIGSTOP)
            with member(kafka, topics, "heir", delivery=delivery) as heir:
                heir.wait_until_it_owns(PARTITIONS)
                heir.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
                zombie.send(signal.SIGCONT)
                zombie.wait_until(
                    lambda: zombie.metric("clip_worker_sessions_total") > 1, WORK_TIMEOUT_S, "a second session"
                )
                assert everything_is_committed(kafka, topics)
                feed.give_until(lambda: heir.owned == 2, "the partitions are shared")
                zombie.wait_until(lambda: everything_is_committed(kafka, topics), WORK_TIMEOUT_S, "all is committed")
                heir.stop()
            loaded = zombie.log.count("model ViT-B/32:instant")
            exit_code = zombie.stop()

        assert (exit_code, loaded) == (0, 1)
        found = places(kafka, topics)
        if delivery == "at-least-once":
            found = list(dict.fromkeys(found))  # what was written and not committed has come twice
        assert by_partition(found) == every_offset_once(kafka, topics)

    side_by_side(scenario, [(delivery,) for delivery in DELIVERIES])


def test_partitions_that_were_lost_come_back_at_an_earlier_offset_and_are_done_again_from_there(kafka: Kafka) -> None:
    topics = make_topics(kafka)
    feed = Feed(kafka, topics)

    with running_worker(kafka, topics, *PROCESS) as worker:
        feed.give(40)
        worker.wait_until(lambda: everything_is_committed(kafka, topics), WORK_TIMEOUT_S, "everything is committed")
        worker.send(signal.SIGSTOP)
        again = dict.fromkeys(range(PARTITIONS), 5)
        wait_until(
            lambda: commit_instead(kafka.bootstrap_servers, group_of(topics), topics.input, again),
            WORK_TIMEOUT_S,
            "the group is empty",
        )
        worker.send(signal.SIGCONT)
        worker.wait_until(lambda: everything_is_committed(kafka, topics), WORK_TIMEOUT_S, "everything is committed")
        sessions = worker.metric("clip_worker_sessions_total")
        exit_code = worker.stop()

    assert (exit_code, sessions) == (0, 2)
    offsets = [*range(10), *range(5, 10)]
    assert by_partition(places(kafka, topics)) == dict.fromkeys(range(PARTITIONS), offsets)


# Records that are gone before they were read.


def test_records_deleted_past_the_committed_offset_are_passed_over(kafka: Kafka) -> None:
    def scenario(delivery: str) -> None:
        topics = make_topics(kafka)
        feed, held = Feed(kafka, topics), HeldEncoder()

        with member(kafka, topics, "before", delivery=delivery) as before:
            feed.give(40)
            before.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
            before.stop()
        feed.give(40)
        delete_records(kafka.bootstrap_servers, topics.input, dict.fromkeys(range(PARTITIONS), 15))  # while it is down
        with member(kafka, topics, "after", encoder=held, properties=FETCHES_LITTLE, delivery=delivery) as after:
            after.wait_until(lambda: everything_is_committed(kafka, topics), "it goes on from the earliest record")
            held.gate.clear()
            for _ in range(20):
                feed.give(20)
            after.wait_until(lambda: after.in_flight == 64, "it is full")
            delete_records(kafka.bootstrap_servers, topics.input, dict.fromkeys(range(PARTITIONS), 100))
            held.gate.set()
            after.wait_until(lambda: everything_is_committed(kafka, topics), "it goes on from the earliest record")
            after.stop()

        assert after.count("clip_worker_sessions_total") == 1
        found = by_partition(places(kafka, topics))
        for offsets in found.values():
            assert offsets == sorted(set(offsets))
            assert set(range(100, 120)) < set(offsets)
            assert not set(range(10, 15)) & set(offsets)
            assert len(offsets) < 120 - 5

    side_by_side(scenario, [(delivery,) for delivery in DELIVERIES])


# Clients that fail for good.


def test_a_producer_that_is_fenced_is_followed_by_a_new_session(kafka: Kafka) -> None:
    topics = make_topics(kafka)
    feed = Feed(kafka, topics)

    with member(kafka, topics, "fenced", delivery="exactly-once", checkpoint_interval_s=0.2) as fenced:
        feed.give(40)
        fenced.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
        successor = Producer(
            {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": f"{topics.output}-fenced"}
        )
        successor.init_transactions(WORK_TIMEOUT_S)
        feed.give(40)
        fenced.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
        sessions = fenced.count("clip_worker_sessions_total")
        fenced.stop()

    assert sessions == 2
    assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)


def test_a_static_member_whose_name_another_takes_ends_its_session_and_not_its_process(kafka: Kafka) -> None:
    topics = make_topics(kafka)
    feed = Feed(kafka, topics)
    properties = COOPERATIVE | {"group.instance.id": "same"}

    with member(kafka, topics, "replaced", properties=properties) as replaced:
        feed.give(40)
        replaced.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
        other = Consumer(
            {**properties, "bootstrap.servers": kafka.bootstrap_servers, "group.id": group_of(topics)}
            | {"partition.assignment.strategy": "cooperative-sticky", "enable.auto.commit": False}
        )
        with closing(other):
            other.subscribe([topics.input])
            wait_until(lambda: bool(other.poll(0.05)) or bool(other.assignment()), WORK_TIMEOUT_S, "it has taken over")
        replaced.wait_until(lambda: replaced.count("clip_worker_sessions_total") > 1, "a second session")
        feed.give(40)
        replaced.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
        replaced.stop()

    assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)


# Topics that are deleted while the worker runs.


def test_a_topic_that_is_deleted_ends_the_process_and_nothing_is_committed_that_was_not_written(kafka: Kafka) -> None:
    def scenario(delivery: str, deleted: Callable[[Topics], str]) -> None:
        topics = make_topics(kafka)
        feed = Feed(kafka, topics)

        with running_worker(kafka, topics, "--delivery", delivery, *QUICK_TO_NOTICE) as worker:
            feed.give(40)
            worker.wait_until(lambda: everything_is_committed(kafka, topics), WORK_TIMEOUT_S, "everything is committed")
            before = commits(kafka, topics)
            delete_topic(kafka.bootstrap_servers, deleted(topics))
            if deleted(topics) != topics.input:
                feed.give(40)
                produce(kafka.bootstrap_servers, topics.input, [Sent(b"bad", b"\xc1", partition=0)])
            exit_code = worker.wait(WORK_TIMEOUT_S)
            [said] = [line for line in worker.log.splitlines() if "CRITICAL" in line]

        assert exit_code == KafkaSetupError.exit_code
        assert deleted(topics) in said
        if deleted(topics) == topics.output:
            assert commits(kafka, topics) == before
        if deleted(topics) == topics.dead_letters:
            assert commits(kafka, topics).get(0, 0) <= 20

    side_by_side(scenario, product(DELIVERIES, [attrgetter(name) for name in ("output", "dead_letters", "input")]))


# A producer without room, and code that times out.


def test_a_producer_with_a_queue_of_ten_records_loses_none_and_keeps_their_order(kafka: Kafka) -> None:
    def scenario(delivery: str) -> None:
        topics = make_topics(kafka)
        feed = Feed(kafka, topics)
        feed.give(400)
        properties = COOPERATIVE | {"queue.buffering.max.messages": "10"}

        with member(kafka, topics, "narrow", properties=properties, delivery=delivery) as narrow:
            narrow.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
            narrow.stop()

        assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)

    side_by_side(scenario, [(delivery,) for delivery in DELIVERIES])


class LateDecoder(InstantEncoder):
    """A model whose own transform, which `reference` takes, times out when it is let to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = Event()
        self.gate = Event()
        self.geometry = self._time_out

    def _time_out(self, _: Image.Image) -> Image.Image:
        self.begun.set()
        assert self.gate.wait(WORK_TIMEOUT_S), "the gate stayed shut"
        raise TimeoutError("the decoder's own")


def test_a_timeout_error_of_decoding_while_draining_is_no_end_of_the_drain(kafka: Kafka) -> None:
    def scenario(delivery: str) -> None:
        topics = make_topics(kafka)
        feed, late = Feed(kafka, topics), LateDecoder()
        feed.give(4)

        with member(kafka, topics, "draining", encoder=late, delivery=delivery, preprocessing="reference") as draining:
            draining.wait_until(lambda: late.begun.is_set() and draining.in_flight == 4, "all is taken in")
            draining.ask_to_stop()
            late.gate.set()
            draining.stop()

        letters = read_all(kafka.bootstrap_servers, topics.dead_letters)
        assert by_partition(place_of(letter, "dlq.") for letter in letters) == every_offset_once(kafka, topics)
        assert everything_is_committed(kafka, topics)

    side_by_side(scenario, [(delivery,) for delivery in DELIVERIES])


# Too many rejections.


def test_a_limit_on_rejections_ends_the_process_with_all_that_was_taken_in_and_a_restart_goes_on_behind_it(
    kafka: Kafka,
) -> None:
    def scenario(delivery: str, flags: tuple[str, ...], said: str) -> None:
        topics = make_topics(kafka)
        records = [Sent(str(number).encode(), b"\xc1", partition=number % PARTITIONS) for number in range(400)]
        produce(kafka.bootstrap_servers, topics.input, records)

        with started_worker(kafka, topics, "--delivery", delivery, *flags) as worker:
            exit_code = worker.wait(WORK_TIMEOUT_S)
            log = worker.log
        letters = [place_of(it, "dlq.") for it in read_all(kafka.bootstrap_servers, topics.dead_letters)]
        done = commits(kafka, topics)
        with member(kafka, topics, "next", delivery=delivery) as following:
            following.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
            following.stop()

        assert exit_code == TooManyRejections.exit_code
        assert said in log
        assert by_partition(letters) == {partition: list(range(offset)) for partition, offset in sorted(done.items())}
        all_letters = [place_of(it, "dlq.") for it in read_all(kafka.bootstrap_servers, topics.dead_letters)]
        assert by_partition(all_letters) == every_offset_once(kafka, topics)

    in_a_row = (
        ("--max-rejected-in-a-row", "5"),
        "records in a row became dead letters, WORKER_MAX_REJECTED_IN_A_ROW=5",
    )
    share = (
        ("--max-rejected-share", "0.5", "--rejected-share-window", "20"),
        "of the last 20 records became dead letters",
    )
    side_by_side(scenario, [(delivery, *limit) for delivery, limit in product(DELIVERIES, [in_a_row, share])])
