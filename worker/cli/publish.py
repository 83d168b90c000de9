"""`clip-worker publish`: images, from files and folders, into the input topic."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from rich.progress import Progress

from schemas.document import pack_document
from worker.cli.files import image_files, name_of
from worker.cli.options import settings_options
from worker.clients import QUIET, Properties, producer_properties, tool_admin
from worker.settings import read_settings
from worker.topics import list_topics, require

_FLUSH_S = 1.0
_DEFAULTS: Properties = {"delivery.timeout.ms": 30_000}  # somebody waits: librdkafka's own are 300 s


@click.command("publish")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@settings_options("bootstrap_servers", "input_topic", "kafka")
def command(paths: tuple[Path, ...], **flags: object) -> None:
    """Publish images, from files and folders, as document records into the input topic.

    The id and the key of a document is the path as it is given here: publishing a file again replaces its embedding.
    """
    settings = read_settings(flags)
    try:
        files = [file for path in paths for file in (image_files(path) if path.is_dir() else [path])]
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    require(list_topics(tool_admin(settings), settings), [settings.input_topic], settings)
    producer = Producer(_DEFAULTS | producer_properties(settings) | QUIET)
    with Progress() as progress:
        bar = progress.add_task("publishing", total=len(files))
        publisher = _Publisher(producer, settings.input_topic, partial(progress.advance, bar))
        for path in files:
            publisher.publish(path)
        publisher.finish()
    click.echo(f"{publisher.published} documents published to {settings.input_topic}")
    if publisher.failures:
        raise click.ClickException(f"{len(publisher.failures)} were not published:\n" + "\n".join(publisher.failures))


class _Publisher:
    """Publishes files, and looks at every delivery report; `advance` is called at each file that is done."""

    def __init__(self, producer: Producer, topic: str, advance: Callable[[], None]) -> None:
        self._producer = producer
        self._topic = topic
        self._advance = advance
        self.published = 0
        self.failures: list[str] = []

    def publish(self, path: Path) -> None:
        """Send one file, waiting while the client's queue is full."""
        name = name_of(path)
        try:
            value = pack_document(name, path.read_bytes())
            while not self._accepted(name, value):
                self._producer.poll(_FLUSH_S)
        except (OSError, ValueError, KafkaException) as error:
            self._fail(f"{name}: {error}")

    def finish(self) -> None:
        """Wait until every record is acknowledged or given up."""
        while self._producer.flush(_FLUSH_S):
            pass

    def _accepted(self, name: str, value: bytes) -> bool:
        def note(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                self._fail(f"{name}: {error.str()} ({len(value)} bytes)")
                return
            self.published += 1
            self._advance()

        try:
            self._producer.produce(self._topic, key=name.encode(), value=value, on_delivery=note)
        except BufferError as error:
            if not len(self._producer):
                raise ValueError(f"{len(value)} bytes are more than queue.buffering.max.kbytes") from error
            return False
        self._producer.poll(0)
        return True

    def _fail(self, said: str) -> None:
        self.failures.append(said)
        self._advance()
