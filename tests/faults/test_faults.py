"""The worker's own sessions, in a thread, against a cluster that fails request by request.

The cluster is librdkafka's mock. It keeps no transactions: what is written in an aborted one can be read, and offsets
committed in one are not kept, so a new session begins at the first record again. Exactly-once is therefore judged by
what was written how often, by what the client was asked and said, and by the worker's counts; what a `read_committed`
reader sees is for the tests on a real broker. Nor does the mock refuse a zombie, or a sequence number.
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from prometheus_client import CollectorRegistry

from tests.broker.instant_worker import InstantEncoder
from tests.broker.kafka import wait_until
from tests.faults.mock_cluster import BROKERS, Api, MockCluster, mock_cluster
from worker.health import Health
from worker.metrics import Metrics
from worker.records import TopicLimits
from worker.sessions import Sessions
from worker.settings import Settings

PARTITIONS = 3
RECORDS = 60
IN_TIME_S = 30.0
EXACTLY_ONCE = "exactly-once"
AT_LEAST_ONCE = "at-least-once"
CONNECTION_CLOSED = KafkaError._TRANSPORT

Place = tuple[int, int]


@pytest.fixture(scope="module")
def cluster() -> Iterator[MockCluster]:
    with mock_cluster() as started:
        yield started


class _Halting(InstantEncoder):
    """Stops half way until it is told to go on."""

    default_max_batch = 4

    def __init__(self) -> None:
        super().__init__(delay_s=0.01)
        self.go_on = threading.Event()
        self._images = 0

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self._images += len(pixels)
        if self._images > RECORDS // 2:
            assert self.go_on.wait(IN_TIME_S)
        return super().encode(pixels, preprocessed)


class _Worker:
    """Sessions in a thread, on topics and a group of their own."""

    def __init__(self, cluster: MockCluster, delivery: str, kafka: Mapping[str, str]) -> None:
        self.cluster = cluster
        self.name = uuid.uuid4().hex[:8]
        self.documents, self.embeddings, self.letters = (
            f"{kind}-{self.name}" for kind in ("documents", "embeddings", "letters")
        )
        for topic, partitions in ((self.documents, PARTITIONS), (self.embeddings, 1), (self.letters, 1)):
            cluster.create_topic(topic, partitions)
        settings = Settings(
            bootstrap_servers=cluster.bootstrap_servers,
            group_id=self.name,
            input_topic=self.documents,
            output_topic=self.embeddings,
            dead_letter_topic=self.letters,
            delivery=delivery,
            transactional_id=self.name,
            checkpoint_interval_s=0.1,
            prepare_threads=1,
            kafka={"heartbeat.interval.ms": "300", "session.timeout.ms": "6000", **kafka},
        )
        self._registry = CollectorRegistry()
        metrics, health = Metrics(self._registry), Health(settings.stall_timeout_s)
        self._limits = {topic: TopicLimits() for topic in (self.embeddings, self.letters)}
        self._encoder = _Halting()
        self._sessions = Sessions(settings, self._encoder, metrics, health)
        self._stop = threading.Event()
        self._raised: list[BaseException] = []
        self._thread = threading.Thread(target=self._hold, name=f"worker-{self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def go_on(self) -> None:
        """Do the second half."""
        self._encoder.go_on.set()

    def stop(self) -> None:
        """Stop it, and raise what ended it."""
        self._stop.set()
        self._thread.join(IN_TIME_S)
        assert not self._thread.is_alive(), "it did not stop"
        if self._raised:
            raise self._raised[0]

    def sample(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(f"clip_worker_{name}", labels) or 0.0

    @property
    def done(self) -> int:
        """Return how many records it says it has done."""
        return int(sum(self.sample("records_total", outcome=each) for each in ("embedded", "rejected", "skipped")))

    def wait_until_done(self, count: int) -> None:
        self._wait(lambda: self.done >= count, f"{count} records are done")

    def wait_until_committed(self, ends: Mapping[int, int]) -> None:
        self._wait(lambda: self.committed() == ends, f"{ends} are committed")

    def committed(self) -> Mapping[int, int]:
        asked = [TopicPartition(self.documents, partition) for partition in range(PARTITIONS)]
        with Consumer(_client(self.cluster) | {"group.id": self.name}) as consumer:
            return {each.partition: each.offset for each in consumer.committed(asked, timeout=IN_TIME_S)}

    def publish(self) -> None:
        producer = Producer(_client(self.cluster))
        for number in range(RECORDS):
            picture = {"dtype": "uint8", "shape": [1, 1, 3], "data": bytes([number % 256, 0, 0])}
            value = msgpack.packb({"id": str(number), "blob": picture})
            producer.produce(self.documents, value=value, partition=number % PARTITIONS)
        assert producer.flush(IN_TIME_S) == 0

    def places(self) -> list[Place]:
        """Return of which records there are embeddings, in their order."""
        return [_source(message, "source.") for message in self._read(self.embeddings)]

    def rejected(self) -> list[tuple[Place, object]]:
        return [
            (_source(message, "dlq."), dict(message.headers() or ())["dlq.reason"])
            for message in self._read(self.letters)
        ]

    def _read(self, topic: str) -> list[Message]:
        messages: list[Message] = []
        reading = {"group.id": "none", "isolation.level": "read_uncommitted", "enable.partition.eof": True}
        with Consumer(_client(self.cluster) | reading) as consumer:
            consumer.assign([TopicPartition(topic, 0, 0)])
            while True:
                message = consumer.poll(IN_TIME_S)
                assert message is not None
                error = message.error()
                if error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF
                    return messages
                messages.append(message)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: condition() or not self._thread.is_alive(), IN_TIME_S, what)
        if self._raised:
            raise self._raised[0]

    def _hold(self) -> None:
        try:
            self._sessions.hold(self._stop, self._limits)
        except BaseException as error:  # noqa: BLE001 - the thread boundary: raised in the test
            self._raised.append(error)


def _client(cluster: MockCluster) -> dict[str, object]:
    return {"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0, "enable.auto.commit": False}


def _source(message: Message, prefix: str) -> Place:
    told = dict(message.headers() or ())
    return int(told[f"{prefix}partition"] or b""), int(told[f"{prefix}offset"] or b"")


@contextmanager
def _working(cluster: MockCluster, delivery: str, **kafka: str) -> Iterator[_Worker]:
    """Give a worker that has done a part of its records, and waits to be told to do the others."""
    worker = _Worker(cluster, delivery, {name.replace("_", "."): value for name, value in kafka.items()})
    worker.publish()
    worker.start()
    try:
        worker.wait_until_done(RECORDS // 3)
        yield worker
    finally:
        worker.go_on()
        cluster.fail_no_more()
        cluster.set_round_trip(0)
        for broker in BROKERS:
            cluster.bring_up(broker)
        worker.stop()


def _all_places(count: int = RECORDS) -> list[Place]:
    return [(number % PARTITIONS, number // PARTITIONS) for number in range(count)]


ENDS = dict.fromkeys(range(PARTITIONS), RECORDS // PARTITIONS)


def _in_order(places: Sequence[Place]) -> bool:
    """Return whether each partition's records came in order, less what came again."""
    first = list(dict.fromkeys(places))
    return all(
        of_partition == sorted(of_partition)
        for of_partition in ([place for place in first if place[0] == number] for number in range(PARTITIONS))
    )


