"""The three topics as they are on the brokers: whether they exist, their limits, the rights on them."""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource, ResourceType

from worker.clients import HEADER_ROOM_BYTES, Admin
from worker.errors import KafkaSetupError, NoBrokerAnswers
from worker.records import TimestampWindow, TopicLimits
from worker.settings import Settings

log = logging.getLogger(__name__)

# What a record may hold beside one image of the largest size: ids, tags, smaller images.
DOCUMENT_ROOM_BYTES = 1024 * 1024

# An embedding of 512 numbers, its id and its headers; a dead letter's detail and its other headers.
SMALLEST_BYTES = 4096

_ANSWER_S = 30.0
_TURN_S = 3.0
_CONFIG_ANSWER_S = 5.0
MAX_BYTES = "max.message.bytes"
_BEFORE = "message.timestamp.before.max.ms"
_AFTER = "message.timestamp.after.max.ms"


def list_topics(admin: Admin, settings: Settings) -> Mapping[str, int]:
    """Return the number of partitions of every topic that this client may see.

    Asks for all topics: asking for one by name can make it. Asks in short turns, between which signals are handled.
    Raises: `NoBrokerAnswers`, with the addresses and the trouble.
    """
    deadline_s = time.monotonic() + _ANSWER_S
    while True:
        try:
            found = admin.list_topics(timeout=_TURN_S).topics
        except KafkaException as exception:
            admin.poll(0)
            if time.monotonic() < deadline_s:
                continue
            raise NoBrokerAnswers(
                f"no broker answers at {settings.bootstrap_servers} within {_ANSWER_S:g} s: {admin.trouble}"
            ) from exception
        return {name: len(topic.partitions) for name, topic in found.items()}


def find_topics(admin: Admin, settings: Settings) -> Mapping[str, int]:
    """Return the number of partitions of each of the three topics.

    Raises: `NoBrokerAnswers`; `KafkaSetupError` that names the topics that are missing.
    """
    there = list_topics(admin, settings)
    wanted = (settings.input_topic, settings.output_topic, settings.dead_letter_topic)
    require(there, wanted, settings)
    return {name: there[name] for name in wanted}


def require(there: Mapping[str, int], wanted: Sequence[str], settings: Settings) -> None:
    """Compare with the topics that there are. Raises: `KafkaSetupError` that names those that are missing."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise KafkaSetupError(
            f"no such topic at {settings.bootstrap_servers}, or no right to see it: {', '.join(missing)}; "
            "`clip-worker topics` makes what is missing"
        )


class LimitsQuestion:
    """A question for the limits of topics that is answered while the model loads."""

    def __init__(self, admin: AdminClient, topics: Sequence[str]) -> None:
        """Ask."""
        self._admin = admin  # its end would be the end of the question
        self._answers: Mapping[ConfigResource, Future[dict[str, ConfigEntry]]] = admin.describe_configs(
            [ConfigResource(ResourceType.TOPIC, topic) for topic in topics], request_timeout=_CONFIG_ANSWER_S
        )

    def wait_for_limits(self) -> Mapping[str, TopicLimits]:
        """Return the limits by topic.

        Raises: `KafkaException` where the broker doesn't say: the right DescribeConfigs may be missing.
        """
        return {resource.name: _limits(answer.result()) for resource, answer in self._answers.items()}


def _limits(entries: Mapping[str, ConfigEntry]) -> TopicLimits:
    values = {name: int(entries[name].value or 0) for name in (MAX_BYTES, _BEFORE, _AFTER) if name in entries}
    default = TimestampWindow()
    window = TimestampWindow(values.get(_BEFORE, default.before_ms), values.get(_AFTER, default.after_ms))
    return TopicLimits(values[MAX_BYTES], window)


def check_limits(limits: Mapping[str, TopicLimits], settings: Settings) -> None:
    """Warn of a topic that takes less than the largest record that the settings allow.

    Raises: `KafkaSetupError` where it can't even take a plain embedding, or a dead letter without its value.
    """
    needed = needed_message_bytes(settings)
    for topic, limit in limits.items():
        if limit.max_message_bytes < SMALLEST_BYTES:
            raise KafkaSetupError(
                f"{topic}: {MAX_BYTES}={limit.max_message_bytes} is under {SMALLEST_BYTES}, what a plain embedding or "
                "a dead letter without its value takes: `clip-worker topics` raises it"
            )
        if limit.max_message_bytes < needed[topic]:
            log.warning(
                "%s: %s=%d is under %d, the largest record with WORKER_MAX_IMAGE_BYTES=%d: "
                "`clip-worker topics` raises it",
                topic,
                MAX_BYTES,
                limit.max_message_bytes,
                needed[topic],
                settings.max_image_bytes,
            )


def needed_message_bytes(settings: Settings) -> Mapping[str, int]:
    """Return the `max.message.bytes` that each topic needs for the largest record that the settings allow.

    An embedding record carries the document's tags, a dead letter the whole record and its headers.
    """
    document = settings.max_image_bytes + DOCUMENT_ROOM_BYTES
    return {
        settings.input_topic: document,
        settings.output_topic: document,
        settings.dead_letter_topic: document + HEADER_ROOM_BYTES,
    }
