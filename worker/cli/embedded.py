"""A broker inside this process, and the worker as a process of its own beside it.

The broker is librdkafka's mock cluster, which comes with confluent-kafka: no Java, no Docker.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

import click
from confluent_kafka import Producer
from rich.console import Console
from rich.panel import Panel

from worker.errors import WeightsError

INPUT, OUTPUT, DEAD_LETTERS = TOPICS = ("documents", "embeddings", "dead-letters")

UNTRAINED_WARNING = "UNTRAINED WEIGHTS: similarities are without meaning"  # one line of 80 columns
_UNTRAINED = "random"

_LOOPBACK = "127.0.0.1"

_START_S = 900.0  # a first start downloads the weights
_STOP_S = 60.0
_POLL_S = 0.05
_HUB_S = 5.0
_READY_S = 5.0
_LAST_LINES = 20


@contextmanager
def mock_broker() -> Iterator[str]:
    """Start librdkafka's mock cluster, make the topics, and give its address; it lives as long as its client."""
    cluster = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    for topic in TOPICS:
        cluster.list_topics(topic, timeout=10)  # the mock makes a topic that is asked for
    yield ",".join(f"{broker.host}:{broker.port}" for broker in cluster.list_topics(timeout=10).brokers.values())


@dataclass(slots=True)
class WorkerProcess:
    """`clip-worker run`, as it would run anywhere."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def wait_until_ready(self) -> None:
        """Return once it has joined its group. Raises: `WeightsError`, `ClickException` with its last words."""
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise self.failure()
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        connection = HTTPConnection(_LOOPBACK, self.port, timeout=_READY_S)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == HTTPStatus.OK
        except OSError:  # nobody listens yet
            return False
        finally:
            connection.close()

    def failure(self) -> Exception:
        """Return the error that says why it ended."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        if self.process.returncode == WeightsError.exit_code:
            return WeightsError(lines[-1].partition("WeightsError: ")[2])
        return click.ClickException("the worker failed:\n" + "\n".join(lines[-_LAST_LINES:]))

    def stop(self) -> None:
        """Ask it to stop, and see that it stops cleanly."""
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(_STOP_S) != 0:
            raise self.failure()


@contextmanager
def running_worker(console: Console, servers: str, log: Path) -> Iterator[WorkerProcess]:
    """Start the worker; where the weights can't be had, say so and start it with untrained ones."""
    environment = _environment()
    worker = _start(servers, environment, log)
    try:
        with console.status("the worker starts: loading the model, joining the group …"):
            try:
                worker.wait_until_ready()
            except WeightsError as error:
                if "WORKER_WEIGHTS" in environment:
                    raise
                console.print(str(error), style="yellow", markup=False, highlight=False)
                console.print(Panel(UNTRAINED_WARNING, style="bold white on red"))
                worker = _start(servers, environment | {"WORKER_WEIGHTS": _UNTRAINED}, log)
                worker.wait_until_ready()
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()


def is_untrained(model: str) -> bool:
    """Say whether the weights of a model, by its name in the records, are untrained."""
    return model.rpartition(":")[0].endswith(f":{_UNTRAINED}")


def _start(servers: str, environment: Mapping[str, str], log: Path) -> WorkerProcess:
    port = _free_port()
    flags = ["--bootstrap-servers", servers, "--group-id", "clip-demo", "--log-format", "text"]
    flags += ["--http-host", _LOOPBACK, "--http-port", str(port), "--traversal-paths", "r"]
    for name, topic in zip(("input", "output", "dead-letter"), TOPICS, strict=True):
        flags += [f"--{name}-topic", topic]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, with flags of our own
            [sys.executable, "-m", "worker", "run", *flags],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return WorkerProcess(process, port, log)


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


def _environment() -> dict[str, str]:
    """Return this environment, less what is meant for another broker; where the hub doesn't answer, it isn't asked."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_KAFKA__")}
    return environment if _hub_answers() else environment | {"HF_HUB_OFFLINE": "1"}


def _hub_answers() -> bool:
    from huggingface_hub.constants import ENDPOINT  # noqa: PLC0415

    try:
        urllib.request.urlopen(ENDPOINT, timeout=_HUB_S).close()  # noqa: S310 - https
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
