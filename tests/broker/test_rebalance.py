"""Partitions that go from one member of a group to another, on a real broker.

The variants of a scenario run side by side: they are mostly waiting for the broker.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from itertools import product

from confluent_kafka import Consumer

from tests.broker.instant_worker import InstantEncoder
from tests.broker.kafka import Kafka, Topics
from tests.broker.members import (
    CONSUMER_PROTOCOL,
    COOPERATIVE,
    DELIVERIES,
    EAGER,
    PARTITIONS,
    Feed,
    HeldEncoder,
    Member,
    by_partition,
    every_offset_once,
    everything_is_committed,
    make_topics,
    member,
    places,
    side_by_side,
)
from tests.broker.processes import group_of

QUICK = 0.2  # seconds between checkpoints


def has_embedded(each: Member, count: int) -> Callable[[], bool]:
    return lambda: each.metric("clip_worker_images_total") >= count


def every_record_has_come_out_once_in_order(kafka: Kafka, topics: Topics) -> None:
    assert by_partition(places(kafka, topics)) == every_offset_once(kafka, topics)


def test_a_third_member_joins_and_leaves_and_every_record_has_one_outcome_in_order(kafka: Kafka) -> None:
    def scenario(delivery: str, properties: Mapping[str, str]) -> None:
        topics = make_topics(kafka)
        feed = Feed(kafka, topics)

        def joined(name: str) -> AbstractContextManager[Member]:
            encoder = InstantEncoder(0.02)
            return member(
                kafka,
                topics,
                name,
                encoder=encoder,
                properties=properties,
                delivery=delivery,
                checkpoint_interval_s=QUICK,
            )

        with joined("first") as first, joined("second") as second:
            feed.give_until(lambda: first.owned == second.owned == 2, "the partitions are shared")
            with joined("third") as third:
                feed.give_until(has_embedded(third, 20), "the third works")
                third.stop()
            feed.give_until(lambda: first.owned + second.owned == 4, "the partitions are shared again")
            first.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
            in_flight = [first.in_flight, second.in_flight]
            first.stop()
            second.stop()

        every_record_has_come_out_once_in_order(kafka, topics)
        assert in_flight == [0, 0]

    side_by_side(scenario, product(DELIVERIES, [COOPERATIVE, EAGER, CONSUMER_PROTOCOL]))


def test_a_static_member_that_is_soon_back_moves_no_partition_and_one_that_stays_away_does(kafka: Kafka) -> None:
    def scenario(delivery: str) -> None:
        topics = make_topics(kafka)
        feed = Feed(kafka, topics)

        def joined(name: str) -> AbstractContextManager[Member]:
            properties = COOPERATIVE | {"group.instance.id": name}
            encoder = InstantEncoder(0.02)
            return member(
                kafka,
                topics,
                name,
                encoder=encoder,
                properties=properties,
                delivery=delivery,
                checkpoint_interval_s=QUICK,
            )

        with joined("first") as first:
            with joined("second") as second:
                feed.give_until(lambda: first.owned == second.owned == 2, "the partitions are shared")
                before = first.rebalances
                second.stop()
            with joined("second") as second:
                feed.give_until(has_embedded(second, 20), "the second works again")
                after = first.rebalances
                second.stop()
            feed.give_until(lambda: first.owned == 4, "the session of the one that stays away has timed out")
            first.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
            first.stop()

        assert before == after
        every_record_has_come_out_once_in_order(kafka, topics)

    side_by_side(scenario, [(delivery,) for delivery in DELIVERIES])


def test_partitions_are_revoked_twenty_times_while_checkpoints_are_committed(kafka: Kafka) -> None:
    def scenario(delivery: str, properties: Mapping[str, str], assignor: str) -> None:
        topics = make_topics(kafka)
        feed = Feed(kafka, topics)
        guest = Consumer(
            {
                **properties,
                "bootstrap.servers": kafka.bootstrap_servers,
                "group.id": group_of(topics),
                "enable.auto.commit": False,
                "partition.assignment.strategy": assignor,
            }
        )

        def shares(host: Member) -> bool:
            guest.poll(0.01)  # its rebalances wait for it too
            return bool(guest.assignment()) and host.owned < PARTITIONS

        def is_gone(host: Member) -> bool:
            guest.poll(0.01)
            return host.owned == PARTITIONS

        with (
            closing(guest),
            member(
                kafka, topics, "host", properties=properties, delivery=delivery, checkpoint_interval_s=0.001
            ) as host,
        ):
            feed.give_until(has_embedded(host, 1), "it works")
            for _ in range(20):
                guest.subscribe([topics.input])
                feed.give_until(lambda: shares(host), "it shares its partitions", at_a_time=8)
                guest.unsubscribe()
                feed.give_until(lambda: is_gone(host), "it has its partitions back", at_a_time=8)
            host.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
            in_flight, sessions, revoked = (
                host.in_flight,
                host.count("clip_worker_sessions_total"),
                host.rebalances["revoked"],
            )
            host.stop()

        every_record_has_come_out_once_in_order(kafka, topics)
        assert (in_flight, sessions, revoked >= 20) == (0, 1, True)

    assignors = ((COOPERATIVE, "cooperative-sticky"), (EAGER, "range"))
    side_by_side(scenario, [(delivery, *assignor) for delivery, assignor in product(DELIVERIES, assignors)])


# A model that takes longer than a revocation may.


def test_a_partition_whose_batch_outlasts_the_revocation_is_given_up_and_comes_out_once(kafka: Kafka) -> None:
    def scenario(delivery: str) -> None:
        topics = make_topics(kafka)
        feed, held = Feed(kafka, topics), HeldEncoder()

        with member(kafka, topics, "slow", encoder=held, delivery=delivery, drain_timeout_s=1.0) as slow:
            feed.give(20)
            slow.wait_until(lambda: everything_is_committed(kafka, topics), "it works")
            held.gate.clear()
            feed.give(40)
            slow.wait_until(lambda: slow.in_flight == 40, "all is taken in")
            with member(kafka, topics, "quick", delivery=delivery) as quick:
                quick.wait_until(has_embedded(quick, 20), "what was given up comes out")
                still_in_flight = slow.in_flight
                held.gate.set()
                slow.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
                in_flight = slow.in_flight
                quick.stop()
            slow.stop()

        assert (still_in_flight <= 20, in_flight) == (True, 0)
        every_record_has_come_out_once_in_order(kafka, topics)

    side_by_side(scenario, [(delivery,) for delivery in DELIVERIES])


def test_a_model_slower_than_the_poll_interval_costs_no_partition_and_no_record(kafka: Kafka) -> None:
    def scenario(delivery: str) -> None:
        topics = make_topics(kafka)
        feed = Feed(kafka, topics)
        feed.give(20)
        properties = COOPERATIVE | {"max.poll.interval.ms": "6000"}
        encoder = InstantEncoder(7)

        with member(
            kafka, topics, "slow", encoder=encoder, properties=properties, delivery=delivery, max_batch=16
        ) as slow:
            slow.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
            slow.stop()

        assert slow.count("clip_worker_sessions_total") == 1
        assert slow.rebalances == {"assigned": 1, "revoked": 0}
        every_record_has_come_out_once_in_order(kafka, topics)

    side_by_side(scenario, [(delivery,) for delivery in DELIVERIES])


def test_a_half_filled_batch_is_not_lost_at_a_revocation(kafka: Kafka) -> None:
    def scenario(delivery: str, drain_timeout_s: float) -> None:
        topics = make_topics(kafka)
        feed = Feed(kafka, topics)
        waits_for_more = 3_000.0

        with member(
            kafka, topics, "waiting", delivery=delivery, max_wait_ms=waits_for_more, drain_timeout_s=drain_timeout_s
        ) as waiting:
            waiting.wait_until_it_owns(4)
            feed.give(4)
            waiting.wait_until(lambda: waiting.in_flight == 4, "a batch is half filled")
            with member(kafka, topics, "other", delivery=delivery) as other:
                other.wait_until_it_owns(2)
                waiting.wait_until(lambda: everything_is_committed(kafka, topics), "everything is committed")
                other.stop()
            waiting.stop()

        every_record_has_come_out_once_in_order(kafka, topics)

    side_by_side(scenario, product(DELIVERIES, [0.5, 30.0]))
