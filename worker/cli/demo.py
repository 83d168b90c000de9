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

from schemas.document import pack_document
from schemas.embedding import read_embedding
from worker.cli.embedded import DEAD_LETTERS, INPUT, OUTPUT, WorkerProcess, mock_broker, running_worker
from worker.cli.pictures import Pictures, bundled_pictures, folder_pictures
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
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
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
    try:
        pictures = bundled_pictures() if folder is None else folder_pictures(folder)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    with (
        TemporaryDirectory(prefix="clip-demo-") as scratch,
        mock_broker() as servers,
        running_worker(console, servers, Path(scratch) / "worker.log") as (worker, warning),
    ):
        run = _Run(servers, worker)
        run.embed(console, pictures)
        worker.stop()
    _show(console, pictures, run, warning, output)


def _show(console: Console, pictures: Pictures, run: "_Run", warning: str | None, output: Path) -> None:
    """Print the table and write the page."""
    for name, said in list(run.rejected.items())[:_REJECTIONS_SHOWN]:
        console.print(f"[yellow]not embedded[/] {name}: {said}", highlight=False)
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
    write_page(
        output,
        neighbour_rows(shown, indices, similarities),
        pictures.read,
        title="Nearest neighbours by CLIP embedding",
        facts=facts,
        warning=warning,
        limit=_PAGE_ROWS,
    )
    if warning is not None:
        console.print(Panel(warning, style="bold white on red"))
    console.print(
        f"{len(shown)} images through Kafka at [bold]{run.images_per_second:.1f} images/s[/]; "
        f"not embedded: {len(run.rejected)}; model {facts['Model']}",
        highlight=False,
    )
    console.print(f"The page with the pictures: [bold]{output.resolve().as_uri()}[/]", soft_wrap=True)


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
                while self._is_far_ahead():
                    self._receive(consumer)
                    progress.update(bar, completed=self.outcomes)
                self._publish(producer, name, pictures)
            while self._ahead:
                self._receive(consumer)
                progress.update(bar, completed=self.outcomes)
        self.images_per_second = len(self.embedded) / (time.monotonic() - begun_s)
        consumer.close()

    @property
    def outcomes(self) -> int:
        """Return how many outcomes have come back."""
        return len(self.embedded) + len(self.rejected)

    def _is_far_ahead(self) -> bool:
        return len(self._ahead) >= _AHEAD_RECORDS or sum(self._ahead.values()) >= _AHEAD_BYTES

    def _publish(self, producer: Producer, name: str, pictures: Pictures) -> None:
        try:
            value = pack_document(name, pictures.read(name))
        except (OSError, ValueError) as error:
            self.rejected[name] = f"not published: {error}"
            return
        producer.produce(INPUT, key=name.encode(), value=value)
        producer.poll(0)
        self._ahead[name] = len(value)

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