def _finish(worker: _Worker) -> None:
    worker.go_on()
    worker.wait_until_done(RECORDS)


# Offsets that the coordinator refuses.


@pytest.mark.parametrize(
    "error",
    [
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.REQUEST_TIMED_OUT,
        CONNECTION_CLOSED,
    ],
    ids=lambda error: KafkaError(error).name(),
)
def test_offsets_that_are_refused_for_now_are_committed_again(cluster: MockCluster, error: int) -> None:
    with _working(cluster, AT_LEAST_ONCE) as worker:
        cluster.fail_next(Api.OFFSET_COMMIT, [error] * 4)
        _finish(worker)
        worker.wait_until_committed(ENDS)

    assert Counter(worker.places()) == Counter(_all_places())
    assert _in_order(worker.places())
    assert worker.sample("sessions_total") == 1


@pytest.mark.parametrize(
    "error",
    [KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID],
    ids=lambda error: KafkaError(error).name(),
)
def test_offsets_of_a_member_that_the_group_has_forgotten_are_committed_by_it_or_by_the_next(
    cluster: MockCluster, error: int
) -> None:
    with _working(cluster, AT_LEAST_ONCE) as worker:
        cluster.fail_next(Api.OFFSET_COMMIT, [error])  # the mock waits 6 s for the member that it knows
        _finish(worker)
        worker.wait_until_committed(ENDS)

    assert set(worker.places()) == set(_all_places())
    assert _in_order(worker.places())


