"""`clip-worker demo`: the whole path on this machine, with librdkafka's mock cluster as the broker.

The worker is a process of its own that runs `clip-worker run`; this one is the broker, the producer
and the consumer.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import numpy.typing as npt
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from schemas.document import pack_document
from schemas.embedding import read_embedding
from worker.cli.embedded import (
    DEAD_LETTERS,
    INPUT,
    OUTPUT,
    UNTRAINED_WARNING,
    WorkerProcess,
    is_untrained,
    mock_broker,
    running_worker,
)
from worker.cli.files import written_whole
from worker.cli.pictures import Pictures, bundled_pictures, fitting, folder_pictures
from worker.cli.showcase import nearest, neighbour_rows, neighbour_table, write_page

# The mock cluster keeps about 5 MB a partition and forgets the rest.
_AHEAD_RECORDS = 64
_AHEAD_BYTES = 4 * 2**20

_SILENCE_S = 120.0
_POLL_S = 0.05

_PAGE_ROWS = 200
_PAGE_NEIGHBOURS = 6
_TABLE_ROWS = 7  # the bundled photographs come before their crops
_WIDE_TERMINAL = 100
_REJECTIONS_SHOWN = 10


@click.command("demo")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="clip-demo.html",
    show_default=True,
    help="the page that is written",
)
def command(output: Path, folder: Path | None = None) -> None:
    """Embed the photographs that come with the demo, or those in FOLDER, and show which are near each other.

    WORKER_MODEL, WORKER_WEIGHTS and the other settings of the model and the device count here too.
    """
    console = Console()
    if not output.absolute().parent.is_dir():
        raise click.ClickException(f"{output} can't be written: there is no folder {output.parent}")
    try:
        pictures = bundled_pictures() if folder is None else folder_pictures(folder.expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # a RuntimeError where ~somebody has no home
        raise click.ClickException(str(error)) from error
    with (
        TemporaryDirectory(prefix="clip-demo-") as scratch,
        mock_broker() as servers,
        running_worker(console, servers, Path(scratch) / "worker.log") as worker,
    ):
        run = _Run(servers, worker)
        run.embed(console, pictures)
        worker.stop()
    _show(console, pictures, run, output)


def _show(console: Console, pictures: Pictures, run: "_Run", output: Path) -> None:
    """Print the table and write the page."""
    for name, said in list(run.rejected.items())[:_REJECTIONS_SHOWN]:
        console.print(Text.assemble(("not embedded", "yellow"), f" {name}: {said}"))
    embedded = {name: run.embedded[name] for name in pictures.names if name in run.embedded}
    if not embedded:
        raise click.ClickException("none of the pictures could be embedded")
    shown = list(embedded)
    embeddings = np.stack(list(embedded.values()))
    indices, similarities = nearest(embeddings, _PAGE_NEIGHBOURS)
    columns = 4 if console.width >= _WIDE_TERMINAL else 3
    console.print(neighbour_table(shown, indices[:, :columns], similarities[:, :columns], _TABLE_ROWS))
    facts = {
        "Model": run.model,
        "Images": f"{len(shown):,}" + (f"; not embedded: {len(run.rejected)}" if run.rejected else ""),
        "Speed": f"{run.images_per_second:.1f} images/s",
        "Embedding": f"{embeddings.shape[1]} float32 numbers",
    }
    warning = UNTRAINED_WARNING if is_untrained(run.model) else None
    with written_whole(output) as path:
        write_page(
            path,
            neighbour_rows(shown, indices, similarities),
            pictures.read,
            title="Nearest neighbours by CLIP embedding",
            facts=facts,
            warning=warning,
            limit=_PAGE_ROWS,
        )
    if warning is not None:
        console.print(Panel(warning, style="bold white on red"))
    speed = (f"{run.images_per_second:.1f} images/s", "bold")
    said = f"; not embedded: {len(run.rejected)}; model {run.model}"
    console.print(Text.assemble(f"{len(shown)} images through Kafka at ", speed, said))
    console.print(Text.assemble("The page with the pictures: ", (output.resolve().as_uri(), "bold")), soft_wrap=True)


@dataclass(slots=True)
class _Run:
    """Publishes pictures, never further ahead than outcomes have come back, and keeps the outcomes by name."""

    servers: str
    worker: WorkerProcess
    embedded: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    model: str = ""
    images_per_second: float = 0.0
    _ahead: dict[str, int] = field(default_factory=dict)
    _heard_s: float = field(default_factory=time.monotonic)

    def embed(self, console: Console, pictures: Pictures) -> None:
        """Send every picture and wait for every outcome."""
        consumer = self._read_outcomes()
        producer = Producer({"bootstrap.servers": self.servers, "message.max.bytes": 10**9, "log_level": 0})
        columns = TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        begun_s = time.monotonic()
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("", total=len(pictures.names))
            for name in pictures.names:
                value = self._pack(name, pictures)
                if value is None:
                    continue
                while self._is_far_ahead(len(value)):
                    self._receive(consumer)
                    progress.update(bar, completed=self.outcomes)
                self._publish(producer, name, value)
            while self._ahead:
                self._receive(consumer)
                progress.update(bar, completed=self.outcomes)
        self.images_per_second = len(self.embedded) / (time.monotonic() - begun_s)
        consumer.close()

    @property
    def outcomes(self) -> int:
        """Return how many outcomes have come back."""
        return len(self.embedded) + len(self.rejected)

    def _pack(self, name: str, pictures: Pictures) -> bytes | None:
        """Return the record of a picture, None where it can't be read."""
        try:
            return pack_document(name, fitting(pictures.read(name)))
        except (OSError, ValueError) as error:
            self.rejected[name] = f"not published: {error}"
            return None

    def _is_far_ahead(self, next_bytes: int) -> bool:
        """Say whether the next record has to wait; one alone never does."""
        ahead_bytes = sum(self._ahead.values()) + next_bytes
        return bool(self._ahead) and (len(self._ahead) >= _AHEAD_RECORDS or ahead_bytes > _AHEAD_BYTES)

    def _publish(self, producer: Producer, name: str, value: bytes) -> None:
        producer.produce(INPUT, key=name.encode(), value=value)
        producer.poll(0)
        self._ahead[name] = len(value)
        self._heard_s = time.monotonic()  # making large pictures smaller is no silence of the worker

    def _read_outcomes(self) -> Consumer:
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "clip-demo-reader", "log_level": 0})
        found = consumer.list_topics(timeout=10).topics
        consumer.assign(
            [
                TopicPartition(topic, partition, OFFSET_BEGINNING)
                for topic in (OUTPUT, DEAD_LETTERS)
                for partition in found[topic].partitions
            ]
        )
        return consumer

    def _receive(self, consumer: Consumer) -> None:
        """Take one outcome, if there is one. Raises: `ClickException` where none comes any more."""
        message = consumer.poll(_POLL_S)
        if message is None or message.error() is not None:
            if self.worker.process.poll() is not None or time.monotonic() - self._heard_s > _SILENCE_S:
                raise self.worker.failure()
            return
        self._heard_s = time.monotonic()
        name = (message.key() or b"").decode()
        self._ahead.pop(name, None)
        if message.topic() == OUTPUT:
            record = read_embedding(message.value() or b"")
            if record.embedding is not None and record.origin is not None:
                self.embedded[name] = record.embedding
                self.model = record.origin.model
        else:
            headers: dict[str, bytes] = dict(message.headers() or [])  # type: ignore[arg-type]  # pairs with bytes
            self.rejected[name] = f"{headers['dlq.reason'].decode()}: {headers['dlq.detail'].decode()}"
