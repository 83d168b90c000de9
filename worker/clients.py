"""The properties of the Kafka clients: defaults that fit, the settings', then the user's own.

Measured reasons for the defaults are in the README, "Decisions".
"""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from worker.errors import ClientFailed, KafkaSetupError, SettingsError
from worker.settings import Settings

log = logging.getLogger(__name__)

Properties = dict[str, Any]

# A dead letter carries the input record and the dlq.* headers.
HEADER_ROOM_BYTES = 64 * 1024
_LARGEST_MESSAGE_BYTES = 1_000_000_000  # librdkafka's own maximum: the topic's limit decides, not the client's
_OF_THIS_PROCESS = secrets.token_hex(4)  # containers may share the host's name, and each counts processes from 1

# https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md: what is marked C or P there
# and may reach both clients from one setting.
CONSUMER_ONLY = frozenset(
    {
        "auto.commit.interval.ms",
        "auto.offset.reset",
        "check.crcs",
        "consume.callback.max.messages",
        "coordinator.query.interval.ms",
        "fetch.error.backoff.ms",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "fetch.min.bytes",
        "fetch.queue.backoff.ms",
        "fetch.wait.max.ms",
        "group.instance.id",
        "group.protocol",
        "group.protocol.type",
        "group.remote.assignor",
        "heartbeat.interval.ms",
        "max.partition.fetch.bytes",
        "max.poll.interval.ms",
        "partition.assignment.strategy",
        "queued.max.messages.kbytes",
        "queued.min.messages",
        "session.timeout.ms",
    }
)
PRODUCER_ONLY = frozenset(
    {
        "batch.num.messages",
        "batch.size",
        "compression.codec",
        "compression.level",
        "compression.type",
        "delivery.timeout.ms",
        "enable.gapless.guarantee",
        "linger.ms",
        "message.send.max.retries",
        "message.timeout.ms",
        "msg_order_cmp",
        "partitioner",
        "queue.buffering.backpressure.threshold",
        "queue.buffering.max.kbytes",
        "queue.buffering.max.messages",
        "queue.buffering.max.ms",
        "queuing.strategy",
        "request.timeout.ms",
        "retries",
        "sticky.partitioning.linger.ms",
        "transaction.timeout.ms",
    }
)


# What no new session can mend: the right that is missing, by the error that says so.
_DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "no right on the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "no right on the group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "no right on the cluster (IdempotentWrite, before Kafka 3.0)",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "no right on the transactional id",
    KafkaError.SASL_AUTHENTICATION_FAILED: "the credentials are refused",
    KafkaError._AUTHENTICATION: "the credentials are refused",
}


def is_denied(error: KafkaError) -> bool:
    """Return whether the error is the lack of a right."""
    return error.code() in _DENIED


def failure(what: str, error: KafkaError) -> ClientFailed | KafkaSetupError:
    """Return what to raise for an error of a client: the lack of a right ends the process, all else the session."""
    denied = _DENIED.get(error.code())
    if denied is None:
        return ClientFailed(f"{what}: {error}")
    return KafkaSetupError(f"{what}: {denied}: {error.str()}; `clip-worker check` says which rights are missing")


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turn what a client raises into `failure`: any call may raise, for a fatal error is told by the next one."""
    try:
        yield
    except KafkaException as exception:
        raise failure(what, exception.args[0]) from exception


def client_id() -> str:
    """Return a name of this process: equal ones made cooperative rebalances endless (librdkafka #4783)."""
    return f"clip-worker-{socket.gethostname()}-{os.getpid()}-{_OF_THIS_PROCESS}"


def common_properties(settings: Settings) -> Properties:
    """Return what an admin client needs, and the others too."""
    either = CONSUMER_ONLY | PRODUCER_ONLY
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": client_id(),
        "socket.keepalive.enable": True,
        **{name: value for name, value in settings.kafka_properties.items() if name not in either},
    }


class Admin(AdminClient):
    """An admin client that remembers what last went wrong with its connections; `poll` serves that."""

    def __init__(self, properties: Properties, **logging_to: logging.Logger) -> None:
        """Connect."""
        self.trouble = "no answer"
        super().__init__(properties | {"error_cb": self._note}, **logging_to)

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # which follows from the others
            self.trouble = error.str()