def test_offsets_that_are_refused_for_good_end_the_session_and_a_new_one_commits(cluster: MockCluster) -> None:
    with _working(cluster, AT_LEAST_ONCE) as worker:
        cluster.fail_next(Api.OFFSET_COMMIT, [KafkaError.OFFSET_METADATA_TOO_LARGE])
        _finish(worker)
        worker.wait_until_committed(ENDS)

    assert worker.sample("sessions_total") == 2
    assert set(worker.places()) == set(_all_places())
    assert _in_order(worker.places())


# Records that the brokers refuse.


@pytest.mark.parametrize("delivery", [AT_LEAST_ONCE, EXACTLY_ONCE])
@pytest.mark.parametrize(
    "error",
    [
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.REQUEST_TIMED_OUT,
        CONNECTION_CLOSED,
    ],
    ids=lambda error: KafkaError(error).name(),
)
def test_records_that_are_refused_for_now_are_written_once_and_in_order(
    cluster: MockCluster, error: int, delivery: str
) -> None:
    # The mock carries out what came behind the request that it closes a connection for, and looks at no sequence number
    # when it comes again.
    under_way = "1" if error == CONNECTION_CLOSED else "5"
    with _working(cluster, delivery, max_in_flight_requests_per_connection=under_way) as worker:
        cluster.fail_next(Api.PRODUCE, [error] * 3)
        _finish(worker)

    assert Counter(worker.places()) == Counter(_all_places())
    assert _in_order(worker.places())
    assert worker.sample("sessions_total") == 1


def _records_of_a_batch_that_is_too_large(worker: _Worker) -> list[Place]:
    return [place for place, reason in worker.rejected() if reason == b"output-too-large"]


@pytest.mark.parametrize("delivery", [AT_LEAST_ONCE, EXACTLY_ONCE])
def test_a_batch_that_is_refused_as_too_large_is_written_record_by_record(cluster: MockCluster, delivery: str) -> None:
    with _working(cluster, delivery) as worker:
        cluster.fail_next(Api.PRODUCE, [KafkaError.MSG_SIZE_TOO_LARGE])
        _finish(worker)

    assert set(worker.places()) | set(_records_of_a_batch_that_is_too_large(worker)) == set(_all_places())
    assert len(_records_of_a_batch_that_is_too_large(worker)) <= 1
    assert worker.sample("sessions_total") == 1


# Brokers that are slow, away, or no longer in charge.


@pytest.mark.parametrize("delivery", [AT_LEAST_ONCE, EXACTLY_ONCE])
def test_slow_answers_only_take_time(cluster: MockCluster, delivery: str) -> None:
    with _working(cluster, delivery) as worker:
        cluster.set_round_trip(500)
        _finish(worker)

    assert Counter(worker.places()) == Counter(_all_places())
    assert (worker.sample("sessions_total"), worker.sample("rewinds_total")) == (1, 0)


