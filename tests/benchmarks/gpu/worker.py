"""`python -m tests.benchmarks.gpu.worker`: one worker process on the device; in-process source, no Kafka.

The session is the worker's own: its loop, prepare threads, batcher and encoder, wired by `Sessions`. Records come
from a source that repeats a few without end, and outcomes go to a delivery that packs them and throws them away. For
each line on standard input, the name of a kind of picture, it works for as many rounds as asked for, and writes the
images/s of each as a line of JSON.
"""

import gc
import json
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import count

import click
import msgpack
from prometheus_client import CollectorRegistry

from schemas.embedding import Origin
from tests.benchmarks.gpu.machine import Machine
from tests.benchmarks.gpu.pictures import jpegs
from worker.activity import Activity
from worker.health import Health
from worker.loop import Loop, Times
from worker.metrics import Metrics
from worker.outbound import Outbox
from worker.records import Embedded, Outcome, Record
from worker.sessions import Sessions
from worker.settings import read_settings
from worker.system import prefer_throughput

_TIMES = Times(checkpoint_interval_s=1.0, checkpoint_records=10_000, drain_timeout_s=600.0, revoke_timeout_s=60.0)
_WARM_SHARE = 0.5  # of a round, before the first


class LoopedSource:
    """Repeats its records without end, as one partition."""

    def __init__(self, values: Sequence[bytes]) -> None:
        """Keep the values."""
        self._values = values
        self._offsets = count()

    def subscribe(self, listener: Loop) -> None:
        """Assign the one partition at once."""
        listener.assigned([0])

    def poll(self, timeout_s: float) -> Record:  # noqa: ARG002 - there is always a record
        """Return the next record."""
        offset = next(self._offsets)
        value = self._values[offset % len(self._values)]
        return Record("looped", 0, offset, b"key", value, timestamp_ms=None, headers=())

    def note_committed(self, positions: Mapping[int, int]) -> None:
        """Do nothing: nobody asks for the lag."""

    def rewind(self, positions: Mapping[int, int]) -> None:
        """Never happens without transactions."""

    def pause(self) -> None:
        """Do nothing: what isn't polled isn't there."""

    def resume(self) -> None:
        """Do nothing."""


class CountingDelivery:
    """Packs every outcome as it would be written, counts the embeddings, and keeps nothing."""

    def __init__(self, outbox: Outbox) -> None:
        """Begin at nothing."""
        self._outbox = outbox
        self.images = 0

    def open(self) -> bool:
        """Be ready."""
        return True

    def poll(self) -> None:
        """Have nothing to report."""

    def send(self, outcome: Outcome) -> bool:
        """Pack and count. Every picture is one that can be embedded."""
        if not isinstance(outcome, Embedded):
            raise TypeError(f"not embedded: {outcome}")
        self._outbox.outbound(outcome)
        self.images += len(outcome.embeddings)
        return True

    def hurry(self) -> None:
        """Do nothing."""

    def commit(self, positions: Mapping[int, int]) -> float | None:
        """Be done at once."""

    def abandon(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Rounds:
    """Says when to stop, and reads off at the end of each round how many images came out in it."""

    def __init__(self, delivery: CountingDelivery, rounds: int, round_s: float) -> None:
        """Begin the clock with the first image."""
        self._delivery = delivery
        self._rounds = rounds
        self._round_s = round_s
        self._next: tuple[float, float, int] | None = None  # when it ends, when it began, the images by then
        self.rates: list[float] = []

    def are_over(self) -> bool:
        """Return whether all rounds are; called by the loop, turn after turn."""
        now_s, images = time.perf_counter(), self._delivery.images
        if self._next is None:
            if images:
                self._next = (now_s + _WARM_SHARE * self._round_s, now_s, -1)
        elif now_s >= self._next[0] and images > self._next[2]:
            _, begun_s, before = self._next
            if before >= 0:
                self.rates.append((images - before) / (now_s - begun_s))
            self._next = (now_s + self._round_s, now_s, images)
        return len(self.rates) == self._rounds


@click.command()
@click.option("--device", required=True)
@click.option("--model", required=True)
@click.option("--precision", required=True)
@click.option("--decoder", required=True)
@click.option("--max-batch", type=int, required=True)
@click.option("--threads", type=int, required=True)
@click.option("--rounds", type=int, required=True)
@click.option("--round-s", type=float, required=True)
def main(rounds: int, round_s: float, threads: int, **flags: object) -> None:
    """Load, warm up, say ready, and measure what is asked for."""
    prefer_throughput()  # as the worker does
    machine = Machine(str(flags["device"]), str(flags["model"]))
    precision = str(flags["precision"])
    settings = read_settings(
        {
            "bootstrap_servers": "none:9092",
            "weights": "random",
            "prepare_threads": threads,
            "max_images_per_record": 1,  # so that no more than four batches are in flight
            **flags,
        }
    )
    metrics = Metrics(CollectorRegistry())
    sessions = Sessions(settings, machine.encoder(precision), metrics, Health(settings.stall_timeout_s))
    sessions.warm_up()
    gc.freeze()  # as the worker does
    _say("ready")
    for line in sys.stdin:
        _say(_measure(sessions, metrics, line.strip(), rounds, round_s))


def _measure(sessions: Sessions, metrics: Metrics, name: str, rounds: int, round_s: float) -> list[float]:
    values = [msgpack.packb({"id": f"picture-{number}", "blob": file}) for number, file in enumerate(jpegs(name))]
    origin = Origin("model", "fast", normalized=False)
    delivery = CountingDelivery(Outbox("embeddings", "dead-letters", origin, "group", "worker"))
    measured = Rounds(delivery, rounds, round_s)
    pipeline = sessions._start_pipeline()
    Loop(LoopedSource(values), pipeline, delivery, _TIMES, metrics, Activity("main")).run(measured.are_over)
    pipeline.close()
    pipeline.wait_for_threads(_TIMES.drain_timeout_s)
    return measured.rates


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
