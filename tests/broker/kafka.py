"""Real Kafka brokers for the tests, and what they do on them without the worker.

A node is broker and controller in one process, reachable from this machine only. Docker runs it where a daemon answers,
else this machine's own Java from jars that Maven fetches once; both are the same Kafka. Most tests need one node.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

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
from testcontainers.core.network import Network

VERSION = "4.4.0"
CLUSTER_ID = "5L6g3nShT-eMCtK--X86sw"

MAVEN_TIMEOUT_S = 240
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
REQUEST_TIMEOUT_S = 30

_SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    # A killed broker is let in again once its last session has timed out, by default after 9 s.
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "BROKER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
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


# Quick to start rather than quick in the long run, and small: three of them share a machine with what is tested.
_JAVA_OPTIONS = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_QUORUM_STATE = "__cluster_metadata-0/quorum-state"
_DOCKER_DATA = "/tmp/kafka-data"  # noqa: S108 - inside the container


_COORDINATOR_MOVES = frozenset(
    {KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR}
)


class Brokers(Protocol):
    """What clients need to reach a broker or a cluster."""

    @property
    def bootstrap_servers(self) -> str:
        """Return host:port, several separated by commas."""


class Kafka(Brokers, Protocol):
    """A running node that can be taken away and brought back with its data, at the same address."""

    route: str

    def launch(self) -> None:
        """Start its process again, and don't wait."""

    def wait(self) -> None:
        """Wait until it answers."""

    def start(self) -> None:
        """Bring it back after a stop, and wait until it answers."""

    def stop(self, *, hard: bool = False) -> None:
        """End its process: in good order, or at once where it is `hard`."""

    def quorum(self) -> tuple[int, int]:
        """Return the epoch of the controllers' election and the leader's node, as this node knows them."""

    def suspend(self) -> None:
        """Let a running broker do nothing more; its connections stay open."""

    def resume(self) -> None:
        """Let a suspended broker go on."""

    def close(self) -> None:
        """Stop it for good and delete its data."""


def start_kafka(folder: Path, settings: Mapping[str, str] | None = None) -> Kafka:
    """Start one node; see `start_nodes`. `settings` are its own, beside those that every test's broker has."""
    [node] = start_nodes(folder, 1, settings or {})
    return node


def start_nodes(folder: Path, count: int, settings: Mapping[str, str]) -> Sequence[Kafka]:
    """Start a cluster of nodes 1 to `count` by Docker or else by Java and Maven, each with a data folder in `folder`.

    Raises: `RuntimeError` that says what to install where neither is there, or why a node didn't start.
    """
    nodes = _make_nodes(folder, count, {**_SETTINGS, **settings})
    try:
        for node in nodes:
            node.launch()  # none answers before most of them are there
        for node in nodes:
            node.wait()
    except BaseException:
        for node in nodes:
            node.close()
        raise
    return nodes


