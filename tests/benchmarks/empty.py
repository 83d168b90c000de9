"""An empty pipeline: the worker's own `Source` and `Delivery` with nothing between them, in a loop of its own.

What it costs is Kafka in and out, with the packing of an embedding of zeros: no record is unpacked.
"""

import gc
import time
from collections.abc import Sequence

import click
import numpy as np

from schemas.document import Document
from schemas.embedding import Origin
from tests.benchmarks.simulated import name_threads
from tests.broker.instant_worker import DIMENSIONS
from worker.cli.options import settings_options
from worker.clients import client_id, consumer_properties, producer_properties
from worker.delivery import AtLeastOnce
from worker.outbound import Outbox
from worker.records import Embedded, Record, TopicLimits
from worker.settings import Settings, read_settings
from worker.source import Source
from worker.system import prefer_throughput

MODULE = (__name__,)

_IDLE_POLL_S = 0.1
_TAKEN_AT_ONCE = 64


class _EmptyPipeline:
    def __init__(self, settings: Settings) -> None:
        origin = Origin("ViT-B/32:empty:000000000000", settings.preprocessing, normalized=False)
        topics = (settings.output_topic, settings.dead_letter_topic)
        outbox = Outbox(*topics, origin, settings.group_id, client_id())
        self._source = Source(consumer_properties(settings), settings.input_topic, lambda _: None)
        self._delivery = AtLeastOnce(
            producer_properties(settings),
            dict.fromkeys(topics, TopicLimits()),
            outbox,
            self._source.commit,
            lambda _: None,
        )
        self._interval_s = settings.checkpoint_interval_s
        self._document = Document("picture", image=memoryview(b"-"))
        self._embeddings = np.zeros((1, DIMENSIONS), np.float32)
        self._positions: dict[int, int] = {}
        self._owned = 0
        self._due_s = 0.0

    def assigned(self, partitions: Sequence[int]) -> None:
        self._owned += len(partitions)
        print(f"own {self._owned} partitions", flush=True)  # noqa: T201 - as the worker's log does

    def revoked(self, partitions: Sequence[int]) -> None:
        raise NotImplementedError

    def run(self) -> None:
        self._source.subscribe(self)
        while True:
            for _ in range(_TAKEN_AT_ONCE):
                record = self._source.poll(self._patience_s())
                if record is None:
                    break
                self._send(record)
            self._delivery.poll()
            if self._positions and time.monotonic() >= self._due_s and self._delivery.commit(self._positions) is None:
                self._positions = {}
                self._due_s = time.monotonic() + self._interval_s

    def _patience_s(self) -> float:
        return min(_IDLE_POLL_S, max(0.0, self._due_s - time.monotonic())) if self._positions else _IDLE_POLL_S

    def _send(self, record: Record) -> None:
        while not self._delivery.send(Embedded(record, self._document, self._embeddings)):
            self._delivery.commit(self._positions)
        self._positions[record.partition] = record.offset + 1


@click.command()
@settings_options()
def command(**flags: object) -> None:
    """Run it."""
    prefer_throughput()
    pipeline = _EmptyPipeline(read_settings(flags))
    name_threads()
    gc.freeze()
    pipeline.run()
