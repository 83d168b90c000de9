"""One session after the other with the loaded model: wires source, pipeline, delivery and loop together.

Belongs to the main thread. Every session has clients and threads of its own, and those of the one before are gone
when it begins: nothing old is written after something new, and no two threads use the encoder.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from threading import Event, current_thread
from typing import Protocol

import numpy as np
import numpy.typing as npt

from schemas.document import DocumentLimits
from schemas.embedding import Origin
from worker.activity import Activity
from worker.batcher import Batcher
from worker.clients import (
    admin_client,
    client_id,
    consumer_properties,
    producer_properties,
    transactional_properties,
)
from worker.delivery import AtLeastOnce
from worker.errors import DrainTimeout, NoBrokerAnswers, SessionError, SessionsFailed, SettingsError
from worker.fit import Geometry
from worker.health import Health
from worker.images import Fast, Reference
from worker.loop import Loop, Times
from worker.metrics import Metrics
from worker.nvjpeg import NvJpeg, nvjpeg_decoder
from worker.outbound import Outbox
from worker.pipeline import Encodes, Limits, Pipeline
from worker.prepare import Preparer, Preprocess
from worker.records import ModelInput, TopicLimits, Written
from worker.rejections import RejectionLimits
from worker.settings import Settings
from worker.source import GroupState, Source
from worker.topics import find_topics
from worker.transaction import ExactlyOnce

log = logging.getLogger(__name__)

_MAX_BATCHES_IN_FLIGHT = 4
_BATCHES_READY = 1  # prepared while the device is at others: more memory would only be further from the caches
_MAX_FAILED_SESSIONS = 5
_CLIENT_PATIENCE_S = 60.0  # joining, leaving and metadata wait for the brokers
_SHARE_OF_POLL_INTERVAL = 0.5


class ReadyEncoder(Encodes, Protocol):
    """An encoder with what the other stages need to know of its model; see `worker.encoder.Encoder`."""

    model_name: str
    model_input: ModelInput
    geometry: Geometry
    device_name: str
    precision: str

    def allocate(self, images: int) -> npt.NDArray[np.uint8]:
        """Return memory that batches may lie in, uint8 [images, R, R, 3]."""

    @property
    def default_max_batch(self) -> int:
        """Return how many images a batch has unless set otherwise."""

    def warm_up(self, max_batch: int) -> None:
        """Run the smallest and the largest batch once."""


class Sessions:
    """The loaded model, and one session after the other with it."""

    def __init__(
        self,
        settings: Settings,
        encoder: ReadyEncoder,
        metrics: Metrics,
        health: Health,
    ) -> None:
        """Connect nothing yet. Raises: `DeviceError` where the device can't decode, as is set."""
        self._settings = settings
        self._encoder = encoder
        self._metrics = metrics
        self._health = health
        self._main = Activity("main")
        self._rejections = RejectionLimits(
            settings.max_rejected_share, settings.rejected_share_window, settings.max_rejected_in_a_row
        )
        self._max_batch = settings.max_batch or encoder.default_max_batch
        default = max(_MAX_BATCHES_IN_FLIGHT * self._max_batch, settings.max_images_per_record)
        self._in_flight_images = settings.in_flight_images or default
        self._preprocess = _preprocess(settings, encoder)

    def warm_up(self) -> None:
        """Run the model once, and announce it. Raises: `DeviceError`."""
        encoder, settings = self._encoder, self._settings
        encoder.warm_up(self._max_batch)
        self._metrics.loaded(
            model=encoder.model_name,
            device=encoder.device_name,
            precision=encoder.precision,
            preprocessing=settings.preprocessing,
        )
        log.info(
            "model %s on %s in %s; input %s, preprocessing %s, batches of %d, %d prepare threads",
            encoder.model_name,
            encoder.device_name,
            encoder.precision,
            encoder.model_input,
            settings.preprocessing,
            self._max_batch,
            settings.prepare_threads,
        )

    def hold(self, stop: Event, limits: Mapping[str, TopicLimits]) -> None:
        """Work until the stop. `limits` are what the output topic and the dead-letter topic admit.

        A session that failed is followed by a new one, after a pause that doubles while none makes progress.
        Raises: `SessionsFailed` after five of those, `TooManyRejections`, `DrainTimeout`, any other `ProcessError`.
        """
        self._watch_main_only()
        failed = 0
        while not stop.is_set():
            pipeline = self._start_pipeline()
            with ExitStack() as stack:
                stack.callback(pipeline.close)
                loop = self._open_session(stack, pipeline, limits)
                try:
                    loop.run(lambda: stop.is_set() or self._rejections.are_reached)
                except SessionError as error:
                    if stop.is_set():
                        raise DrainTimeout(f"the session ended while it was stopping: {error}") from error
                    failed = 0 if loop.checkpoints else failed + 1
                    if failed == _MAX_FAILED_SESSIONS:
                        raise SessionsFailed(f"{failed} sessions failed in a row, the last: {error}") from error
                    log.warning("the session ended: %s; a new one begins in %g s", error, 2.0**failed)
                else:
                    self._rejections.check()
                    return
            self._recover(stop, pipeline, 2.0**failed)

    def _recover(self, stop: Event, pipeline: Pipeline, pause_s: float) -> None:
        """Wait until a new session may begin.

        Raises: `ThreadDied` where a thread of the old one doesn't end, `KafkaSetupError` where a topic is gone.
        """
        self._main.end()
        pipeline.wait_for_threads(self._settings.stall_timeout_s)
        stop.wait(pause_s)
        self._main.begin("looking for the topics", patience_s=_CLIENT_PATIENCE_S)
        try:
            find_topics(admin_client(self._settings), self._settings)
        except NoBrokerAnswers as error:
            log.warning("%s", error)

    def _watch_main_only(self) -> None:
        self._health.watch([self._main], [current_thread()])

    def _open_session(self, stack: ExitStack, pipeline: Pipeline, limits: Mapping[str, TopicLimits]) -> Loop:
        """Connect the clients; the stack closes them, the producer before the consumer."""
        settings = self._settings
        properties = consumer_properties(settings)
        source = Source(properties, settings.input_topic, self._note_group)
        stack.callback(source.close)
        delivery = self._open_delivery(source, limits)
        stack.callback(delivery.close)
        stack.callback(self._main.begin, "closing the clients", patience_s=_CLIENT_PATIENCE_S)
        self._health.watch([self._main, *pipeline.activities], [current_thread(), *pipeline.threads])
        stack.callback(self._watch_main_only)
        self._metrics.session_begun(lambda: pipeline.in_flight, lambda: pipeline.in_flight_bytes)
        poll_interval_s = int(properties["max.poll.interval.ms"]) / 1000
        times = Times(
            checkpoint_interval_s=settings.checkpoint_interval_s,
            checkpoint_records=settings.checkpoint_records,
            drain_timeout_s=settings.drain_timeout_s,
            # Past the poll interval the group would take the partitions away all the same, unsettled.
            revoke_timeout_s=min(settings.drain_timeout_s, _SHARE_OF_POLL_INTERVAL * poll_interval_s),
        )
        return Loop(source, pipeline, delivery, times, self._metrics, self._main)

    def _open_delivery(self, source: Source, limits: Mapping[str, TopicLimits]) -> AtLeastOnce | ExactlyOnce:
        if self._settings.delivery == "exactly-once":
            properties = transactional_properties(self._settings)
            return ExactlyOnce(properties, limits, self._outbox(), source, self._note_written)
        properties = producer_properties(self._settings)
        return AtLeastOnce(properties, limits, self._outbox(), source.commit, self._note_written)

    def _outbox(self) -> Outbox:
        settings = self._settings
        origin = Origin(self._encoder.model_name, settings.preprocessing, settings.normalize)
        return Outbox(settings.output_topic, settings.dead_letter_topic, origin, settings.group_id, client_id())

    def _start_pipeline(self) -> Pipeline:
        settings, model_input = self._settings, self._encoder.model_input
        preparer = Preparer(
            self._preprocess,
            model_input.size,
            settings.default_paths,
            DocumentLimits(settings.max_image_bytes, settings.max_images_per_record),
        )
        rows = min(self._in_flight_images, (self._encoder.depth + _BATCHES_READY) * self._max_batch)
        try:
            batcher = Batcher(self._encoder.allocate(rows), self._max_batch, settings.max_wait_ms / 1000)
        except MemoryError as error:
            raise SettingsError(f"WORKER_MAX_BATCH={self._max_batch} needs {rows} prepared images: {error}") from error
        limits = Limits(max_records=self._in_flight_images, max_bytes=settings.in_flight_bytes)
        return Pipeline(preparer.prepare, self._encoder, batcher, limits, settings.prepare_threads, self._metrics)

    def _note_written(self, written: Written) -> None:
        self._metrics.written(written)
        self._rejections.note(written)

    def _note_group(self, state: GroupState) -> None:
        self._health.note_group(joined=state.joined, silent_s=state.silent_s)
        self._metrics.lagged(state.lag)


def _preprocess(settings: Settings, encoder: ReadyEncoder) -> Preprocess:
    model_input, geometry, max_pixels = encoder.model_input, encoder.geometry, settings.max_image_pixels
    if settings.decoder == "nvjpeg":
        return NvJpeg(model_input, geometry, max_pixels, nvjpeg_decoder(encoder.device_name))
    preprocessing = Fast if settings.preprocessing == "fast" else Reference
    return preprocessing(model_input, geometry, max_pixels)
