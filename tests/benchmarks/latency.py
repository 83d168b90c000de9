"""From produce to consume with the real model on the CPU: one record at a time, and at open-loop arrivals.

Producer and consumer are in this process, and neither lingers. A record's time is split by the system's monotonic
clock, which is one for all processes of a machine, at two places in the worker (`tests.benchmarks.stamped`):
in (produced until a prepare thread has it), preparation, wait and model (until it is handed to the producer), out.
Open loop means that records come when they come (Poisson, seeded), however many are in flight.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.document import pack_document
from tests.benchmarks import stamped
from tests.benchmarks.pictures import jpeg
from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.benchmarks.stage import IN_TIME_S, PARTITIONS, Crew, Stage, opened
from tests.benchmarks.timing import ratios
from tests.benchmarks.whole import CPU_BATCH, WEIGHTS
from tests.broker.kafka import end_offsets

PART = "latency"
LOADS = (0.25, 0.50, 0.80)

_JPEG = jpeg(500, 375)
_VALUE = pack_document("picture", _JPEG)
_ALLOWED_S = 0.010
_SINGLES = 12
_PAUSE_S = 0.05
_SETTLED_S = 0.5  # the first fetches are under way
_LOAD_S = 12.0
_CAPACITY_RECORDS = 60
_LEAST_RECORDS = 5
_STAGES = ("in", "preparation", "wait and model", "out")
_PERCENTILES = {"p95": 95, "p99": 99, "max": 100}


@dataclass(frozen=True, slots=True)
class Trip:
    """When a record was produced, passed the worker's stages, and was consumed, in seconds."""

    sent_s: float
    preparing_s: float
    prepared_s: float
    handed_on_s: float
    consumed_s: float

    @property
    def seconds(self) -> float:
        return self.consumed_s - self.sent_s

    @property
    def stages_s(self) -> Mapping[str, float]:
        times = (self.sent_s, self.preparing_s, self.prepared_s, self.handed_on_s, self.consumed_s)
        return {name: end - begin for name, begin, end in zip(_STAGES, times, times[1:], strict=False)}


