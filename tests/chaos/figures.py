"""Figures of workers on the cluster: recovery, partitions that stay, memory, and what exactly once costs.

Times are those at which the brokers wrote the outputs, which they stamp; memory is Linux's account of the process.
"""

import json
import re
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import msgpack
import numpy as np

from tests.broker.instant_worker import DELAY, MODEL_INPUT
from tests.broker.kafka import Sent, Topics, produce, read_each
from tests.broker.processes import Worker, launch, started_worker
from tests.chaos.cluster import NODES, Cluster
from tests.chaos.driver import IN_FLIGHT, PARTITIONS, SESSION_S, Say, flags, make_topics
from tests.chaos.forks import launch_fork
from tests.chaos.stream import Stream
from tests.chaos.verifier import Delivery, Outcome, Place, read_log
from tests.chaos.watch import Watch

IN_TIME_S = 120
MAX_BATCH = 8  # of the encoder
CHECKPOINT_S = 1.0  # the worker's default
ALONE_S = 4
RATE = 60  # records a second: a machine of two cores is busy with four times as many, and then a backlog is measured
REACTION_S = 6.0  # of the group, beyond the session timeout where that is what has to pass

DEVICE_S = 0.1  # a batch of 8: the device is the limit, and not the cores that three brokers share with the worker
LARGE_PARTITIONS = 50
LARGE_BYTES = 4_000_000
SLOW_S = 1.0

