"""A real Kafka broker for the tests, and what they do on it without the worker.

The broker is one node, broker and controller in one process, reachable from this machine only. Docker runs it where a
daemon answers, else this machine's own Java from jars that Maven fetches once; both are the same Kafka.
"""

import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import docker  # type: ignore[import-untyped]  # ships no types
import platformdirs
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)
from testcontainers.core.container import DockerContainer

VERSION = "4.4.0"
CLUSTER_ID = "5L6g3nShT-eMCtK--X86sw"

MAVEN_TIMEOUT_S = 240
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
REQUEST_TIMEOUT_S = 30

_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    # A killed broker is let in again once its last session has timed out, by default after 9 s.
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    # Members by KIP-848 learn of each other with their heartbeats, by default every 5 s.
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.min.heartbeat.interval.ms": "500",
    # A test's records may have any timestamp; by default those of more than a week ago soon disappear.
    "log.retention.ms": "-1",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    # How often it looks for transactions that have timed out, by default every 10 s.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
}


class Kafka(Protocol):
    """A running broker that can be taken away and brought back with its data, at the same address."""

    bootstrap_servers: str
    route: str

    def stop(self, *, hard: bool = False) -> None:
        """End the broker's process: in good order, or at once where it is `hard`."""

    def start(self) -> None:
        """Bring a stopped broker back, and wait until it answers."""

    def close(self) -> None:
        """Stop the broker for good and delete its data."""


def start_kafka(folder: Path, settings: Mapping[str, str] | None = None) -> Kafka:
    """Start a broker by Docker or else by Java and Maven, with its data in a new folder inside `folder`.

    `settings` are the broker's own properties, beside those that every test's broker has.

    Raises: `RuntimeError` that says what to install where neither is there, or why the broker didn't start.
    """
    if _docker_answers():
        return DockerKafka(settings or {})
    java = _java_version()
    if java is None or java < 17 or shutil.which("mvn") is None:
        raise RuntimeError(
            "the tests need a real Kafka broker: install Docker, or Java 17 or newer with Maven "
            f"(no Docker daemon answers, Java: {java or 'none'}, Maven: {shutil.which('mvn') or 'none'})"
        )
    libs = _fetch_jars(platformdirs.user_cache_path("clip-worker-tests"))
    return JavaKafka(Path(tempfile.mkdtemp(prefix="kafka-", dir=folder)), libs, java, settings or {})


