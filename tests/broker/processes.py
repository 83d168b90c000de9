"""A worker as a process of its own, as it would run anywhere, with its log in a file."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Protocol

from prometheus_client.parser import text_string_to_metric_families

from tests.broker.kafka import Brokers, Topics, wait_until

INSTANT = ("tests.broker.instant_worker",)
REAL = ("worker", "run")

START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 30
ANSWER_TIMEOUT_S = 5

_ROOT = Path(__file__).parents[2]
_LAST_LINES = 40


class Process(Protocol):
    """What a worker runs in; see `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...

    def wait(self) -> int: ...


Launch = Callable[[Sequence[str], Path, Mapping[str, str]], Process]
"""Starts a process: the module and its arguments, a file for what it writes, and variables beside this process's."""


class Worker:
    """A started worker. What it waits for in vain, or as a dead process, is an `AssertionError`."""

    def __init__(self, process: Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, None while it lives."""
        return self._process.poll()

    @property
    def log(self) -> str:
        """Everything that it has written until now, to standard output and to standard error."""
        return self._log.read_text(errors="replace")

    @property
    def port(self) -> int:
        """The port that it says it listens on."""
        self.wait_until_it_says("http on port ")
        found = re.search(r"http on port (\d+)", self.log)
        assert found is not None
        return int(found[1])

    def wait_until_it_says(self, text: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for a text in the log."""
        self.wait_until(lambda: text in self.log, timeout_s, f"the log says {text!r}")

    def wait_until_ready(self) -> None:
        """Wait until /readyz agrees."""
        port = self.port
        self.wait_until(lambda: _get(port, "/readyz")[0] == 200, START_TIMEOUT_S, "ready")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for a condition that only a living worker can bring about."""

        def holds() -> bool:
            return condition() or self._is_dead()

        wait_until(holds, timeout_s, what)
        assert condition(), f"the worker ended with {self.exit_code} before: {what}"

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and the text of a page."""
        return _get(self.port, path)

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a sample, by its full name."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        assert len(found) == 1, f"{len(found)} samples {name} {labels}"
        return found[0]

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for the end and return the exit code."""
        wait_until(self._is_dead, timeout_s, "the worker's end")
        return self._process.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Send a signal, wait for the end and return the exit code."""
        self.send(number)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """End it at once, if it is still there."""
        if not self._is_dead():
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def last_words(self) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.splitlines()[-_LAST_LINES:])

    def _is_dead(self) -> bool:
        return self._process.poll() is not None


def group_of(topics: Topics) -> str:
    """Return the consumer group of the workers on these topics."""
    return f"group-of-{topics.input}"


def launch(command: Sequence[str], log: Path, env: Mapping[str, str]) -> Process:
    """Start a module as a new process of Python."""
    with log.open("wb") as file:
        return subprocess.Popen(
            (sys.executable, "-m", *command),
            cwd=_ROOT,
            env=_environment() | dict(env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def started_worker(
    kafka: Brokers,
    topics: Topics,
    *flags: str,
    module: tuple[str, ...] = INSTANT,
    env: Mapping[str, str] | None = None,
    launch: Launch = launch,
) -> Iterator[Worker]:
    """Start a worker and kill it at the end; what fails meanwhile is told with the last lines of its log.

    `flags` come after the ones that every test's worker has, and win.
    """
    given = (
        *("--bootstrap-servers", kafka.bootstrap_servers, "--group-id", group_of(topics)),
        *("--input-topic", topics.input, "--output-topic", topics.output),
        *("--dead-letter-topic", topics.dead_letters),
        *("--http-host", "127.0.0.1", "--http-port", "0", "--log-format", "json", "--prepare-threads", "2"),
    )
    with tempfile.TemporaryDirectory(prefix="worker-") as folder:
        log = Path(folder) / "log"
        process = launch((*module, *given, *flags), log, env or {})
        worker = Worker(process, log)
        try:
            yield worker
        except BaseException as error:
            error.add_note(f"the log of worker {worker.pid} ends with:\n{worker.last_words()}")
            raise
        finally:
            worker.kill()


@contextmanager
def running_worker(
    kafka: Brokers, topics: Topics, *flags: str, module: tuple[str, ...] = INSTANT, env: Mapping[str, str] | None = None
) -> Iterator[Worker]:
    """Start a worker, wait until it is ready, and kill it at the end."""
    with started_worker(kafka, topics, *flags, module=module, env=env) as worker:
        worker.wait_until_ready()
        yield worker


def _environment() -> dict[str, str]:
    """Return this process's, less the settings of a worker; with a place for bytecode where none may be beside it.

    Importing torch takes three times as long from source, and many workers are started.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):
        environment["PYTHONPYCACHEPREFIX"] = _bytecode().name
    return environment


@cache
def _bytecode() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="bytecode-")  # deleted at this process's end


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_TIMEOUT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
