"""Partitions that go from one member of a group to another, on a real broker."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import pytest
from confluent_kafka import Consumer

from tests.broker.instant_worker import InstantEncoder
from tests.broker.kafka import Kafka, Topics
from tests.broker.members import (
    CONSUMER_PROTOCOL,
    COOPERATIVE,
    EAGER,
    Feed,
    HeldEncoder,
    Member,
    by_partition,
    every_offset_once,
    everything_is_committed,
    member,
    places,
)
from tests.broker.processes import group_of

DELIVERIES = ["at-least-once", "exactly-once"]


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(
    "properties",
    [
        pytest.param(COOPERATIVE, id="cooperative"),
        pytest.param(EAGER, id="range"),
        pytest.param(CONSUMER_PROTOCOL, id="consumer protocol"),
    ],
)
def test_a_third_member_joins_and_leaves_and_every_record_has_one_outcome_in_order(
    kafka: Kafka, topics: Topics, delivery: str, properties: Mapping[str, str]
) -> None:
    feed = Feed(kafka, topics)
    settings = {"delivery": delivery, "properties": properties, "checkpoint_interval_s": 0.2}

    with (
        member(kafka, topics, "first", encoder=InstantEncoder(0.02), **settings) as first,
        member(kafka, topics, "second", encoder=InstantEncoder(0.02), **settings) as second,
    ):
        feed.give_until(lambda: first.owned == second.owned == 2, "the partitions are shared")
        with member(kafka, topics, "third", encoder=InstantEncoder(0.02), **settings) as third:
            feed.give_until(lambda: third.metric("clip_worker_images_total") > 20, "the third works")
            third.stop()
        feed.give_until(lambda: first.owned + second.owned == 4, "the partitions are shared again")
        first.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
        left = [in_flight(first), in_flight(second)]
        first.stop()
        second.stop()

    assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)
    assert left == [0, 0]
    assert len(places(kafka, topics)) == feed.sent


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_static_member_that_is_soon_back_moves_no_partition_and_one_that_stays_away_does(
    kafka: Kafka, topics: Topics, delivery: str
) -> None:
    feed = Feed(kafka, topics)

    def joined(name: str) -> AbstractContextManager[Member]:
        properties = COOPERATIVE | {"group.instance.id": name}
        encoder = InstantEncoder(0.02)
        return member(
            kafka, topics, name, encoder=encoder, delivery=delivery, properties=properties, checkpoint_interval_s=0.2
        )

    with joined("first") as first:
        with joined("second") as second:
            feed.give_until(lambda: first.owned == second.owned == 2, "the partitions are shared")
            before = rebalances(first)
            second.stop()
        with joined("second") as second:
            feed.give_until(lambda: second.metric("clip_worker_images_total") > 20, "the second works again")
            after = rebalances(first)
            second.stop()
        feed.give_until(lambda: first.owned == 4, "the session of the one that stays away has timed out")
        first.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
        first.stop()

    assert before == after
    assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)


# A model that takes longer than a revocation may.


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_partition_whose_batch_outlasts_the_revocation_is_given_up_and_comes_out_once(
    kafka: Kafka, topics: Topics, delivery: str
) -> None:
    feed, held = Feed(kafka, topics), HeldEncoder()
    settings = {"delivery": delivery, "drain_timeout_s": 1.0}

    with member(kafka, topics, "slow", encoder=held, **settings) as slow:
        feed.give(20)
        slow.wait_until(lambda: everything_is_committed(kafka, topics), "it works")
        held.gate.clear()
        feed.give(40)
        slow.wait_until(lambda: in_flight(slow) == 40, "all is taken in")
        with member(kafka, topics, "fast", **settings) as fast:
            fast.wait_until_it_owns(2)
            given_up = in_flight(slow)
            fast.wait_until(lambda: fast.metric("clip_worker_images_total") == 20, "its records come out")
            held.gate.set()
            slow.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
            assert in_flight(slow) == 0
            fast.stop()
        slow.stop()

    assert given_up <= 20
    assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_model_slower_than_the_poll_interval_costs_no_partition_and_no_record(
    kafka: Kafka, topics: Topics, delivery: str
) -> None:
    feed = Feed(kafka, topics)
    feed.give(20)
    properties = COOPERATIVE | {"max.poll.interval.ms": "6000"}

    with member(
        kafka, topics, "slow", encoder=InstantEncoder(7), delivery=delivery, properties=properties, max_batch=16
    ) as slow:
        slow.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
        slow.stop()

    assert slow.metric("clip_worker_sessions_total") == 1
    assert rebalances(slow) == {"assigned": 1, "revoked": 0}
    assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("properties", [pytest.param(COOPERATIVE, id="cooperative"), pytest.param(EAGER, id="range")])
def test_partitions_are_revoked_twenty_times_while_checkpoints_are_committed(
    kafka: Kafka, topics: Topics, delivery: str, properties: Mapping[str, str]
) -> None:
    feed = Feed(kafka, topics)
    guest = {"bootstrap.servers": kafka.bootstrap_servers, "group.id": group_of(topics), "enable.auto.commit": False}
    assignor = {"partition.assignment.strategy": "cooperative-sticky"} | properties

    with member(kafka, topics, "host", delivery=delivery, properties=properties, checkpoint_interval_s=0.001) as host:
        feed.give_until(lambda: host.metric("clip_worker_images_total") > 0, "it works")
        for time in range(1, 21):
            with Consumer(guest | assignor) as consumer:
                consumer.subscribe([topics.input])
                feed.give_until(lambda: bool(consumer.poll(0.02)) or bool(consumer.assignment()), "shared", 8)
                feed.give_until(lambda: rebalances(host)["revoked"] >= time, "revoked", 8)
            feed.give_until(lambda: host.owned == 4, "it has its partitions back", 8)
        host.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
        assert in_flight(host) == 0
        host.stop()

    assert host.metric("clip_worker_sessions_total") == 1
    assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_half_filled_batch_is_not_lost_at_a_revocation(kafka: Kafka, topics: Topics, delivery: str) -> None:
    feed = Feed(kafka, topics)
    settings = {"delivery": delivery, "max_wait_ms": 60_000.0, "drain_timeout_s": 2.0}

    with member(kafka, topics, "waiting", **settings) as waiting:
        feed.give(4)
        waiting.wait_until(lambda: in_flight(waiting) == 4, "the batch is half filled")
        with member(kafka, topics, "other", **settings) as other:
            other.wait_until_it_owns(2)
            feed.give(28)
            waiting.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
            other.stop()
        waiting.stop()

    assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)


def in_flight(each: Member) -> float:
    return each.metric("clip_worker_in_flight_records")


def rebalances(each: Member) -> dict[str, int]:
    """Return how often it was given partitions, and how often some were taken from it."""
    return {kind: each.count("clip_worker_rebalances_total", kind=kind) for kind in ("assigned", "revoked")}
