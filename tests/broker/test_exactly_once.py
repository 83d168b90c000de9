"""Exactly once: outcomes and offsets in one transaction, as a `read_committed` reader sees them."""

import io
import signal
from collections import Counter
from collections.abc import Callable

import msgpack
import numpy as np
from PIL import Image

from tests.broker.instant_worker import DELAY
from tests.broker.kafka import Kafka, Sent, Topics, committed, create_topic, end_offsets, produce, read_all, wait_until
from tests.broker.processes import Worker, group_of, running_worker

EXACTLY_ONCE = ("--delivery", "exactly-once")
IN_TIME_S = 60
YEAR_2096_MS = 4_000_000_000_000


def _document(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(file, "PNG")
    return bytes(msgpack.packb({"id": str(number), "blob": file.getvalue()}))


def _sent(count: int) -> list[Sent]:
    return [Sent(str(number).encode(), _document(number), partition=number % 4) for number in range(count)]


def _outcomes(kafka: Kafka, topics: Topics) -> list[int]:
    """Return the numbers of the documents whose embeddings a reader sees, in the order of the output."""
    return [int(message.key() or b"") for message in read_all(kafka.bootstrap_servers, topics.output)]


def _everything_is_committed(kafka: Kafka, topics: Topics) -> bool:
    ends = {number: end for number, end in end_offsets(kafka.bootstrap_servers, topics.input).items() if end}
    return committed(kafka.bootstrap_servers, group_of(topics), topics.input) == ends


def _in_order(numbers: list[int]) -> bool:
    return all(
        of_partition == sorted(of_partition)
        for of_partition in ([number for number in numbers if number % 4 == partition] for partition in range(4))
    )


def _owns_partitions(worker: Worker, count: int) -> Callable[[], bool]:
    return lambda: worker.metric("clip_worker_assigned_partitions") == count


def test_every_record_is_seen_once_and_in_order(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.input, _sent(400))

    with running_worker(kafka, topics, *EXACTLY_ONCE) as worker:
        worker.wait_until(lambda: _everything_is_committed(kafka, topics), IN_TIME_S, "everything is committed")
        assert worker.stop() == 0

    numbers = _outcomes(kafka, topics)
    assert sorted(numbers) == list(range(400))
    assert _in_order(numbers)


def test_a_worker_that_is_killed_in_the_middle_leaves_nothing_missing_and_nothing_twice(
    kafka: Kafka, topics: Topics
) -> None:
    produce(kafka.bootstrap_servers, topics.input, _sent(400))
    stable = (*EXACTLY_ONCE, "--transactional-id", f"{topics.output}-0", "--checkpoint-interval-s", "0.3")
    slow = {DELAY: "0.1"}
    quick_to_notice = ("--kafka", "session.timeout.ms=6000")

    with running_worker(kafka, topics, *stable, *quick_to_notice, env=slow) as worker:
        worker.wait_until(lambda: len(_outcomes(kafka, topics)) > 50, IN_TIME_S, "some outcomes")
        worker.kill()
    with running_worker(kafka, topics, *stable) as worker:
        worker.wait_until(lambda: _everything_is_committed(kafka, topics), IN_TIME_S, "everything is committed")
        assert worker.stop() == 0

    numbers = _outcomes(kafka, topics)
    assert sorted(numbers) == list(range(400))
    assert _in_order(numbers)


def test_of_two_workers_one_is_killed_and_the_other_goes_on_without_a_repetition(kafka: Kafka, topics: Topics) -> None:
    flags = (
        *(*EXACTLY_ONCE, "--checkpoint-interval-s", "0.3", "--kafka", "session.timeout.ms=6000"),
        *("--kafka", "transaction.timeout.ms=6000", "--kafka", "delivery.timeout.ms=5000"),
    )
    slow = {DELAY: "0.1"}

    with (
        running_worker(kafka, topics, *flags, env=slow) as one,
        running_worker(kafka, topics, *flags, env=slow) as other,
    ):
        for worker in (one, other):
            worker.wait_until(_owns_partitions(worker, 2), IN_TIME_S, "the partitions are shared")
        produce(kafka.bootstrap_servers, topics.input, _sent(600))
        other.wait_until(lambda: other.metric("clip_worker_images_total") > 10, IN_TIME_S, "both work")
        one.kill()
        other.wait_until(lambda: _everything_is_committed(kafka, topics), IN_TIME_S, "everything is committed")
        assert other.stop() == 0

    # Until the broker ends the killed worker's transaction, a reader sees nothing of what came after it.
    wait_until(lambda: len(_outcomes(kafka, topics)) >= 600, IN_TIME_S, "the open transaction has timed out")
    numbers = _outcomes(kafka, topics)
    assert Counter(numbers) == Counter(range(600))
    assert _in_order(numbers)


def test_a_record_that_the_broker_refuses_becomes_a_dead_letter_and_no_endless_abort(
    kafka: Kafka, topics: Topics
) -> None:
    tolerant = Topics(f"{topics.input}-tolerant", topics.output, topics.dead_letters)
    create_topic(kafka.bootstrap_servers, tolerant.input, 4, {"message.timestamp.after.max.ms": str(2**62)})
    records = _sent(40)
    late = Sent(b"late", _document(1000), timestamp_ms=YEAR_2096_MS, partition=1)
    produce(kafka.bootstrap_servers, tolerant.input, [*records[:20], late, *records[20:]])

    with running_worker(kafka, tolerant, *EXACTLY_ONCE) as worker:
        worker.wait_until(lambda: _everything_is_committed(kafka, tolerant), IN_TIME_S, "everything is committed")
        # One abort for the refusal, and one more where librdkafka then finds its sequence numbers skipped.
        assert 1 <= worker.metric("clip_worker_rewinds_total") <= 2
        assert worker.stop() == 0

    [letter] = read_all(kafka.bootstrap_servers, topics.dead_letters)
    assert letter.key() == b"late"
    assert dict(letter.headers() or [])["dlq.reason"] == b"bad-timestamp"
    numbers = _outcomes(kafka, topics)
    assert sorted(numbers) == list(range(40))
    assert _in_order(numbers)


def test_a_worker_that_joins_and_leaves_again_costs_nothing_and_repeats_nothing(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.input, _sent(1600))
    flags = (*EXACTLY_ONCE, "--checkpoint-interval-s", "0.3")
    slow = {DELAY: "0.1"}

    with running_worker(kafka, topics, *flags, env=slow) as one:
        wait_until(lambda: len(_outcomes(kafka, topics)) > 50, IN_TIME_S, "some outcomes")
        with running_worker(kafka, topics, *flags, env=slow) as other:
            other.wait_until(lambda: other.metric("clip_worker_images_total") > 50, IN_TIME_S, "both work")
            assert other.stop(signal.SIGTERM) == 0
        one.wait_until(lambda: _everything_is_committed(kafka, topics), IN_TIME_S, "everything is committed")
        assert one.stop() == 0

    numbers = _outcomes(kafka, topics)
    assert Counter(numbers) == Counter(range(1600))
    assert _in_order(numbers)