def latency(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Measure single records, then each load, round after round."""
    with opened(size.scale) as stage:
        yield from latency_on(stage, size, say)


def latency_on(stage: Stage, size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    rounds: defaultdict[str, list[list[Trip]]] = defaultdict(list)
    capacities: list[float] = []
    least_s: list[float] = []
    with ExitStack() as stack:
        stamps = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "stamps"
        crew = stack.enter_context(stage.crew(stamped.MODULE, *WEIGHTS, env={stamped.STAMPS: str(stamps)}))
        crew.warm_up(_VALUE)
        client = stack.enter_context(Client(stage, crew, stamps))
        for number in range(size.rounds):
            least_s.append(stage.alone.preparation_s(_JPEG) + stage.alone.model_s(1))
            capacities.append(crew.round(_VALUE, max(CPU_BATCH, round(_CAPACITY_RECORDS * size.scale))).rate)
            with crew.working():
                rounds["one at a time"].append(client.one_at_a_time(_records(_SINGLES * size.scale)))
                for load in LOADS:
                    arrivals_s = poisson(capacities[-1] * load, _LOAD_S * size.scale, seed=number)
                    rounds[_name(load)].append(client.at(arrivals_s))
                crew.wait_until_committed()
    say("p95, p99 and max are of the records of all rounds together")
    yield Measurement(PART, "capacity", "images/s", capacities)
    yield Measurement(PART, "preparation and model, one image, alone", "ms", [each * 1000 for each in least_s])
    for name, trips in rounds.items():
        yield from _results(name, trips)
    idle_s = [_percentile(trips, 50) for trips in rounds["one at a time"]]
    allowed_s = [each + _ALLOWED_S for each in least_s]
    yield Bound(PART, "p50 of single records, of preparation + model + 10 ms", ratios(idle_s, allowed_s), at_most=1.0)
    half = _all(rounds[_name(0.50)])  # one round alone has too few
    yield Bound(PART, "p99 at 50 % load, of its p50", [_percentile(half, 99) / _percentile(half, 50)], at_most=3.0)


def poisson(rate: float, seconds: float, seed: int) -> Sequence[float]:
    """Return when records come, in seconds from the begin."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(_LEAST_RECORDS, round(rate * seconds)))
    return [float(each) for each in np.cumsum(gaps)]


class Client:
    """Produces records and consumes their embeddings, in one thread."""

    def __init__(self, stage: Stage, crew: Crew, stamps: Path) -> None:
        self._servers = stage.kafka.bootstrap_servers
        servers = {"bootstrap.servers": self._servers, "log_level": 0}
        self._crew = crew
        self._stamps = stamps
        self._producer = Producer({**servers, "linger.ms": 0, "acks": "all"})
        self._consumer = Consumer({**servers, "group.id": "none", "isolation.level": "read_committed"})
        self._sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def one_at_a_time(self, records: int) -> list[Trip]:
        """Send the next record a moment after the one before was consumed."""
        self._begin()
        trips: list[Trip] = []
        for _ in range(records):
            trips += self._drive([_PAUSE_S])
        return trips

    def at(self, arrivals_s: Sequence[float]) -> list[Trip]:
        """Send the records at their times from now, and wait until all of them are consumed."""
        self._begin()
        return self._drive(arrivals_s)

    def _begin(self) -> None:
        """Consume only what comes from now on."""
        topic = self._crew.topics.output
        ends = end_offsets(self._servers, topic)
        self._consumer.assign([TopicPartition(topic, *place) for place in ends.items()])
        assert self._consumer.poll(_SETTLED_S) is None, "an output of before"

    def _drive(self, arrivals_s: Sequence[float]) -> list[Trip]:
        begun_s = time.monotonic()
        due_s = [begun_s + each for each in reversed(arrivals_s)]
        sent_s: dict[bytes, float] = {}
        consumed_s: dict[bytes, float] = {}
        while len(consumed_s) < len(arrivals_s):
            now_s = time.monotonic()
            assert now_s < begun_s + arrivals_s[-1] + IN_TIME_S, "an embedding is missing"
            if due_s and now_s >= due_s[-1]:
                sent_s[self._send()] = due_s.pop()
                continue
            self._producer.poll(0)
            message = self._consumer.poll(max(0.0, due_s[-1] - now_s) if due_s else 0.1)
            if message is not None:
                consumed_s[message.key() or b""] = time.monotonic()
        return self._trips(sent_s, consumed_s)

    def _send(self) -> bytes:
        key = b"sent-%d" % self._sent
        partition = self._sent % PARTITIONS
        self._producer.produce(self._crew.topics.input, _VALUE, key, partition=partition)
        self._crew.note_sent(partition)
        self._sent += 1
        return key

    def _trips(self, sent_s: Mapping[bytes, float], consumed_s: Mapping[bytes, float]) -> list[Trip]:
        passed: dict[bytes, dict[str, float]] = {key: {} for key in sent_s}
        for line in self._stamps.read_bytes().splitlines():
            key, stage, seconds = line.split()
            if key in passed:
                passed[key][stage.decode()] = float(seconds)
        return [
            Trip(sent_s[key], at[stamped.PREPARING], at[stamped.PREPARED], at[stamped.HANDED_ON], consumed_s[key])
            for key, at in passed.items()
        ]


def _results(name: str, rounds: Sequence[Sequence[Trip]]) -> Iterator[Result]:
    yield Measurement(PART, f"{name}: p50", "ms", [_percentile(trips, 50) * 1000 for trips in rounds])
    for percentile, number in _PERCENTILES.items():  # one round alone has too few records
        yield Measurement(PART, f"{name}: {percentile} of all", "ms", [_percentile(_all(rounds), number) * 1000])
    for stage in _STAGES:
        values = [median(trip.stages_s[stage] for trip in trips) * 1000 for trips in rounds]
        yield Measurement(PART, f"{name}: p50 of {stage}", "ms", values)


def _percentile(trips: Iterable[Trip], number: float) -> float:
    return float(np.percentile([trip.seconds for trip in trips], number))


def _all(rounds: Iterable[Sequence[Trip]]) -> list[Trip]:
    return [trip for trips in rounds for trip in trips]


def _records(count: float) -> int:
    return max(_LEAST_RECORDS, round(count))


def _name(load: float) -> str:
    return f"{load:.0%} load"
