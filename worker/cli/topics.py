"""`clip-worker topics`: make the three topics with fitting limits, or mend their limits; safe to repeat."""

import time

import click
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from worker.cli.options import settings_options
from worker.clients import Admin, tool_admin
from worker.errors import KafkaSetupError
from worker.settings import Settings, read_settings
from worker.topics import MAX_BYTES, LimitsQuestion, list_topics, needed_message_bytes

_ANSWER_S = 60.0
_DEAD_LETTERS_KEPT_MS = 30 * 24 * 3600 * 1000


@click.command("topics")
@click.option("--partitions", type=click.IntRange(min=1), default=4, show_default=True, help="of a topic that is made")
@click.option("--replication-factor", type=click.IntRange(min=1), help="of a topic that is made; the broker's default")
@settings_options("bootstrap_servers", "input_topic", "output_topic", "dead_letter_topic", "max_image_bytes", "kafka")
def command(partitions: int, replication_factor: int | None = None, **flags: object) -> None:
    """Make the three topics with fitting limits, or mend their limits; safe to repeat.

    A topic that is there keeps its partitions and its cleanup policy; only a max.message.bytes that is too small for
    the settings is raised.
    """
    settings = read_settings(flags)
    admin = tool_admin(settings)
    there = list_topics(admin, settings)
    try:
        for name, needed_bytes in needed_message_bytes(settings).items():
            if name in there:
                click.echo(f"{name}: is there, {there[name]} partitions kept, {_mend(admin, name, needed_bytes)}")
            else:
                _make(admin, settings, name, needed_bytes, partitions, replication_factor)
                click.echo(f"{name}: made, {partitions} partitions, {MAX_BYTES}={needed_bytes}")
        _wait_until_all_are_there(admin, settings)
    except KafkaException as exception:
        raise KafkaSetupError(f"the broker refused: {exception.args[0].str()}") from exception


def _make(admin: Admin, settings: Settings, name: str, needed_bytes: int, partitions: int, factor: int | None) -> None:
    config = {MAX_BYTES: str(needed_bytes)}
    if name == settings.output_topic:
        config["cleanup.policy"] = "compact"  # the latest embedding of each key, none where it was deleted
    if name == settings.dead_letter_topic:
        config["retention.ms"] = str(_DEAD_LETTERS_KEPT_MS)
    topic = NewTopic(name, num_partitions=partitions, replication_factor=factor or -1, config=config)
    admin.create_topics([topic], operation_timeout=_ANSWER_S)[name].result()


def _wait_until_all_are_there(admin: Admin, settings: Settings) -> None:
    """Ask until the brokers show what was made, so that `run` may follow at once."""
    deadline_s = time.monotonic() + _ANSWER_S
    while missing := needed_message_bytes(settings).keys() - list_topics(admin, settings).keys():
        if time.monotonic() > deadline_s:
            raise KafkaSetupError(f"made, but not to be seen after {_ANSWER_S:g} s: {', '.join(sorted(missing))}")


def _mend(admin: Admin, name: str, needed_bytes: int) -> str:
    """Raise the topic's limit where it is too small; say what was found."""
    limit = LimitsQuestion(admin, [name]).wait_for_limits()[name].max_message_bytes
    if limit >= needed_bytes:
        return f"{MAX_BYTES}={limit} fits"
    entry = ConfigEntry(MAX_BYTES, str(needed_bytes), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    admin.incremental_alter_configs([resource], request_timeout=_ANSWER_S)[resource].result()
    return f"{MAX_BYTES} raised from {limit} to {needed_bytes}"
