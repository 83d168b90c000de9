"""`clip-worker run`: consume, embed, produce until SIGTERM or SIGINT. Wires the objects together."""

import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Event, current_thread
from types import FrameType
from typing import Protocol

import click
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from schemas.document import DocumentLimits
from schemas.embedding import Origin
from worker.activity import Activity
from worker.batcher import Batcher
from worker.cli.options import settings_options
from worker.clients import (
    check_properties,
    client_id,
    common_properties,
    consumer_properties,
    producer_properties,
    transactional_properties,
)
from worker.delivery import AtLeastOnce
from worker.encoder import Encoder
from worker.errors import SessionError, SessionsFailed, SettingsError
from worker.health import Health, HealthServer, start_watchdog
from worker.images import Fast, Geometry, Reference
from worker.logs import configure_logging
from worker.loop import Loop, Times
from worker.metrics import Metrics
from worker.outbound import Outbox
from worker.pipeline import Encodes, Limits, Pipeline
from worker.prepare import Preparer
from worker.records import ModelInput, TopicLimits
from worker.settings import Settings, read_settings
from worker.source import GroupState, Source
from worker.topics import LimitsQuestion, find_topics
from worker.transaction import ExactlyOnce
from worker.weights import load_model

log = logging.getLogger(__name__)

_MAX_BATCHES_IN_FLIGHT = 4
_MAX_FAILED_SESSIONS = 5
_CLOSE_S = 15.0  # beyond the drain: leaving the group, closing the clients
_SECOND_SIGNAL_EXIT = 130


class ReadyEncoder(Encodes, Protocol):
    """An encoder with what the other stages need to know of its model; see `worker.encoder.Encoder`."""

    model_name: str
    model_input: ModelInput
    geometry: Geometry
    device_name: str
    precision: str

    @property
    def default_max_batch(self) -> int:
        """Return how many images a batch has unless set otherwise."""

    def warm_up(self, max_batch: int) -> None:
        """Run the smallest and the largest batch once."""


def load_encoder(settings: Settings) -> Encoder:
    """Load the model that the settings name.

    Raises: `WeightsError`, `DeviceError`.
    """
    model = load_model(settings.model, settings.weights)
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
    metrics = Metrics(CollectorRegistry())
    health = Health(settings.stall_timeout_s)
    stop = _Stop(health, settings.drain_timeout_s)
    with ExitStack() as stack:
        server = _listen(settings, metrics, health)
        stack.callback(server.close)
        log.info("http on port %d: /metrics, /livez, /readyz", server.port)
        check_properties(settings)
        admin = AdminClient(common_properties(settings), logger=log)
        partitions = find_topics(admin, settings)
        limits = LimitsQuestion(admin, [settings.output_topic, settings.dead_letter_topic])
        log.info("topics and their partitions: %s", partitions)
        worker = _Worker(settings, load(settings), _limits(limits, settings), metrics, health)
        worker.warm_up()
        stop.working = True
        start_watchdog(health)
        worker.work(stop)
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


