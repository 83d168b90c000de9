"""A real cluster of three nodes: every topic has three replicas, and a write is acknowledged by at least two.

Each node can be killed, stopped and started; who leads what is asked for, to take that one away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka.admin import AdminClient

from tests.broker.kafka import REQUEST_TIMEOUT_S, Kafka, start_nodes, wait_until

NODES = 3
COORDINATOR_PARTITIONS = 4
IN_SYNC_TIMEOUT_S = 60

_SETTINGS = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.num.partitions": str(COORDINATOR_PARTITIONS),
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.num.partitions": str(COORDINATOR_PARTITIONS),
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    # Members by KIP-848 are as quick to be noticed as the classic ones with the tests' settings.
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "6000",
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.min.heartbeat.interval.ms": "500",
}


class Cluster:
    """Three running nodes, numbered from 1."""

    def __init__(self, folder: Path) -> None:
        self._nodes: dict[int, Kafka] = dict(enumerate(start_nodes(folder, NODES, _SETTINGS), start=1))
        self._down: set[int] = set()
        self.bootstrap_servers = ",".join(node.bootstrap_servers for node in self._nodes.values())
        self.route = self._nodes[1].route
        self._admin = AdminClient(
            {"bootstrap.servers": self.bootstrap_servers, "reconnect.backoff.max.ms": 500, "log_level": 0}
        )

    def kill(self, node: int) -> None:
        """End a node's process at once."""
        self._down.add(node)
        self._nodes[node].stop(hard=True)

    def stop(self, node: int) -> None:
        """Let a node hand over what it leads and end."""
        self._down.add(node)
        self._nodes[node].stop()

    def start(self, node: int) -> None:
        """Bring a node back, and wait until it has caught up on every partition."""
        self._nodes[node].start()
        self._down.discard(node)
        wait_until(self._in_sync, IN_SYNC_TIMEOUT_S, f"all replicas are in sync again after node {node} came back")

    def leader_of(self, topic: str, partition: int) -> int:
        """Return the node that leads a partition, once there is one."""
        leaders: list[int] = []

        def is_led() -> bool:
            shown = self._admin.list_topics(topic, timeout=REQUEST_TIMEOUT_S).topics[topic].partitions
            leaders[:] = [shown[partition].leader] if partition in shown else []
            return leaders != [] and leaders[0] in self._nodes.keys() - self._down

        wait_until(is_led, REQUEST_TIMEOUT_S, f"{topic} {partition} has a leader")
        return leaders[0]

    def coordinator_of(self, group: str) -> int:
        """Return the node that coordinates a consumer group."""
        return self.leader_of("__consumer_offsets", _partition_of(group))

    def transaction_coordinator_of(self, transactional_id: str) -> int:
        """Return the node that coordinates a producer's transactions."""
        return self.leader_of("__transaction_state", _partition_of(transactional_id))

    def controller(self) -> int:
        """Return the node whose controller is active."""
        return max(node.quorum() for number, node in self._nodes.items() if number not in self._down)[1]

    def close(self) -> None:
        """Stop all for good and delete their data."""
        for node in self._nodes.values():
            node.close()

    def _in_sync(self) -> bool:
        """Return whether every node says so: one that stayed may not know yet that another was away."""
        return all(_shows_all_in_sync(node) for node in self._nodes.values())


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster and close it at the end."""
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.close()


def _shows_all_in_sync(node: Kafka) -> bool:
    # A client asks the node that it was made with first; later it would ask any of them.
    shown = AdminClient({"bootstrap.servers": node.bootstrap_servers, "log_level": 0}).list_topics(
        timeout=REQUEST_TIMEOUT_S
    )
    partitions = [partition for topic in shown.topics.values() for partition in topic.partitions.values()]
    return len(shown.brokers) == NODES and all(len(it.isrs) == len(it.replicas) for it in partitions)


def _partition_of(name: str) -> int:
    """Return where Kafka keeps a group or a transactional id: by Java's `hashCode`, without its sign.

    Asking for coordinators doesn't do: the admin client went on with one that it no longer was for over 30 s.
    """
    code = 0
    for character in name:
        code = (31 * code + ord(character)) & 0xFFFFFFFF
    return (code & 0x7FFFFFFF) % COORDINATOR_PARTITIONS