def admin_client(settings: Settings) -> Admin:
    """Return the worker's admin client."""
    return Admin(common_properties(settings), logger=log)


def tool_admin(settings: Settings) -> Admin:
    """Return a command's admin client: errors are the command's to tell, so the client logs little.

    Raises: `SettingsError` where librdkafka refuses a property.
    """
    check_properties(settings)
    return Admin(common_properties(settings) | QUIET)


def log_error(error: KafkaError) -> None:
    """Note what a client says of its connections: it goes on by itself."""
    log.warning("kafka: %s", error)


def consumer_properties(settings: Settings) -> Properties:
    """Return the properties of the worker's consumer."""
    own = {name: value for name, value in settings.kafka_properties.items() if name not in PRODUCER_ONLY}
    protocol: Properties = {} if own.get("group.protocol") == "consumer" else _CLASSIC_PROTOCOL
    return {
        **common_properties(settings),
        **_CONSUMER_DEFAULTS,
        **protocol,
        **own,
        "group.id": settings.group_id,
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
    }


def producer_properties(settings: Settings) -> Properties:
    """Return the properties of a producer whose records are acknowledged by all in-sync replicas, in order."""
    own = {name: value for name, value in settings.kafka_properties.items() if name not in CONSUMER_ONLY}
    return {
        **common_properties(settings),
        **_PRODUCER_DEFAULTS,
        **own,
        "enable.idempotence": True,
        "acks": "all",
    }


def transactional_properties(settings: Settings) -> Properties:
    """Return the properties of a producer whose records and offsets go out in transactions."""
    own = producer_properties(settings)
    return _TRANSACTION_DEFAULTS | own | {"transactional.id": settings.transactional_id or client_id()}


def check_properties(settings: Settings) -> None:
    """Make every client once, so that a property which librdkafka refuses stops the start.

    Raises: `SettingsError` with what it says.
    """
    try:
        Producer(producer_properties(settings) | QUIET)
        if settings.delivery == "exactly-once":
            Producer(transactional_properties(settings) | QUIET)
        Consumer(consumer_properties(settings) | QUIET).close()
    except (KafkaException, TypeError, ValueError) as exception:
        said = exception.args[0].str() if isinstance(exception, KafkaException) else exception
        names = ", ".join(settings.kafka_properties)  # some of the values are secrets
        raise SettingsError(f"kafka property refused: {said} (set: {names or 'none'})") from exception


def _ignore_passing(_: KafkaError) -> None:
    """Say nothing of connections: what a client can't mend by itself is raised, or in a delivery report."""


# For the clients of commands, whose errors are the command's to tell: of the log only what is critical and worse.
QUIET: Properties = {"log_level": 2, "error_cb": _ignore_passing}

_CONSUMER_DEFAULTS: Properties = {
    "auto.offset.reset": "earliest",
    "allow.auto.create.topics": False,
    "max.poll.interval.ms": 300_000,
    "queued.max.messages.kbytes": 65_536,
    "queued.min.messages": 5_000,
    "fetch.queue.backoff.ms": 20,  # a full queue starves the device for up to a second by default
    "fetch.message.max.bytes": 8_388_608,
    "fetch.max.bytes": 16_777_216,  # the queue may be exceeded by one such answer of each broker
    "fetch.wait.max.ms": 100,
    "statistics.interval.ms": 1_000,
}
_CLASSIC_PROTOCOL: Properties = {
    "partition.assignment.strategy": "cooperative-sticky",
    "session.timeout.ms": 45_000,
}
_PRODUCER_DEFAULTS: Properties = {
    "linger.ms": 5,
    "compression.type": "none",  # neither embeddings nor images compress
    "queue.buffering.max.kbytes": 262_144,
    "partitioner": "murmur2_random",  # the Java clients'
    "message.max.bytes": _LARGEST_MESSAGE_BYTES,
    # By default, once all brokers are down, the client throws away those it knows and begins with bootstrap.servers:
    # in a transaction that was seen never to end (librdkafka 2.16). What can't be delivered ends the session anyway,
    # and the next one's clients begin there.
    "metadata.recovery.strategy": "none",
}
_TRANSACTION_DEFAULTS: Properties = {
    "transaction.timeout.ms": 60_000,
    "delivery.timeout.ms": 55_000,  # librdkafka wants it to be under the transaction's
}