@dataclass(slots=True)
class _Worker:
    """The loaded model, and one session after the other with it."""

    settings: Settings
    encoder: ReadyEncoder
    limits: Mapping[str, TopicLimits]
    metrics: Metrics
    health: Health

    @property
    def max_batch(self) -> int:
        return self.settings.max_batch or self.encoder.default_max_batch

    @property
    def in_flight_images(self) -> int:
        default = max(_MAX_BATCHES_IN_FLIGHT * self.max_batch, self.settings.max_images_per_record)
        return self.settings.in_flight_images or default

    def warm_up(self) -> None:
        encoder = self.encoder
        encoder.warm_up(self.max_batch)
        self.metrics.loaded(
            model=encoder.model_name,
            device=encoder.device_name,
            precision=encoder.precision,
            preprocessing=self.settings.preprocessing,
        )
        log.info(
            "model %s on %s in %s; input %s, preprocessing %s, batches of %d, %d prepare threads",
            encoder.model_name,
            encoder.device_name,
            encoder.precision,
            encoder.model_input,
            self.settings.preprocessing,
            self.max_batch,
            self.settings.prepare_threads,
        )

    def work(self, stop: _Stop) -> None:
        """Hold sessions until the stop.

        A session that failed is followed by a new one, after a pause that doubles while none makes progress.
        Raises: `SessionsFailed` after five of those, a `SessionError` while stopping, and every `ProcessError`.
        """
        failed = 0
        while not stop.event.is_set():
            with ExitStack() as stack:
                pipeline = self._start_pipeline()
                stack.callback(pipeline.close)
                loop: Loop | None = None
                try:
                    loop = self._open_session(stack, pipeline)
                    loop.run(stop.event.is_set)
                except SessionError as error:
                    if stop.event.is_set():
                        raise  # what this session had taken in is left undone: no clean stop
                    failed = 0 if loop is not None and loop.checkpoints else failed + 1
                    if failed == _MAX_FAILED_SESSIONS:
                        raise SessionsFailed(f"{failed} sessions failed in a row, the last: {error}") from error
                    log.warning("the session ended: %s; a new one begins in %g s", error, 2.0**failed)
                else:
                    return
            pipeline.wait_for_threads(self.settings.stall_timeout_s)
            stop.event.wait(2.0**failed)

    def _open_session(self, stack: ExitStack, pipeline: Pipeline) -> Loop:
        """Connect the clients; the stack closes them, the producer before the consumer."""
        settings = self.settings
        source = Source(consumer_properties(settings, _log_error), settings.input_topic, self._note_group)
        stack.callback(source.close)
        delivery = self._open_delivery(source)
        stack.callback(delivery.close)
        activity = Activity("main")
        self.health.watch([*pipeline.activities, activity], [*pipeline.threads, current_thread()])
        stack.callback(self.health.watch, (), ())
        self.metrics.session_begun(lambda: pipeline.in_flight, lambda: pipeline.in_flight_bytes)
        times = Times(settings.checkpoint_interval_s, settings.drain_timeout_s, settings.drain_timeout_s)
        return Loop(source, pipeline, delivery, times, self.metrics, activity)

    def _open_delivery(self, source: Source) -> AtLeastOnce | ExactlyOnce:
        written = self.metrics.written
        if self.settings.delivery == "exactly-once":
            properties = transactional_properties(self.settings, _log_error)
            return ExactlyOnce(properties, self.limits, self._outbox(), source, written)
        properties = producer_properties(self.settings, _log_error)
        return AtLeastOnce(properties, self.limits, self._outbox(), source.commit, written)

    def _outbox(self) -> Outbox:
        settings = self.settings
        origin = Origin(self.encoder.model_name, settings.preprocessing, settings.normalize)
        return Outbox(settings.output_topic, settings.dead_letter_topic, origin, settings.group_id, client_id())

    def _start_pipeline(self) -> Pipeline:
        settings, model_input = self.settings, self.encoder.model_input
        preprocessing = Fast if settings.preprocessing == "fast" else Reference
        preparer = Preparer(
            preprocessing(model_input, self.encoder.geometry, settings.max_image_pixels),
            model_input.size,
            settings.default_paths,
            DocumentLimits(settings.max_image_bytes, settings.max_images_per_record),
        )
        places = self.in_flight_images
        batcher = Batcher(places, model_input.size, self.max_batch, settings.max_wait_ms / 1000)
        limits = Limits(max_records=places, max_bytes=settings.in_flight_bytes)
        return Pipeline(preparer.prepare, self.encoder, batcher, limits, settings.prepare_threads, self.metrics)

    def _note_group(self, state: GroupState) -> None:
        self.health.note_group(joined=state.joined, silent_s=state.silent_s)
        self.metrics.lagged(state.lag)


def _listen(settings: Settings, metrics: Metrics, health: Health) -> HealthServer:
    try:
        return HealthServer(settings.http_host, settings.http_port, metrics.registry, health)
    except OSError as error:
        place = f"WORKER_HTTP_HOST={settings.http_host} WORKER_HTTP_PORT={settings.http_port}"
        raise SettingsError(f"{place}: can't listen there: {error.strerror}") from error


def _limits(question: LimitsQuestion, settings: Settings) -> Mapping[str, TopicLimits]:
    try:
        return question.wait_for_limits()
    except KafkaException as exception:
        log.info("the limits of the topics are not told (%s): taking Kafka's defaults", exception)
        return {topic: TopicLimits() for topic in (settings.output_topic, settings.dead_letter_topic)}


def _log_error(error: KafkaError) -> None:
    log.warning("kafka: %s", error)
