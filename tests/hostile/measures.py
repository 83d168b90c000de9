"""What a record costs a prepare thread: each in a process of its own, forked once everything is loaded and warm.

CPU is the process's own time, memory how far the peak of its resident memory (VmHWM) rises above where it began: both
with the copy of the record that is made on the way, and without the record itself. A forked process maps the libraries'
pages anew as it comes to them, as many as the system likes: it prepares a picture of every form before it begins.
"""

import ctypes
import gc
import json
import os
import resource
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from schemas.document import DocumentLimits, pack_document, parse_traversal
from tests.hostile.bombs import BOMBS, Bomb
from tests.unit.pictures_for_tests import FORMS, MAX_PIXELS, SIZE, geometry, model_input, photograph
from worker.images import Fast, Reference
from worker.prepare import Preparer
from worker.records import Record, Rejected

KINDS: Mapping[str, type[Fast] | type[Reference]] = {"fast": Fast, "reference": Reference}
MAX_CPU_MS = 50.0
MAX_MEMORY_MB = 50.0

_LIMITS = DocumentLimits(max_image_bytes=16 * 2**20, max_images=64)
_CPU_LIMIT_S = 60
_MEMORY_LIMIT = 4 * 2**30
_TRIES = 5  # what else the machine does can only add
_LIBC = ctypes.CDLL(None)
_CLEAR_REFS, _RESET_PEAK = Path("/proc/self/clear_refs"), "5"


@dataclass(frozen=True, slots=True)
class Cost:
    """`outcome` is a reason, or the name of another outcome."""

    bomb: str
    outcome: str
    detail: str
    cpu_ms: float
    memory_mb: float

    @property
    def is_small(self) -> bool:
        return self.cpu_ms < MAX_CPU_MS and self.memory_mb < MAX_MEMORY_MB


def measure_all(kind: str) -> Iterator[Cost]:
    preparer = Preparer(KINDS[kind](model_input(), geometry(), MAX_PIXELS), SIZE, parse_traversal("r,c"), _LIMITS)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for _ in range(2):
        _warm_up(preparer)
    gc.freeze()
    for bomb in BOMBS.values():
        yield _measure(preparer, bomb)


def _warm_up(preparer: Preparer) -> None:
    """Prepare a picture of every form: what is loaded and allocated once is nobody's cost."""
    for record in _harmless():
        preparer.prepare(record)


@cache
def _harmless() -> Sequence[Record]:
    small = photograph("chelsea").resize((64, 48))
    return [_record(pack_document("a", make(small))) for make in FORMS.values()]


def _record(value: bytes, bomb: Bomb | None = None) -> Record:
    return Record("documents", 0, 0, None, value, None, bomb.headers if bomb else ())


def _measure(preparer: Preparer, bomb: Bomb) -> Cost:
    record = _record(bomb.value(), bomb)
    for _ in range(_TRIES):
        cost = _measure_once(preparer, bomb.name, record)
        if cost.is_small:
            break
    return cost


def _measure_once(preparer: Preparer, name: str, record: Record) -> Cost:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _prepare_and_exit(preparer, name, record, write)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if not said:
        return Cost(name, f"no outcome; the process ended with {status}", "", float("inf"), float("inf"))
    return Cost(**json.loads(said))


def _prepare_and_exit(preparer: Preparer, name: str, record: Record, write: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_LIMIT_S, _CPU_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + _MEMORY_LIMIT,) * 2)
    try:
        _warm_up(preparer)
        _LIBC.malloc_trim(0)  # glibc keeps what is freed, and what is allocated in it would raise no peak
        _CLEAR_REFS.write_text(_RESET_PEAK)  # a child begins with the peak of its parent
        before, begun_s = _peak_bytes(), time.process_time()
        outcome = preparer.prepare(record)
        cpu_ms, memory_mb = (time.process_time() - begun_s) * 1e3, (_peak_bytes() - before) / 1e6
        said = (outcome.reason.value, outcome.detail) if isinstance(outcome, Rejected) else (type(outcome).__name__, "")
        os.write(write, json.dumps(asdict(Cost(name, *said, cpu_ms, memory_mb))).encode())
    finally:
        os._exit(0)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _peak_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
