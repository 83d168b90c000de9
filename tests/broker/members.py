"""Members of a consumer group as threads of this process: many of them, and a model that a test holds in its hand."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Event, Thread

import msgpack
import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaException, Message
from PIL import Image
from prometheus_client import CollectorRegistry

from tests.broker.instant_worker import InstantEncoder
from tests.broker.kafka import Kafka, Sent, Topics, committed, create_topic, end_offsets, produce, read_all, wait_until
from tests.broker.processes import group_of
from worker.health import Health
from worker.metrics import Metrics
from worker.records import TopicLimits
from worker.sessions import Sessions
from worker.settings import Settings

WORK_TIMEOUT_S = 60
END_TIMEOUT_S = 30
PARTITIONS = 4
MAX_BYTES = 1_048_588  # Kafka's own default

DELIVERIES = ("at-least-once", "exactly-once")
COOPERATIVE = {"heartbeat.interval.ms": "200", "session.timeout.ms": "6000"}
EAGER = COOPERATIVE | {"partition.assignment.strategy": "range"}
CONSUMER_PROTOCOL = {"group.protocol": "consumer"}

Place = tuple[int, int]
"""Partition and offset of an input record."""


class HeldEncoder(InstantEncoder):
    """An instant model that waits for its gate before each batch; open at first."""

    def __init__(self, delay_s: float = 0.0) -> None:
        super().__init__(delay_s)
        self.gate = Event()
        self.gate.set()
        self.batches = 0

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.batches += 1
        assert self.gate.wait(WORK_TIMEOUT_S), "the gate stayed shut"
        return super().encode(pixels, preprocessed)


class Member:
    """A worker in a thread: everything but the process and the model is the worker's own."""

    def __init__(self, name: str, encoder: InstantEncoder, settings: Settings) -> None:
        self.name = name
        self._registry = CollectorRegistry()
        self._stop = Event()
        self._error: BaseException | None = None
        self._limits = {settings.output_topic: TopicLimits(), settings.dead_letter_topic: TopicLimits()}
        health = Health(settings.stall_timeout_s)
        self._sessions = Sessions(settings, encoder, Metrics(self._registry), health)
        self._thread = Thread(target=self._hold, name=name, daemon=True)
        self._thread.start()

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a sample, by its full name."""
        found = self._registry.get_sample_value(name, labels)
        assert found is not None, f"no sample {name} {labels}"
        return found

    def count(self, name: str, **labels: str) -> int:
        """Return the value of a counter that is there once it counts."""
        return int(self._registry.get_sample_value(name, labels) or 0)

    @property
    def in_flight(self) -> int:
        """Return how many records it has taken in and not handed on."""
        return int(self.metric("clip_worker_in_flight_records"))

    @property
    def rebalances(self) -> dict[str, int]:
        """Return how often it was given partitions, and how often some were taken from it."""
        return {kind: self.count("clip_worker_rebalances_total", kind=kind) for kind in ("assigned", "revoked")}

    @property
    def owned(self) -> int:
        """Return how many partitions it owns."""
        return int(self.metric("clip_worker_assigned_partitions"))

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = WORK_TIMEOUT_S) -> None:
        """Wait for a condition that only a living member can bring about."""
        wait_until(lambda: condition() or not self._thread.is_alive(), timeout_s, what)
        assert condition(), f"{self.name} ended with {self._error!r} before: {what}"

    def wait_until_it_owns(self, partitions: int) -> None:
        self.wait_until(lambda: self.owned == partitions, f"{self.name} owns {partitions} partitions")

    def ask_to_stop(self) -> None:
        """Say what a signal says."""
        self._stop.set()

    def stop(self) -> None:
        """Stop it as a signal would, and wait for its end.

        Raises: what the worker's process would end with.
        """
        self._stop.set()
        self._thread.join(END_TIMEOUT_S)
        assert not self._thread.is_alive(), f"{self.name} has not ended within {END_TIMEOUT_S} s"
        if self._error is not None:
            raise self._error

    def wait_for_end(self, timeout_s: float = WORK_TIMEOUT_S) -> BaseException | None:
        """Wait until it ends by itself, and return what its process would end with."""
        wait_until(lambda: not self._thread.is_alive(), timeout_s, f"the end of {self.name}")
        return self._error

    def let_go(self) -> None:
        """Stop it if it is still there; whatever it ends with has been looked at, or a test has failed already."""
        self._stop.set()
        self._thread.join(END_TIMEOUT_S)

    def _hold(self) -> None:
        try:
            self._sessions.hold(self._stop, self._limits)
        except BaseException as error:  # noqa: BLE001 - the thread boundary: `stop` raises it
            self._error = error


@contextmanager
def member(
    kafka: Kafka,
    topics: Topics,
    name: str,
    *,
    encoder: InstantEncoder | None = None,
    properties: Mapping[str, str] = COOPERATIVE,
    **settings: float | str,
) -> Iterator[Member]:
    """Let a worker join in a thread; it is stopped at the end."""
    fields: dict[str, object] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "group_id": group_of(topics),
        "input_topic": topics.input,
        "output_topic": topics.output,
        "dead_letter_topic": topics.dead_letters,
        "transactional_id": f"{topics.output}-{name}",
        "prepare_threads": 1,
        # Equal client ids, as one process would give them, make cooperative rebalances endless (librdkafka #4783).
        "kafka": {"client.id": name, **properties},
        **settings,
    }
    started = Member(name, encoder or InstantEncoder(), Settings(**fields))  # type: ignore[arg-type]
    try:
        yield started
    finally:
        started.let_go()


def side_by_side(scenario: Callable[..., None], variants: Iterable[tuple[object, ...]]) -> None:
    """Run a scenario once for each tuple of arguments, all at the same time: most of it is waiting for the broker.

    Raises: an `ExceptionGroup` of what they raised, each with its arguments told.
    """
    told = list(variants)
    failures = []
    with ThreadPoolExecutor(len(told)) as pool:
        for arguments, run in [(arguments, pool.submit(scenario, *arguments)) for arguments in told]:
            error = run.exception()
            if isinstance(error, Exception):
                error.add_note(f"with {arguments}")
                failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(told)} variants", failures)


# What the topics hold.


def make_topics(kafka: Kafka, output_bytes: int = MAX_BYTES, dead_letter_bytes: int = MAX_BYTES) -> Topics:
    """Make three new topics, which take records of so many bytes."""
    names = Topics.named_anew()
    create_topic(kafka.bootstrap_servers, names.input, PARTITIONS)
    create_topic(kafka.bootstrap_servers, names.output, 1, {"max.message.bytes": str(output_bytes)})
    create_topic(kafka.bootstrap_servers, names.dead_letters, 1, {"max.message.bytes": str(dead_letter_bytes)})
    return names


@cache
def document(number: int, **fields: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(file, "PNG")
    return bytes(msgpack.packb({"id": str(number), "blob": file.getvalue(), "tags": fields}))


class Feed:
    """Documents for the input topic, spread over its partitions one after the other."""

    def __init__(self, kafka: Kafka, topics: Topics) -> None:
        self._kafka = kafka
        self._topics = topics
        self.sent = 0

    def give(self, count: int) -> None:
        """Produce so many more."""
        numbers = range(self.sent, self.sent + count)
        records = [Sent(str(it).encode(), document(it), partition=it % PARTITIONS) for it in numbers]
        produce(self._kafka.bootstrap_servers, self._topics.input, records)
        self.sent += count

    def give_until(self, condition: Callable[[], bool], what: str, at_a_time: int = 20) -> None:
        """Produce more and more until a condition holds."""

        def more() -> bool:
            self.give(at_a_time)
            return condition()

        wait_until(more, WORK_TIMEOUT_S, what)


def place_of(message: Message, prefix: str = "source.") -> Place:
    """Return where the record came from that a message is the outcome of."""
    told = dict(message.headers() or ())
    return int(told[f"{prefix}partition"] or b""), int(told[f"{prefix}offset"] or b"")


def places(kafka: Kafka, topics: Topics) -> list[Place]:
    """Return where the embeddings came from, in their order."""
    return [place_of(message) for message in read_all(kafka.bootstrap_servers, topics.output)]


def by_partition(found: Iterable[Place]) -> dict[int, list[int]]:
    """Return the offsets of each partition, in the order in which they are given."""
    offsets: dict[int, list[int]] = {}
    for partition, offset in found:
        offsets.setdefault(partition, []).append(offset)
    return dict(sorted(offsets.items()))


def every_offset_once(kafka: Kafka, topics: Topics) -> dict[int, list[int]]:
    """Return what `by_partition` gives where each input record has one embedding, in order."""
    ends = end_offsets(kafka.bootstrap_servers, topics.input)
    return {partition: list(range(end)) for partition, end in sorted(ends.items()) if end}


def commits(kafka: Kafka, topics: Topics) -> dict[int, int]:
    return committed(kafka.bootstrap_servers, group_of(topics), topics.input)


def everything_is_committed(kafka: Kafka, topics: Topics) -> bool:
    ends = {partition: end for partition, end in end_offsets(kafka.bootstrap_servers, topics.input).items() if end}
    try:
        return commits(kafka, topics) == ends
    except KafkaException as exception:
        if not exception.args[0].retriable():  # the group's coordinator is on its way, or a transaction is open
            raise
        return False