_MIB = 2**20
_RESTING_MS = 300  # what was under way when a worker was killed is written by then


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured beside what it may be."""

    name: str
    value: str
    bound: str
    holds: bool


def recovery(cluster: Cluster, rounds: int, say: Say) -> Sequence[Figure]:
    """Let a second worker join and be killed, again and again, while records are produced."""
    joined_s, killed_s, quiet_gaps_s, gaps_s = [], [], [], []
    for _ in range(rounds):
        topics = make_topics(cluster)
        with _worker(cluster, topics) as one:
            one.wait_until(lambda: _owned(one) == PARTITIONS, IN_TIME_S, "one has all")
            # Not before: of a backlog one partition is done after the other.
            with _streaming(cluster, topics):
                one.wait_until(lambda: _images(one) > RATE, IN_TIME_S, "one produces")
                alone_ms, goal = _now_ms(), _images(one) + ALONE_S * RATE
                one.wait_until(lambda goal=goal: _images(one) > goal, IN_TIME_S, "one goes on")  # type: ignore[misc]
                joining_ms = _now_ms()
                with _worker(cluster, topics) as other:
                    other.wait_until(lambda: _images(other) > RATE, IN_TIME_S, "both produce")
                    moved, assigned_ms = _assignment(other)
                    other.kill()
                    killed_ms = _now_ms()
                    one.wait_until(lambda: _owned(one) == PARTITIONS, IN_TIME_S, "the survivor has all")
                    goal = _images(one) + 8 * RATE
                    one.wait_until(lambda goal=goal: _images(one) > goal, IN_TIME_S, "the survivor produces")  # type: ignore[misc]
        outcomes, sent_ms = read_log(cluster, topics, (), {}).outcomes, _sent_ms(cluster, topics)
        of_moved = sorted(it.appended_ms for it in outcomes if it.place[0] in moved)
        joined_s.append((_first_after(of_moved, assigned_ms) - joining_ms) / 1000)
        killed_s.append((_first_after(of_moved, killed_ms + _RESTING_MS) - killed_ms) / 1000)
        of_staying = [it for it in outcomes if it.place[0] not in moved]
        quiet_gaps_s.append(_longest_gap_s(of_staying, sent_ms, alone_ms, joining_ms))
        gaps_s.append(_longest_gap_s(of_staying, sent_ms, joining_ms, killed_ms))
        say(
            f"both produced after {joined_s[-1]:.1f} s, gap {gaps_s[-1]:.2f} s and {quiet_gaps_s[-1]:.2f} s before; "
            f"recovered in {killed_s[-1]:.1f} s"
        )
    return (
        _median_figure("from SIGKILL to the survivors' first output", killed_s, SESSION_S + REACTION_S),
        _median_figure("from a worker's start to both producing", joined_s, REACTION_S),
        _median_figure("longest gap of partitions that stay", gaps_s, CHECKPOINT_S),
        _median_figure("the same without a rebalance, for comparison", quiet_gaps_s, CHECKPOINT_S),
    )


def throughput(cluster: Cluster, records: int, say: Say) -> Sequence[Figure]:
    """Let one worker do the same backlog with either guarantee, while the device is the limit."""
    at_least_once, exactly_once = _rate(cluster, "at-least-once", records), _rate(cluster, "exactly-once", records)
    share = exactly_once / at_least_once
    shown = f"{exactly_once:.0f} of {at_least_once:.0f} records/s, {share:.3f}"
    say(shown)
    return (Figure("throughput, exactly-once of at-least-once", shown, "at least 0.95", share >= 0.95),)


def memory_of_large_records(cluster: Cluster, records: int, say: Say) -> Sequence[Figure]:
    """Let a worker with a slow model take in 4 MB records of 50 partitions."""
    topics = make_topics(cluster, LARGE_PARTITIONS, replicas=1)
    side = int((LARGE_BYTES / 3) ** 0.5)
    pixels = {"dtype": "uint8", "shape": [side, side, 3], "data": np.zeros((side, side, 3), np.uint8).tobytes()}
    value = bytes(msgpack.packb({"id": "large", "blob": pixels}))
    with started_worker(cluster, topics, *flags("at-least-once"), env={DELAY: str(SLOW_S)}, launch=launch) as worker:
        worker.wait_until_ready()
        base = _memory(worker, "VmRSS")
        sent = (Sent(None, value, partition=number % LARGE_PARTITIONS) for number in range(records))
        produce(cluster.bootstrap_servers, topics.input, sent)
        worker.wait_until(lambda: _images(worker) >= records, IN_TIME_S, "all is done")
        peak = _memory(worker, "VmHWM")
    bound = base + _most_held(len(value), threads=2)
    say(f"peak {peak / _MIB:.0f} MiB, base {base / _MIB:.0f} MiB, formula {bound / _MIB:.0f} MiB")
    shown = f"{peak / _MIB:.0f} MiB, {base / _MIB:.0f} of it when idle"
    limit = f"at most {bound / _MIB:.0f} MiB + 15 %"
    return (Figure("peak memory with 4 MB records", shown, limit, peak <= 1.15 * bound),)


def memory_of_small_records(cluster: Cluster, records: int, say: Say) -> Sequence[Figure]:
    """Let a worker do many small records with headers; a tenth of them warms it up."""
    topics = make_topics(cluster)
    stream, watch = Stream(cluster, topics.input, 0), Watch(cluster, topics)
    with started_worker(cluster, topics, *flags("at-least-once"), launch=launch) as worker:
        worker.wait_until_ready()
        sizes = []
        for _ in range(10):
            stream.send(records // 10, 0)
            stream.finish()
            worker.wait_until(watch.everything_is_committed, IN_TIME_S, "all is committed")
            sizes.append(_memory(worker, "VmRSS"))
            say(f"{stream.sent} records: {sizes[-1] / _MIB:.1f} MiB")
    growth = sizes[-1] / sizes[0] - 1
    shown = f"{sizes[0] / _MIB:.0f} to {sizes[-1] / _MIB:.0f} MiB, {growth:+.1%}"
    return (Figure(f"growth of memory over {records} records", shown, "less than 2 %", growth < 0.02),)


@contextmanager
def _streaming(cluster: Cluster, topics: Topics) -> Iterator[None]:
    """Produce at `RATE` meanwhile."""
    stream, finished = Stream(cluster, topics.input, 0), threading.Event()

    def send() -> None:
        while not finished.is_set():
            stream.send(RATE // 4, 0.25)
        stream.finish()

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            yield
        finally:
            finished.set()
            sending.result()


def _worker(
    cluster: Cluster, topics: Topics, delivery: Delivery = "at-least-once", device_s: float = 0.0
) -> AbstractContextManager[Worker]:
    own = (*flags(delivery), "--checkpoint-interval-s", str(CHECKPOINT_S))
    return started_worker(cluster, topics, *own, env={DELAY: str(device_s)}, launch=launch_fork)


def _rate(cluster: Cluster, delivery: Delivery, records: int) -> float:
    topics = make_topics(cluster)
    stream = Stream(cluster, topics.input, 0)
    stream.send(records, 0)
    stream.finish()
    watch = Watch(cluster, topics)
    with _worker(cluster, topics, delivery, DEVICE_S) as worker:
        worker.wait_until(watch.everything_is_committed, IN_TIME_S, "all is committed")
    times = [outcome.appended_ms for outcome in read_log(cluster, topics, (), {}).outcomes]
    return len(times) / (max(times) - min(times)) * 1000


def _most_held(record_bytes: int, threads: int) -> int:
    """Return the README's formula, less the model: see "Memory"."""
    fetched, in_flight = (64 + NODES * 16) * _MIB, 256 * _MIB + record_bytes
    prepared = (IN_FLIGHT + MAX_BATCH * 4) * 3 * MODEL_INPUT.size**2
    decoded = threads * 2 * record_bytes
    return fetched + in_flight + prepared + decoded