def _make_nodes(folder: Path, count: int, settings: Mapping[str, str]) -> "Sequence[JavaKafka | DockerKafka]":
    ports = _free_ports(3 * count)
    if _docker_answers():
        network = Network().create()
        places = [_Place(each, f"node-{each}", next(ports), next(ports), next(ports)) for each in range(1, count + 1)]
        return [DockerKafka(place, {**settings, **_listeners("", place, places)}, network) for place in places]
    java = _java_version()
    if java is None or java < 17 or shutil.which("mvn") is None:
        raise RuntimeError(
            "the tests need a real Kafka broker: install Docker, or Java 17 or newer with Maven "
            f"(no Docker daemon answers, Java: {java or 'none'}, Maven: {shutil.which('mvn') or 'none'})"
        )
    libs = _fetch_jars(platformdirs.user_cache_path("clip-worker-tests"))
    places = [_Place(each, "127.0.0.1", next(ports), next(ports), next(ports)) for each in range(1, count + 1)]
    return [
        JavaKafka(
            Path(tempfile.mkdtemp(prefix=f"kafka-{place.node}-", dir=folder)),
            place,
            {**settings, **_listeners("127.0.0.1", place, places)},
            libs,
            java,
        )
        for place in places
    ]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node listens: its name among the nodes, and the ports for clients, for brokers and for controllers."""

    node: int
    host: str
    client_port: int
    broker_port: int
    controller_port: int


class JavaKafka:
    """A node on this machine's Java; its settings, log and data are in `folder`, which `close` deletes."""

    def __init__(self, folder: Path, place: _Place, settings: Mapping[str, str], libs: Path, java: int) -> None:
        self.bootstrap_servers = f"127.0.0.1:{place.client_port}"
        self.route = f"Apache Kafka {VERSION} by Maven on Java {java}"
        self._folder = folder
        self._node = place.node
        self._log = folder / "broker.log"
        self._data = folder / "data"
        self._java = ("java", *_JAVA_OPTIONS, "-cp", f"{libs}/*")
        self._properties = str(folder / "server.properties")
        self._process: subprocess.Popen[bytes] | None = None

        written = {**settings, "log.dirs": str(self._data)}
        Path(self._properties).write_text("".join(f"{name}={value}\n" for name, value in written.items()))
        _run(*self._java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", self._properties)

    def launch(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                (*self._java, "kafka.Kafka", self._properties),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        _wait_for_answer(self.bootstrap_servers, self._node, self._last_words)

    def start(self) -> None:
        self.launch()
        try:
            self.wait()
        except BaseException:
            self.stop(hard=True)
            raise

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

    def quorum(self) -> tuple[int, int]:
        return _quorum((self._data / _QUORUM_STATE).read_text())

    def suspend(self) -> None:
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def close(self) -> None:
        self.stop(hard=True)
        shutil.rmtree(self._folder)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _last_words(self) -> str | None:
        if self._process is not None and self._process.poll() is None:
            return None
        return _tail(self._log.read_text(errors="replace"))


class DockerKafka:
    """A node in a container; its data is in the container, which `close` removes."""

    def __init__(self, place: _Place, settings: Mapping[str, str], network: Network) -> None:
        self.bootstrap_servers = f"127.0.0.1:{place.client_port}"
        self.route = f"Apache Kafka {VERSION} by Docker"
        self._node = place.node
        self._network = network
        written = {**settings, "log.dirs": _DOCKER_DATA}
        environment = {"KAFKA_" + name.upper().replace(".", "_"): value for name, value in written.items()}
        environment |= {"CLUSTER_ID": CLUSTER_ID, "KAFKA_HEAP_OPTS": _JAVA_OPTIONS[0]}
        self._container = DockerContainer(f"apache/kafka:{VERSION}", env=environment)
        self._container.with_network(network).with_network_aliases(place.host)
        cores: set[int] = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        if 0 < len(cores) < (os.cpu_count() or 1):  # a benchmark keeps to some of them, and so has its broker
            self._container.with_kwargs(cpuset_cpus=",".join(map(str, sorted(cores))))
        # The same port inside and outside: the broker calls itself by the address that it gives to its clients.
        port = place.client_port
        self._container.ports[f"{port}/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]  # Docker takes both

    def launch(self) -> None:
        if self._container.get_wrapped_container() is None:
            self._container.start()
        else:
            self._container.get_wrapped_container().start()

    def wait(self) -> None:
        _wait_for_answer(self.bootstrap_servers, self._node, self._last_words)

    def start(self) -> None:
        self.launch()
        self.wait()

    def stop(self, *, hard: bool = False) -> None:
        if hard:
            self._container.get_wrapped_container().kill()
        else:
            self._container.get_wrapped_container().stop(timeout=STOP_TIMEOUT_S)

    def quorum(self) -> tuple[int, int]:
        return _quorum(self._container.exec(["cat", f"{_DOCKER_DATA}/{_QUORUM_STATE}"]).output.decode())

    def suspend(self) -> None:
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        self._container.get_wrapped_container().unpause()

    def close(self) -> None:
        self._container.stop()
        with suppress(docker.errors.APIError):  # refused while other nodes are on it: the last one removes it
            self._network.remove()

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

    @classmethod
    def named_anew(cls) -> Self:
        """Return names that no other test has."""
        suffix = uuid.uuid4().hex[:8]
        return cls(f"documents-{suffix}", f"embeddings-{suffix}", f"dead-letters-{suffix}")


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
    bootstrap_servers: str,
    name: str,
    partitions: int = 1,
    config: Mapping[str, str] | None = None,
    replicas: int = 1,
) -> None:
    """Create a topic and wait until the broker shows it, which it does a moment after it has agreed."""
    with _admin(bootstrap_servers) as admin:
        topic = NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=dict(config or {}))
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
    """Read a topic from its beginning to where it ends now, ordered by partition and offset; see `read_each`."""
    messages = read_each(bootstrap_servers, topic)
    return sorted(messages, key=lambda message: (message.partition(), message.offset()))


def read_each(bootstrap_servers: str, topic: str) -> Iterator[Message]:
    """Read a topic from its beginning to where it ends now; each partition in its order.

    Only what is committed is read: of a partition with an open transaction, what came before it.
    """
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
                    yield message
                case error if error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition())
                case error:
                    raise KafkaException(error)


