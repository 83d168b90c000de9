"""The start of a worker as a process: from exec to ready, with ViT-B/32 from a local file on a real broker."""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.broker.kafka import Kafka, Topics, create_topic, start_kafka
from tests.broker.processes import REAL, started_worker
from worker.architectures import find_architecture

PART = "start"
MODEL, ACTIVATION = "ViT-B/32", "quick_gelu"
_MOST_S = 8.0
_SMOKE_STARTS = 1
_SMOKE_MODEL = "ViT-S-32-alt"

# What the log says at the end of each step.
STEPS: Mapping[str, str] = {
    "imports and settings": "http on port ",
    "topics of the broker": "topics and their partitions",
    "weights": "weights ",
    "device, warm-up and self-test": "model ",
    "group and assignment": "assigned ",
}


def start(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield the seconds of each step and of all; one start before them puts the files into the cache."""
    whole = size.scale >= 1
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        say(f"writing weights of {MODEL if whole else _SMOKE_MODEL}")
        flags = _write_weights(MODEL if whole else _SMOKE_MODEL, Path(folder) / "seeded.safetensors")
        broker = start_kafka(Path(folder))
        try:
            _start(broker, flags)
            starts = []
            for number in range(size.rounds if whole else _SMOKE_STARTS):
                starts.append(_start(broker, flags))
                say(f"start {number + 1}: ready after {starts[-1]['exec to ready']:.1f} s")
        finally:
            broker.close()
    for step in starts[0]:
        yield Measurement(PART, step, "s", [one[step] for one in starts])
    median = Measurement(PART, "", "s", [one["exec to ready"] for one in starts]).median
    yield Bound(PART, "seconds from exec to ready", [median], at_most=_MOST_S if whole else None)


def _write_weights(model: str, file: Path) -> Sequence[str]:
    """Write an image tower with seeded weights, and return the flags that name it."""
    torch.manual_seed(0)
    tower = find_architecture(model).build(None)
    save_file({f"visual.{name}": tensor.contiguous() for name, tensor in tower.state_dict().items()}, file)
    return ("--model", model, "--weights", str(file), "--activation", ACTIVATION, "--device", "cpu")


def _start(broker: Kafka, flags: Sequence[str]) -> Mapping[str, float]:
    """Start a worker, and return the seconds of each step and of all."""
    topics = _topics(broker)
    begun_s = time.time()
    with started_worker(broker, topics, *flags, module=REAL) as worker:
        worker.wait_until_ready()
        ready_s = time.time()
        times_s = list(_step_ends(worker.log))
        worker.stop()
    ends_s = [begun_s, *times_s]
    took = {step: end_s - before_s for step, (before_s, end_s) in zip(STEPS, pairwise(ends_s), strict=True)}
    return took | {"until ready is seen": ready_s - ends_s[-1], "exec to ready": ready_s - begun_s}


def _step_ends(log: str) -> Iterator[float]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    for beginning in STEPS.values():
        said = next(line for line in lines if re.match(re.escape(beginning), line["message"]))
        yield datetime.fromisoformat(said["timestamp"]).timestamp()


def _topics(broker: Kafka) -> Topics:
    topics = Topics.named_anew()
    for topic in (topics.input, topics.output, topics.dead_letters):
        create_topic(broker.bootstrap_servers, topic, 4, {"max.message.bytes": str(32 * 2**20)})
    return topics
