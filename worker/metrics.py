"""Every metric, its help and its labels; verbs for the rest of the code to call, from any thread."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from schemas.dead_letter import Reason
from worker.records import Deleted, Embedded, Rejected, Skipped, SplitCause, Written

_FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_OUTCOMES = {Embedded: "embedded", Rejected: "rejected", Deleted: "deleted", Skipped: "skipped"}


class Metrics:
    """The worker's metrics in one registry. All names begin with `clip_worker_`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register everything."""
        self.registry = registry
        records = Counter(
            "clip_worker_records_total",
            "Records done, by outcome: embedded, rejected (a dead letter), deleted, skipped (no image).",
            ["outcome"],
            registry=registry,
        )
        # Looked up once, and not for each record; all are there from the start, at 0.
        self._records_of = {outcome: records.labels(name) for outcome, name in _OUTCOMES.items()}
        self._rejections = Counter(
            "clip_worker_rejections_total",
            "Records that became dead letters, by reason. A rise means a producer sends what can't be embedded.",
            ["reason"],
            registry=registry,
        )
        for reason in Reason:
            self._rejections.labels(reason.value)
        self._images = Counter("clip_worker_images_total", "Images embedded and written.", registry=registry)
        self._prepare = Histogram(
            "clip_worker_prepare_seconds",
            "Time to unpack, decode and resize one record, in a prepare thread.",
            buckets=_FAST_S,
            registry=registry,
        )
        self._encode = Histogram(
            "clip_worker_encode_seconds",
            "Time of one batch from its begin on the device to its embeddings.",
            buckets=_FAST_S,
            registry=registry,
        )
        self._batch = Histogram(
            "clip_worker_batch_images",
            "Images a batch. Far below the maximum while there is lag: preparation is the bottleneck.",
            buckets=_BATCH_IMAGES,
            registry=registry,
        )
        self._checkpoint = Histogram(
            "clip_worker_checkpoint_seconds",
            "Time of one checkpoint: acknowledgements, then the commit.",
            buckets=_FAST_S,
            registry=registry,
        )
        self._split_batches = Counter(
            "clip_worker_split_batches_total",
            "Batches that the device refused and that were halved, by cause: out-of-memory, or error. "
            "Out of memory: lower MAX_BATCH. Error: a record makes the model fail, see the dead letters.",
            ["cause"],
            registry=registry,
        )
        for cause in SplitCause:
            self._split_batches.labels(cause.value)
        self._rebalances = Counter(
            "clip_worker_rebalances_total", "Rebalances that gave or took partitions.", ["kind"], registry=registry
        )
        self._rewinds = Counter(
            "clip_worker_rewinds_total",
            "Transactions aborted; the records since the last checkpoint were done again.",
            registry=registry,
        )
        self._sessions = Counter(
            "clip_worker_sessions_total",
            "Sessions begun; more than one means that the worker recovered.",
            registry=registry,
        )
        self._owned = Gauge("clip_worker_assigned_partitions", "Partitions owned now.", registry=registry)
        self._lag = Gauge(
            "clip_worker_lag_records",
            "Records of an owned partition that are not committed yet.",
            ["partition"],
            registry=registry,
        )
        self._lagging: set[int] = set()
        self._in_flight = Gauge("clip_worker_in_flight_records", "Records taken in, not handed on.", registry=registry)
        self._in_flight_bytes = Gauge("clip_worker_in_flight_bytes", "Their bytes.", registry=registry)
        self._model = Info("clip_worker_model", "The model, its device and precision.", registry=registry)

    def loaded(self, *, model: str, device: str, precision: str, preprocessing: str) -> None:
        """Say which model runs."""
        self._model.info({"model": model, "device": device, "precision": precision, "preprocessing": preprocessing})

    def session_begun(self, in_flight: Callable[[], float], in_flight_bytes: Callable[[], float]) -> None:
        """Count a session, and read from it what is in flight."""
        self._sessions.inc()
        self._in_flight.set_function(in_flight)
        self._in_flight_bytes.set_function(in_flight_bytes)

    def prepared(self, seconds: float) -> None:
        """Note the preparation of a record."""
        self._prepare.observe(seconds)

    def encoded(self, images: int, seconds: float) -> None:
        """Note a batch."""
        self._batch.observe(images)
        self._encode.observe(seconds)

    def split(self, cause: SplitCause) -> None:
        """Note a batch that was halved."""
        self._split_batches.labels(cause.value).inc()

    def written(self, written: Written) -> None:
        """Note an outcome that is durable."""
        self._records_of[written.outcome].inc()
        self._images.inc(written.images)
        if written.reason is not None:
            self._rejections.labels(written.reason.value).inc()

    def checkpointed(self, seconds: float) -> None:
        """Note a checkpoint that was committed."""
        self._checkpoint.observe(seconds)

    def rebalanced(self, kind: str, partitions: int) -> None:
        """Note partitions assigned or revoked; `partitions` is how many are owned now."""
        self._rebalances.labels(kind).inc()
        self._owned.set(partitions)

    def rewound(self) -> None:
        """Note a transaction that was aborted."""
        self._rewinds.inc()

    def lagged(self, lag: Mapping[int, int]) -> None:
        """Note the lag of each owned partition, in records; forget the others."""
        for partition in self._lagging - lag.keys():
            self._lag.remove(str(partition))
        self._lagging = set(lag)
        for partition, records in lag.items():
            self._lag.labels(str(partition)).set(records)
