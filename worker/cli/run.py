"""`clip-worker run`: consume, embed, produce until SIGTERM or SIGINT."""

import faulthandler
import gc
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from threading import Event
from types import FrameType

import click
from confluent_kafka import KafkaException
from prometheus_client import CollectorRegistry

from worker.architectures import Activation
from worker.cli.options import settings_options
from worker.clients import admin_client, check_properties
from worker.encoder import Encoder
from worker.errors import SettingsError
from worker.health import Health, HealthServer, start_watchdog
from worker.logs import configure_logging
from worker.metrics import Metrics
from worker.records import TopicLimits
from worker.sessions import ReadyEncoder, Sessions
from worker.settings import Settings, read_settings
from worker.system import prefer_throughput
from worker.topics import LimitsQuestion, check_limits, find_topics
from worker.weights import load_model

log = logging.getLogger(__name__)

_CLOSE_S = 15.0  # beyond the drain: leaving the group, closing the clients
_SECOND_SIGNAL_EXIT = 130


def load_encoder(settings: Settings) -> Encoder:
    """Load the model that the settings name.

    Raises: `WeightsError`, `DeviceError`.
    """
    asked = None if settings.activation == "auto" else Activation(settings.activation)
    model = load_model(settings.model, settings.weights, asked)
    log.info(
        "weights %s: embeddings of %d numbers%s; preprocessing from %s",
        model.name,
        model.dimensions,
        "" if model.activation is None else f", {model.activation}",
        model.preprocessing.source,
    )
    if model.preprocessing.unsaid:
        log.warning(
            "nothing says %s of %s: taken as %s", ", ".join(model.preprocessing.unsaid), model.name, model.input
        )
    return Encoder(model, settings.device, settings.precision, normalized=settings.normalize)


@click.command("run")
@settings_options()
def command(**flags: object) -> None:
    """Consume, embed and produce until SIGTERM or SIGINT; exit 0 after a clean stop."""
    run(read_settings(flags))


def run(settings: Settings, load: Callable[[Settings], ReadyEncoder] = load_encoder) -> None:
    """Work until a signal says stop.

    Raises: `WorkerError`, whose `exit_code` the process ends with.
    """
    configure_logging(settings)
    prefer_throughput()
    faulthandler.enable()  # a decoder that crashes: the stacks name the records, see `call_as`
    metrics = Metrics(CollectorRegistry())
    health = Health(settings.stall_timeout_s)
    stop = _Stop(health, settings.drain_timeout_s)
    with ExitStack() as stack:
        server = _listen(settings, metrics, health)
        stack.callback(server.close)
        log.info("http on port %d: /metrics, /livez, /readyz", server.port)
        check_properties(settings)
        admin = admin_client(settings)
        partitions = find_topics(admin, settings)
        question = LimitsQuestion(admin, [settings.output_topic, settings.dead_letter_topic])
        log.info("topics and their partitions: %s", partitions)
        encoder = load(settings)
        sessions = Sessions(settings, encoder, metrics, health)
        sessions.warm_up()
        limits = _limits(question, settings)
        stack.callback(gc.unfreeze)  # at its end the interpreter wants to see them again
        gc.freeze()  # the libraries' objects stay: a collection that looks through them takes 0.2 s, and no thread runs
        stop.working = True
        start_watchdog(health)
        sessions.hold(stop.event, limits)
    log.info("stopped cleanly")


class _Stop:
    """Whether a signal has come. The first one lets the worker finish, a second one ends it at once."""

    def __init__(self, health: Health, drain_timeout_s: float) -> None:
        self._health = health
        self._drain_timeout_s = drain_timeout_s
        self.event = Event()
        self.working = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, _: int, __: FrameType | None) -> None:
        if self.event.is_set():
            os._exit(_SECOND_SIGNAL_EXIT)
        if not self.working:  # nothing has been taken in
            raise SystemExit(0)
        self._health.expect_end_within(self._drain_timeout_s + _CLOSE_S)
        self.event.set()


def _listen(settings: Settings, metrics: Metrics, health: Health) -> HealthServer:
    try:
        return HealthServer(settings.http_host, settings.http_port, metrics.registry, health)
    except OSError as error:
        place = f"WORKER_HTTP_HOST={settings.http_host} WORKER_HTTP_PORT={settings.http_port}"
        raise SettingsError(f"{place}: can't listen there: {error.strerror}") from error


def _limits(question: LimitsQuestion, settings: Settings) -> Mapping[str, TopicLimits]:
    try:
        limits = question.wait_for_limits()
    except KafkaException as exception:
        log.info("the limits of the topics are not told (%s): taking Kafka's defaults", exception)
        return {topic: TopicLimits() for topic in (settings.output_topic, settings.dead_letter_topic)}
    check_limits(limits, settings)
    return limits
