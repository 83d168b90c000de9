"""`clip-worker consume`: embeddings from the output topic into a file or onto the screen."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from schemas.dead_letter import Rejection
from schemas.embedding import read_embedding
from worker.cli.dead_letters import SILENCE_S
from worker.cli.files import written_whole
from worker.cli.options import settings_options
from worker.cli.rows import WRITERS, Place, Row, rows_of
from worker.clients import QUIET, consumer_properties, tool_admin
from worker.errors import KafkaSetupError
from worker.settings import Settings, read_settings
from worker.topics import list_topics, require

_POLL_S = 0.2
_SHOWN_NUMBERS = 4


@click.command("consume")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help=f"file: {', '.join(WRITERS)}")
@click.option("--all", "every", is_flag=True, help="every record as it came, not only the latest of each key")
@click.option("--follow", is_flag=True, help="go on with what comes, onto the screen, until Ctrl-C")
@settings_options("bootstrap_servers", "output_topic", "kafka")
def command(*, every: bool, follow: bool, output: Path | None = None, **flags: object) -> None:
    """Read the embeddings that the output topic holds, into a file or onto the screen.

    A row is one embedding; the chunks of a document have rows of their own. Of each key the latest record counts, and
    a deleted one has none, unless --all is given.
    """
    if output is not None and (follow or output.suffix.lower() not in WRITERS):
        raise click.UsageError(f"--output takes a file that ends in {', '.join(WRITERS)}, and no --follow")
    settings = read_settings(flags)
    records = _Records(settings, follow=follow)
    try:
        rows = _every(settings.output_topic, records if every or follow else _latest(records))
        count = _show(rows) if output is None else _write(output, rows)
    except KeyboardInterrupt:
        if not follow:
            raise
        return
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    finally:
        records.close()
    click.echo(f"{count} embeddings" + ("" if output is None else f" in {output}"), err=output is None)


class _Records:
    """The records of the topic from its beginning to its present end, or on and on."""

    def __init__(self, settings: Settings, *, follow: bool) -> None:
        self._topic = settings.output_topic
        self._follow = follow
        topics = list_topics(tool_admin(settings), settings)
        require(topics, [self._topic], settings)
        # A consumer that reads by itself joins no group, and commits nothing.
        own = {"group.id": "clip-worker-consume", "enable.partition.eof": True}
        self._consumer = Consumer(consumer_properties(settings) | QUIET | own)
        self._unread = set(range(topics[self._topic]))
        self._consumer.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in self._unread])

    def __iter__(self) -> Iterator[tuple[Place, bytes | None]]:
        """Yield each record's place and value.

        Raises: `KafkaSetupError` where the end doesn't come.
        """
        heard_s = time.monotonic()
        while self._unread or self._follow:
            message = self._consumer.poll(_POLL_S)
            if message is None:
                self._check_silence(time.monotonic() - heard_s)
                continue
            heard_s = time.monotonic()
            error = message.error()
            if error is None:
                yield _place(message), message.value()
            elif error.code() == KafkaError._PARTITION_EOF:
                self._unread.discard(message.partition() or 0)
            else:
                raise KafkaSetupError(f"reading {self._topic}: {error.str()}")

    def _check_silence(self, seconds: float) -> None:
        if not self._follow and seconds > SILENCE_S:
            unread = f"partitions {', '.join(str(each) for each in sorted(self._unread))} of {self._topic}"
            raise KafkaSetupError(f"reading {unread}: nothing came for {SILENCE_S:g} s")

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def _place(message: Message) -> Place:
    return Place(
        key=message.key(),
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        timestamp_ms=message.timestamp()[1],
    )


def _every(topic: str, records: Iterable[tuple[Place, bytes | None]]) -> Iterator[Row]:
    for place, value in records:
        if value is None:
            continue
        try:
            record = read_embedding(value)
        except Rejection as rejection:
            said = f"{topic}[{place.partition}]@{place.offset} is no embedding record: {rejection}"
            raise click.ClickException(said) from rejection
        yield from rows_of(record, place)


def _latest(records: Iterable[tuple[Place, bytes | None]]) -> Iterator[tuple[Place, bytes]]:
    latest: dict[bytes | None, tuple[Place, bytes]] = {}
    for place, value in records:
        latest.pop(place.key, None)
        if value is not None:
            latest[place.key] = (place, value)
    yield from latest.values()


def _write(output: Path, rows: Iterable[Row]) -> int:
    """Write a file in the format that its name says; return the number of rows."""
    with written_whole(output) as path:
        return WRITERS[output.suffix.lower()](path, rows)


def _show(rows: Iterable[Row]) -> int:
    """Print a line an embedding; return their number."""
    count = 0
    for row in rows:
        count += 1
        name = row.id + (f" › {row.chunk_id or row.chunk}" if row.chunk else "")
        first = " ".join(f"{value:8.4f}" for value in row.embedding[:_SHOWN_NUMBERS])
        norm = float(np.linalg.norm(row.embedding))
        numbers = f"{first} …  {len(row.embedding)} numbers, norm {norm:.3f}"
        click.echo(f"{_printable(name):40}  {numbers}  {_printable(row.model)}")
    return count


def _printable(text: str) -> str:
    """Return the text on one line, with what a terminal would act on as an escape in letters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
