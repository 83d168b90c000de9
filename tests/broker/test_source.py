"""The consumer alone, on a real broker."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from confluent_kafka import Consumer

from tests.broker.kafka import Kafka, Sent, create_topic, produce
from worker.clients import Properties, consumer_properties
from worker.errors import Rewind
from worker.records import Record
from worker.settings import Settings
from worker.source import Source

IN_TIME_S = 30.0
POLL_S = 3.0  # longer than the rebalance, so that the poll that runs it may return a record too


class _Listener:
    """Raises at a revocation, while the first records of what is kept are on their way."""

    def __init__(self, publish: Callable[[], None]) -> None:
        self._publish = publish
        self.owned: set[int] = set()

    def assigned(self, partitions: Sequence[int]) -> None:
        self.owned.update(partitions)

    def revoked(self, partitions: Sequence[int]) -> None:
        self.owned.difference_update(partitions)
        self._publish()
        raise Rewind("aborted")


@contextmanager
def _another_member(properties: Properties, topic: str) -> Iterator[None]:
    end = threading.Event()

    def poll() -> None:
        with Consumer({**properties, "client.id": "another"}) as consumer:
            consumer.subscribe([topic])
            while not end.is_set():
                consumer.poll(0.1)

    thread = threading.Thread(target=poll, name="another member", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(IN_TIME_S)


def _first_record(source: Source) -> Record:
    end_s = time.monotonic() + IN_TIME_S
    while time.monotonic() < end_s:
        try:
            record = source.poll(POLL_S)
        except Rewind:
            continue
        if record is not None:
            return record
    raise AssertionError("no record came")


def test_a_record_that_comes_with_the_failure_of_a_rebalance_comes_again(kafka: Kafka) -> None:
    topic = "kept-and-revoked"
    create_topic(kafka.bootstrap_servers, topic, 2)
    records = [Sent(None, b"value", partition=number % 2) for number in range(10)]
    settings = Settings(
        bootstrap_servers=kafka.bootstrap_servers, group_id=topic, kafka={"heartbeat.interval.ms": "300"}
    )
    properties = consumer_properties(settings)
    listener = _Listener(lambda: produce(kafka.bootstrap_servers, topic, records))
    source = Source(properties, topic, lambda _: None)
    try:
        source.subscribe(listener)
        while listener.owned != {0, 1}:
            source.poll(0.1)
        with _another_member(properties, topic):
            record = _first_record(source)
    finally:
        source.close()

    assert (record.partition in listener.owned, record.offset) == (True, 0)