class JavaKafka:
    """A broker on this machine's Java; its settings, log and data are in `folder`, which `close` deletes."""

    def __init__(self, folder: Path, libs: Path, java: int, own: Mapping[str, str]) -> None:
        port, controller_port = _free_ports()
        self.bootstrap_servers = f"127.0.0.1:{port}"
        self.route = f"Apache Kafka {VERSION} by Maven on Java {java}"
        self._folder = folder
        self._log = folder / "broker.log"
        self._java = ("java", "-Xmx512m", "-cp", f"{libs}/*")
        self._properties = str(folder / "server.properties")
        self._process: subprocess.Popen[bytes] | None = None

        settings = (
            _SETTINGS | _listeners("127.0.0.1", port, controller_port) | {"log.dirs": str(folder / "data")} | dict(own)
        )
        Path(self._properties).write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        _run(*self._java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", self._properties)
        self.start()

    def stop(self, *, hard: bool = False) -> None:
        if self._process is None:
            return
        if hard:
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                (*self._java, "kafka.Kafka", self._properties),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_for_answer(self.bootstrap_servers, self._last_words)
        except BaseException:
            self.stop(hard=True)
            raise

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _last_words(self) -> str | None:
        if self._process is not None and self._process.poll() is None:
            return None
        return _tail(self._log.read_text(errors="replace"))


class DockerKafka:
    """A broker in a container; its data is in the container, which `close` removes."""

    def __init__(self, own: Mapping[str, str]) -> None:
        port, controller_port = _free_ports()
        self.bootstrap_servers = f"127.0.0.1:{port}"
        self.route = f"Apache Kafka {VERSION} by Docker"
        # The same port inside and outside: the broker calls itself by the address that it gives to its clients.
        settings = _SETTINGS | _listeners("", port, controller_port) | dict(own)
        environment = {"KAFKA_" + name.upper().replace(".", "_"): value for name, value in settings.items()}
        environment |= {"CLUSTER_ID": CLUSTER_ID, "KAFKA_HEAP_OPTS": "-Xmx512m"}
        self._container = DockerContainer(f"apache/kafka:{VERSION}", env=environment)
        self._container.ports[f"{port}/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]  # Docker takes both
        try:
            self._container.start()
            _wait_for_answer(self.bootstrap_servers, self._last_words)
        except BaseException:
            self.close()
            raise

    def stop(self, *, hard: bool = False) -> None:
        if hard:
            self._container.get_wrapped_container().kill()
        else:
            self._container.get_wrapped_container().stop(timeout=STOP_TIMEOUT_S)

    def start(self) -> None:
        self._container.get_wrapped_container().start()
        _wait_for_answer(self.bootstrap_servers, self._last_words)

    def close(self) -> None:
        self._container.stop()

    def _last_words(self) -> str | None:
        container = self._container.get_wrapped_container()
        container.reload()
        if container.status == "running":
            return None
        return _tail(container.logs().decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of the three topics of a test."""

    input: str
    output: str
    dead_letters: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A record to produce.

    Without a timestamp, or with 0, which librdkafka takes for none, it gets the time now; without a partition the key
    chooses it.
    """

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp_ms: int | None = None
    partition: int | None = None


def create_topic(
    bootstrap_servers: str, name: str, partitions: int = 1, config: Mapping[str, str] | None = None
) -> None:
    """Create a topic and wait until the broker shows it, which it does a moment after it has agreed."""
    with _admin(bootstrap_servers) as admin:
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
        admin.create_topics([topic])[name].result(REQUEST_TIMEOUT_S)

        def every_partition_has_a_leader() -> bool:
            shown = admin.list_topics(name, timeout=REQUEST_TIMEOUT_S).topics[name].partitions.values()
            return len(shown) == partitions and all(partition.leader >= 0 for partition in shown)

        wait_until(every_partition_has_a_leader, REQUEST_TIMEOUT_S, f"topic {name} is there")


def produce(bootstrap_servers: str, topic: str, records: Iterable[Sent]) -> None:
    """Send `records` in their order and wait until the broker has all of them.

    Raises: `AssertionError` that counts the records that didn't arrive and gives the first reason.
    """
    failures: list[KafkaError] = []

    def keep_failure(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "message.max.bytes": 100_000_000,
            "partitioner": "murmur2_random",
        }
    )
    for record in records:
        while not _queued(producer, topic, record, keep_failure):
            producer.poll(1)
    unanswered = producer.flush(REQUEST_TIMEOUT_S)
    assert not failures, f"{len(failures)} records were refused, the first with: {failures[0]}"
    assert unanswered == 0, f"{unanswered} records were not acknowledged within {REQUEST_TIMEOUT_S} s"


def read_all(bootstrap_servers: str, topic: str) -> list[Message]:
    """Read a topic from its beginning to where it ends now, ordered by partition and offset.

    Only what is committed is read: of a partition with an open transaction, what came before it.
    """
    messages: list[Message] = []
    with Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "none",  # required, but never joined: the partitions are assigned by hand
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,  # how long the broker holds back the answer that a partition has no more
            "isolation.level": "read_committed",
        }
    ) as consumer:
        unread = set(_partitions(consumer, topic))
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in unread])
        while unread:
            message = consumer.poll(REQUEST_TIMEOUT_S)
            assert message is not None, f"{topic}: nothing came for {REQUEST_TIMEOUT_S} s, unread: {unread}"
            match message.error():
                case None:
                    messages.append(message)
                case error if error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition())
                case error:
                    raise KafkaException(error)
    return sorted(messages, key=lambda message: (message.partition(), message.offset()))


def committed(bootstrap_servers: str, group: str, topic: str) -> dict[int, int]:
    """Read the offsets that a group has committed, by partition; those without one are left out."""
    # Not by an admin client: librdkafka's crashes the process where the group's coordinator has moved (a null pointer
    # in rd_kafka_handle_OffsetFetch).
    with Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": group,  # never joined
            "enable.auto.commit": False,
            "isolation.level": "read_uncommitted",  # or it would wait for the end of a transaction
        }
    ) as consumer:
        asked = [TopicPartition(topic, partition) for partition in _partitions(consumer, topic)]
        answer = consumer.committed(asked, timeout=REQUEST_TIMEOUT_S)
    return {each.partition: each.offset for each in answer if each.offset >= 0}


def end_offsets(bootstrap_servers: str, topic: str) -> dict[int, int]:
    """Read the offset after the last record, by partition; the end of a transaction takes an offset too."""
    with _admin(bootstrap_servers) as admin:
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = admin.list_offsets({TopicPartition(topic, each): latest for each in _partitions(admin, topic)})
        return {each.partition: answer.result(REQUEST_TIMEOUT_S).offset for each, answer in asked.items()}


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until `condition` holds.

    Raises: `AssertionError` that names `what` didn't come about in `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


def _docker_answers() -> bool:
    try:
        with closing(docker.from_env(timeout=5)) as daemon:
            return bool(daemon.ping())
    except docker.errors.DockerException:
        return False


def _java_version() -> int | None:
    if shutil.which("java") is None:
        return None
    shown = subprocess.run(("java", "-version"), check=False, capture_output=True, text=True, timeout=30)
    version = re.search(r'version "(\d+)', shown.stderr)
    return int(version[1]) if version else None