def _memory(worker: Worker, name: str) -> int:
    status = Path(f"/proc/{worker.pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _images(worker: Worker) -> float:
    return worker.metric("clip_worker_images_total")


def _owned(worker: Worker) -> float:
    return worker.metric("clip_worker_assigned_partitions")


def _assignment(worker: Worker) -> tuple[set[int], int]:
    """Return the partitions that a worker has got, and when: its log says it."""
    lines = [json.loads(line) for line in worker.log.splitlines()]
    assigned = [line for line in lines if re.match(r"assigned \[\d", line["message"])]
    partitions = {int(number) for line in assigned for number in re.findall(r"\d+", line["message"].split("]")[0])}
    return partitions, round(datetime.fromisoformat(assigned[0]["timestamp"]).timestamp() * 1000)


def _first_after(times_ms: Sequence[int], moment_ms: int) -> int:
    after_ms = [time_ms for time_ms in times_ms if time_ms > moment_ms]
    assert after_ms, "nothing was written after that moment"
    return after_ms[0]


def _sent_ms(cluster: Cluster, topics: Topics) -> Mapping[Place, int]:
    """Return when each input record was made."""
    records = read_each(cluster.bootstrap_servers, topics.input)
    return {(it.partition(), it.offset()): it.timestamp()[1] for it in records}  # type: ignore[misc]


def _longest_gap_s(outcomes: Iterable[Outcome], sent_ms: Mapping[Place, int], from_ms: int, to_ms: int) -> float:
    """Return for how long a partition had records and gave no outcome, of what was sent in that time."""
    of: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for outcome in outcomes:
        if from_ms <= sent_ms[outcome.place] <= to_ms:
            of[outcome.place[0]].append((outcome.appended_ms, sent_ms[outcome.place]))
    waits_ms = (
        appended_ms - max(before_ms, made_ms)
        for times in of.values()
        for (before_ms, _), (appended_ms, made_ms) in pairwise(sorted(times))
    )
    return max(waits_ms) / 1000


def _median_figure(name: str, values_s: Sequence[float], limit_s: float) -> Figure:
    median_s = statistics.median(values_s)
    shown = f"{median_s:.2f} s, from {min(values_s):.2f} to {max(values_s):.2f} in {len(values_s)} rounds"
    return Figure(name, shown, f"median at most {limit_s:g} s", median_s <= limit_s)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