@pytest.mark.parametrize("delivery", [AT_LEAST_ONCE, EXACTLY_ONCE])
def test_a_coordinator_that_moves_is_found_again(cluster: MockCluster, delivery: str) -> None:
    with _working(cluster, delivery) as worker:
        for broker in BROKERS:
            cluster.move_coordinator("group", worker.name, broker)
            cluster.move_coordinator("transaction", worker.name, broker)
        _finish(worker)

    assert set(worker.places()) == set(_all_places())
    assert _in_order(worker.places())


@pytest.mark.parametrize(
    ("delivery", "broker"), [*((AT_LEAST_ONCE, broker) for broker in BROKERS), (EXACTLY_ONCE, 1), (EXACTLY_ONCE, 3)]
)
def test_a_broker_that_is_away_for_some_seconds_costs_nothing(cluster: MockCluster, delivery: str, broker: int) -> None:
    with _working(cluster, delivery, reconnect_backoff_max_ms="500") as worker:
        cluster.take_down(broker)
        worker.go_on()
        time.sleep(2)
        cluster.bring_up(broker)
        _finish(worker)

    assert set(worker.places()) == set(_all_places())
    assert _in_order(worker.places())


# Transactions.

STEPS = (Api.ADD_PARTITIONS_TO_TXN, Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT, Api.END_TXN)


@pytest.mark.parametrize(
    "error",
    [
        KafkaError.CONCURRENT_TRANSACTIONS,
        KafkaError.NOT_COORDINATOR,
        CONNECTION_CLOSED,
    ],
    ids=lambda error: KafkaError(error).name(),
)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_of_a_transaction_that_is_refused_for_now_is_made_again(
    cluster: MockCluster, step: Api, error: int
) -> None:
    with _working(cluster, EXACTLY_ONCE) as worker:
        cluster.fail_next(step, [error] * 2)
        _finish(worker)

    assert Counter(worker.places()) == Counter(_all_places())
    assert (worker.sample("sessions_total"), worker.sample("rewinds_total")) == (1, 0)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (Api.ADD_PARTITIONS_TO_TXN, KafkaError.TOPIC_AUTHORIZATION_FAILED),
        (Api.TXN_OFFSET_COMMIT, KafkaError.ILLEGAL_GENERATION),
        (Api.TXN_OFFSET_COMMIT, KafkaError.UNKNOWN_MEMBER_ID),
    ],
    ids=lambda value: value.name if isinstance(value, Api) else KafkaError(value).name(),
)
def test_a_transaction_that_can_not_go_on_is_done_again_in_the_same_session(
    cluster: MockCluster, step: Api, error: int
) -> None:
    with _working(cluster, EXACTLY_ONCE) as worker:
        cluster.fail_next(step, [error])
        _finish(worker)

    assert set(worker.places()) == set(_all_places())
    assert (worker.sample("sessions_total"), worker.sample("rewinds_total")) == (1, 1)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@pytest.mark.parametrize(
    "error", [KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH], ids=lambda error: KafkaError(error).name()
)
def test_a_producer_that_is_fenced_goes_on_from_the_last_checkpoint(
    cluster: MockCluster, step: Api, error: int
) -> None:
    with _working(cluster, EXACTLY_ONCE) as worker:
        cluster.fail_next(step, [error])
        _finish(worker)

    assert set(worker.places()) == set(_all_places())
    # The client takes some of them for the end of the transaction, the others for its own.
    assert worker.sample("sessions_total") + worker.sample("rewinds_total") == 2


def test_a_commit_whose_answer_is_late_is_called_again_and_nothing_is_written_twice(cluster: MockCluster) -> None:
    with _working(cluster, EXACTLY_ONCE) as worker:
        cluster.answer_late(Api.END_TXN, 1500)
        _finish(worker)

    assert Counter(worker.places()) == Counter(_all_places())
    assert (worker.sample("sessions_total"), worker.sample("rewinds_total")) == (1, 0)