def _fetch_jars(cache: Path) -> Path:
    libs = cache / f"kafka-{VERSION}"
    if libs.exists():
        return libs
    cache.mkdir(parents=True, exist_ok=True)
    # Renamed as a whole, so that a broken download is never taken for jars; a run beside this one may be quicker.
    with tempfile.TemporaryDirectory(prefix=f"{libs.name}-", dir=cache) as staging:
        jars = Path(staging) / "libs"
        pom = str(Path(__file__).with_name("pom.xml"))
        _run("mvn", "-B", "-q", "-f", pom, "dependency:copy-dependencies", f"-DoutputDirectory={jars}")
        if not (jars / f"kafka_2.13-{VERSION}.jar").exists():
            raise RuntimeError(f"{pom} names another Kafka than {VERSION}")
        try:
            jars.rename(libs)
        except OSError:
            if not libs.exists():
                raise
    return libs


def _free_ports() -> tuple[int, int]:
    # Below the ports that systems give to outgoing connections: a client that calls a stopped broker at one of those
    # could be given that very port, and the broker couldn't come back.
    free = (port for port in random.sample(range(20_000, 30_000), 1_000) if _is_free(port))
    return next(free), next(free)


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _listeners(host: str, port: int, controller_port: int) -> dict[str, str]:
    return {
        "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
    }


def _run(*command: str) -> None:
    ended = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=MAVEN_TIMEOUT_S
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{_tail(ended.stdout)}")


def _wait_for_answer(bootstrap_servers: str, last_words: Callable[[], str | None]) -> None:
    with _admin(bootstrap_servers) as admin:

        def answers() -> bool:
            log = last_words()
            if log is not None:
                raise RuntimeError(f"the broker ended while it started:\n{log}")
            try:
                return bool(admin.list_topics(timeout=1).brokers)
            except KafkaException:
                return False

        wait_until(answers, START_TIMEOUT_S, f"the broker at {bootstrap_servers} answers")


def _admin(bootstrap_servers: str) -> AdminClient:
    # Patience with a starting broker is the caller's: no growing pauses, no complaints about refused connections.
    return AdminClient({"bootstrap.servers": bootstrap_servers, "reconnect.backoff.max.ms": 100, "log_level": 0})


def _partitions(client: AdminClient | Consumer, topic: str) -> list[int]:
    shown = client.list_topics(topic, timeout=REQUEST_TIMEOUT_S).topics[topic]
    if shown.error is not None:
        raise KafkaException(shown.error)
    return list(shown.partitions)


def _queued(
    producer: Producer, topic: str, record: Sent, on_delivery: Callable[[KafkaError | None, Message], None]
) -> bool:
    try:
        producer.produce(
            topic,
            value=record.value,
            key=record.key,
            headers=list(record.headers),
            timestamp=0 if record.timestamp_ms is None else record.timestamp_ms,
            partition=-1 if record.partition is None else record.partition,
            on_delivery=on_delivery,
        )
    except BufferError:
        return False
    return True


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-40:])


# What goes wrong on a cluster.


def commit_instead(bootstrap_servers: str, group: str, topic: str, positions: Mapping[int, int]) -> bool:
    """Set the offsets of a group; False where it still has a member, which the broker doesn't allow."""
    offsets = [TopicPartition(topic, *place) for place in positions.items()]
    with _admin(bootstrap_servers) as admin:
        asked = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, offsets)])
        answer = asked[group].result(REQUEST_TIMEOUT_S)
    return all(each.error is None for each in answer.topic_partitions)


def delete_records(bootstrap_servers: str, topic: str, before: Mapping[int, int]) -> None:
    """Delete the records before an offset of each partition, as a retention that runs out does."""
    with _admin(bootstrap_servers) as admin:
        asked = admin.delete_records([TopicPartition(topic, *place) for place in before.items()])
        for answer in asked.values():
            answer.result(REQUEST_TIMEOUT_S)


def delete_topic(bootstrap_servers: str, topic: str) -> None:
    """Delete a topic and wait until the broker shows it no more."""
    with _admin(bootstrap_servers) as admin:
        admin.delete_topics([topic])[topic].result(REQUEST_TIMEOUT_S)
        wait_until(
            lambda: topic not in admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics,
            REQUEST_TIMEOUT_S,
            f"topic {topic} is gone",
        )


def deny(bootstrap_servers: str, operation: AclOperation, kind: ResourceType, name: str) -> None:
    """Deny one operation on a resource, and allow all others: with no rule at all, everything is allowed."""
    rules = [
        AclBinding(kind, name, ResourcePatternType.LITERAL, "User:*", "*", each, permission)
        for each, permission in ((AclOperation.ALL, AclPermissionType.ALLOW), (operation, AclPermissionType.DENY))
    ]
    with _admin(bootstrap_servers) as admin:
        for answer in admin.create_acls(rules).values():
            answer.result(REQUEST_TIMEOUT_S)
