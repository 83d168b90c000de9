"""Where threads' time goes, by py-spy from outside: samples of what is runnable, or of what holds the GIL.

py-spy reads another process's memory: it needs Linux's right to trace it, that is root, CAP_SYS_PTRACE, or
`/proc/sys/kernel/yama/ptrace_scope` at 0.
"""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.broker.kafka import wait_until

RATE_HZ = 200

_ATTACH_S = 20
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>[^():]+)(?::\d+)?\)")
_OURS = re.compile(r"(?:worker|schemas|tests)/")


@dataclass(frozen=True, slots=True)
class Stack:
    """Where a thread was: its name, and its frames from the outermost in, as `module.function`."""

    thread: str
    frames: tuple[tuple[str, str], ...]

    @property
    def step(self) -> str:
        """Return the module of ours that it was in: a module is one step of the flow."""
        ours = [module for module, _ in self.frames if _OURS.match(module)]
        return Path(ours[-1]).stem if ours else "other"

    @property
    def function(self) -> str:
        """Return the innermost function: the one whose own time it is, or that called native code."""
        if not self.frames:  # it wasn't in Python, or py-spy read it while it changed
            return "unknown"
        module, function = self.frames[-1]
        return f"{Path(module).stem}.{function}"


@dataclass(slots=True)
class Samples:
    """How many samples found a thread at a stack."""

    stacks: Counter[Stack] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        return sum(self.stacks.values()) / RATE_HZ

    def by_step(self) -> Mapping[tuple[str, str], float]:
        """Return seconds by thread and step."""
        return self._add_up(lambda stack: stack.step)

    def by_function(self) -> Mapping[tuple[str, str], float]:
        """Return seconds by thread and innermost function."""
        return self._add_up(lambda stack: stack.function)

    def _add_up(self, name: Callable[[Stack], str]) -> Mapping[tuple[str, str], float]:
        found: Counter[tuple[str, str]] = Counter()
        for stack, count in self.stacks.items():
            found[stack.thread, name(stack)] += count
        return {place: count / RATE_HZ for place, count in found.most_common()}


@contextmanager
def runnable(pid: int) -> Iterator[Samples]:
    """Sample which of Python's threads run on a core, or wait for one; the samples are there at the end."""
    with _recording(pid, ()) as samples:
        yield samples


@contextmanager
def holding_gil(pid: int) -> Iterator[Samples]:
    """Sample which thread holds the GIL."""
    with _recording(pid, ("--gil",)) as samples:
        yield samples


@contextmanager
def _recording(pid: int, options: Sequence[str]) -> Iterator[Samples]:
    samples = Samples()
    with tempfile.TemporaryDirectory(prefix="py-spy-") as folder:
        found, log = Path(folder) / "stacks", Path(folder) / "log"
        command = ("--pid", str(pid), "--rate", str(RATE_HZ), "--threads", "--nonblocking", "--format", "raw")
        with log.open("wb") as file:
            process = subprocess.Popen(
                (_program(), "record", *command, "--nolineno", "--output", str(found), *options),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(lambda: _is_sampling(process, log), _ATTACH_S, "py-spy samples")
            yield samples
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
        for line in found.read_text().splitlines() if found.exists() else ():
            stack, count = read_stack(line)
            samples.stacks[stack] += count  # two threads of one name may be at the same


def _program() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise RuntimeError("py-spy is not installed: `make setup` brings it")
    return program


def _is_sampling(process: "subprocess.Popen[bytes]", log: Path) -> bool:
    said = log.read_text(errors="replace")
    if process.poll() is not None:
        raise RuntimeError(
            "py-spy can't look into another process: it needs root, CAP_SYS_PTRACE, or "
            f"/proc/sys/kernel/yama/ptrace_scope at 0; it said: {said.strip() or 'nothing'}"
        )
    return "Sampling process" in said


def read_stack(line: str) -> tuple[Stack, int]:
    """Read `thread (123): name;function (file);function (file) 45`, the outermost function first."""
    text, _, count = line.rpartition(" ")
    thread, *frames = text.split(";")
    found = [_FRAME.fullmatch(frame) for frame in frames]
    return Stack(
        _thread(thread.partition(": ")[2]),
        tuple((frame["file"], frame["function"]) for frame in found if frame is not None),
    ), int(count)


def _thread(name: str) -> str:
    """Return one name for all threads that do the same: prepare-0 and prepare-1 are prepare."""
    return "main" if name == "MainThread" else re.sub(r"-\d+$", "", name)
