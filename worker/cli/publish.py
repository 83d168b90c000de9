"""`clip-worker publish`: images, from files and folders, into the input topic."""

from pathlib import Path

import click
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from rich.progress import track

from schemas.document import pack_document
from worker.cli.files import image_files
from worker.cli.options import settings_options
from worker.clients import QUIET, producer_properties
from worker.settings import read_settings

_FLUSH_S = 1.0


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
    publisher = _Publisher(Producer(producer_properties(settings, _ignore_passing) | QUIET), settings.input_topic)
    for path in track(files, description="publishing"):
        publisher.publish(path)
    publisher.finish()
    click.echo(f"{publisher.published} documents published to {settings.input_topic}")
    if publisher.failures:
        raise click.ClickException(f"{len(publisher.failures)} were not published:\n" + "\n".join(publisher.failures))


class _Publisher:
    """Publishes files, and looks at every delivery report."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self.published = 0
        self.failures: list[str] = []

    def publish(self, path: Path) -> None:
        """Send one file, waiting while the client's queue is full."""
        name = path.as_posix()
        try:
            value = pack_document(name, path.read_bytes())
            while not self._accepted(name, value):
                self._producer.poll(_FLUSH_S)
        except (OSError, ValueError, KafkaException) as error:
            self.failures.append(f"{name}: {error}")

    def finish(self) -> None:
        """Wait until every record is acknowledged or given up."""
        while self._producer.flush(_FLUSH_S):
            pass

    def _accepted(self, name: str, value: bytes) -> bool:
        def note(error: KafkaError | None, _: Message) -> None:
            self.published += error is None
            if error is not None:
                self.failures.append(f"{name}: {error.str()} ({len(value)} bytes)")

        try:
            self._producer.produce(self._topic, key=name.encode(), value=value, on_delivery=note)
        except BufferError:
            return False
        self._producer.poll(0)
        return True


def _ignore_passing(_: KafkaError) -> None:
    """Leave it to the delivery reports: what the client can't mend ends up there."""