def committed(bootstrap_servers: str, group: str, topic: str) -> dict[int, int]:
    """Read the offsets that a group has committed, by partition; those without one are left out.

    A consumer asks, for the admin client's question ends the process where the group's coordinator is moving (seen with
    librdkafka 2.16.0: a null pointer in rd_kafka_cgrp_op).
    """
    known: list[TopicPartition] = []

    def is_answered(consumer: Consumer, places: list[TopicPartition]) -> bool:
        try:
            known[:] = consumer.committed(places, timeout=REQUEST_TIMEOUT_S)
        except KafkaException as exception:
            if exception.args[0].retriable() or exception.args[0].code() in _COORDINATOR_MOVES:
                return False
            raise
        return True

    properties = {
        "bootstrap.servers": bootstrap_servers,
        "group.id": group,  # never joined
        "enable.auto.commit": False,
        "isolation.level": "read_uncommitted",  # or it would wait for the end of a transaction
        "log_level": 0,
    }
    with Consumer(properties) as consumer:
        places = [TopicPartition(topic, partition) for partition in _partitions(consumer, topic)]
        wait_until(lambda: is_answered(consumer, places), REQUEST_TIMEOUT_S, "a coordinator answers")
    return {each.partition: each.offset for each in known if each.offset >= 0}


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


def _free_ports(count: int) -> Iterator[int]:
    # Below the ports that systems give to outgoing connections: a client that calls a stopped broker at one of those
    # could be given that very port, and the broker couldn't come back.
    free = (port for port in random.sample(range(20_000, 30_000), 1_000) if _is_free(port))
    return iter([next(free) for _ in range(count)])


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _listeners(listen: str, place: _Place, places: Sequence[_Place]) -> dict[str, str]:
    ports = {"PLAINTEXT": place.client_port, "BROKER": place.broker_port, "CONTROLLER": place.controller_port}
    return {
        "node.id": str(place.node),
        "listeners": ",".join(f"{name}://{listen}:{port}" for name, port in ports.items()),
        "advertised.listeners": (
            f"PLAINTEXT://127.0.0.1:{place.client_port},BROKER://{place.host}:{place.broker_port}"
        ),
        "controller.quorum.voters": ",".join(f"{each.node}@{each.host}:{each.controller_port}" for each in places),
    }


def _quorum(text: str) -> tuple[int, int]:
    state = json.loads(text)
    return state["leaderEpoch"], state["leaderId"]


def _run(*command: str) -> None:
    ended = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=MAVEN_TIMEOUT_S
    )
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{_tail(ended.stdout)}")


def _wait_for_answer(bootstrap_servers: str, node: int, last_words: Callable[[], str | None]) -> None:
    with _admin(bootstrap_servers) as admin:

        def answers() -> bool:
            log = last_words()
            if log is not None:
                raise RuntimeError(f"the broker ended while it started:\n{log}")
            try:
                return node in admin.list_topics(timeout=1).brokers
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
