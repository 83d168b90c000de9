import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Lock, Thread, Timer

import numpy as np
import numpy.typing as npt
import pytest

from schemas.dead_letter import Reason
from schemas.document import Document
from tests.unit.encoders import AtOnce, rows
from worker.batcher import Batcher, Closed, Place
from worker.errors import DeviceError, OutOfMemory, ThreadDied
from worker.pipeline import Beat, Limits, Pipeline, Prepare
from worker.records import (
    Deleted,
    Embedded,
    Outcome,
    Pixels,
    Prepared,
    Preprocessed,
    Record,
    Rejected,
    Skipped,
    SplitCause,
)

PATIENCE_S = 10.0  # how long a test waits for what has to come
SIDE = 2
NONE_OF_THEM = np.empty((0, SIDE, SIDE, 3), np.float32)


def _record(offset: int, value: bytes = b"", *, partition: int = 0, key: bytes | None = None) -> Record:
    """Return a record; each byte of its value is an image: 0 to 127 of bytes, from 128 up of floats."""
    return Record("documents", partition, offset, key, value, None, ())


def _image(byte: int) -> Pixels | Preprocessed:
    shape = (SIDE, SIDE, 3)
    return np.full(shape, byte, np.uint8) if byte < 128 else np.full(shape, byte - 128, np.float32)


def _prepare(record: Record, _: Beat) -> Prepared | Skipped | Deleted:
    """Make the images that the record's value says; none at all is skipped, and a null value deletes."""
    if record.value is None:
        return Deleted(record)
    if not record.value:
        return Skipped(record)
    return Prepared(record, Document(str(record.offset)), tuple(_image(byte) for byte in record.value))


class _Encoder(AtOnce):
    """Embeds an image as its value, and as 0 where it was of bytes or 1 where it was of floats; waits for `gate`."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []
        self.begun = Event()
        self.gate = Event()
        self.gate.set()

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.batches.append((len(pixels), len(preprocessed)))
        self.begun.set()
        assert self.gate.wait(PATIENCE_S)
        values = [*pixels[:, 0, 0, 0], *preprocessed[:, 0, 0, 0]]
        kinds = [0] * len(pixels) + [1] * len(preprocessed)
        return np.array(list(zip(values, kinds, strict=True)), np.float32)


def _embeddings(value: bytes) -> list[list[float]]:
    """Return what the encoder makes of a record's value."""
    return [[byte, 0] if byte < 128 else [byte - 128, 1] for byte in value]


class _Observer:
    """Counts what it is told, from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.records = 0
        self.images = 0
        self.seconds: list[float] = []
        self.splits: list[SplitCause] = []

    def prepared(self, seconds: float) -> None:
        with self._lock:
            self.records += 1
            self.seconds.append(seconds)

    def encoded(self, images: int, seconds: float) -> None:
        with self._lock:
            self.images += images
            self.seconds.append(seconds)

    def split(self, cause: SplitCause) -> None:
        self.splits.append(cause)


@contextmanager
def _running(
    prepare: Prepare = _prepare,
    encoder: _Encoder | None = None,
    *,
    threads: int = 2,
    places: int = 8,
    max_batch: int = 4,
    limits: Limits | None = None,
    observer: _Observer | None = None,
) -> Iterator[Pipeline]:
    encoder = encoder or _Encoder()
    batcher = Batcher(rows(places, SIDE), max_batch, max_wait_s=0)
    limits = limits or Limits(max_records=1_000, max_bytes=1_000_000)
    pipeline = Pipeline(prepare, encoder, batcher, limits, threads, observer or _Observer())
    try:
        yield pipeline
    finally:
        encoder.gate.set()
        pipeline.close()
        pipeline.wait_for_threads(PATIENCE_S)


def _until(is_so: Callable[[], bool]) -> None:
    """Poll until something is so."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not come to be so"
        time.sleep(0.001)


def _outcomes(pipeline: Pipeline, count: int) -> list[Outcome]:
    """Hand out the next outcomes."""
    outcomes: list[Outcome] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while len(outcomes) < count:
        assert time.monotonic() < deadline_s, f"{len(outcomes)} of {count} outcomes came"
        outcome = pipeline.finished()
        if outcome is None:
            pipeline.wait(0.05)
            continue
        pipeline.hand_out()
        outcomes.append(outcome)
    return outcomes


def _plain(outcome: Outcome) -> tuple[int, object]:
    match outcome:
        case Embedded(record, document, embeddings):
            assert (document.id, embeddings.dtype) == (str(record.offset), np.dtype(np.float32))
            return record.offset, embeddings.tolist()
        case Rejected(record, reason, _):
            return record.offset, reason
    return outcome.record.offset, type(outcome)


# Order.


def test_every_record_gets_its_outcome() -> None:
    records = [_record(0, b"\x01"), _record(1), _record(2, b"\x02\x83"), Record("t", 0, 3, b"k", None, None, ())]

    with _running() as pipeline:
        for record in records:
            pipeline.submit(record)
        outcomes = _outcomes(pipeline, 4)

    assert [_plain(outcome) for outcome in outcomes] == [
        (0, [[1, 0]]),
        (1, Skipped),
        (2, [[2, 0], [3, 1]]),
        (3, Deleted),
    ]


@pytest.mark.parametrize("value", [b"", b"\x01"], ids=["skipped", "embedded"])
def test_outcomes_come_in_the_order_of_submission_though_they_finish_in_the_reverse(value: bytes) -> None:
    prepared = [Event() for _ in range(5)]
    prepared[4].set()

    def prepare(record: Record, beat: Beat) -> Prepared | Skipped | Deleted:
        if record.offset < 4:
            assert prepared[record.offset + 1].wait(PATIENCE_S)
        prepared[record.offset].set()
        return _prepare(record, beat)

    with _running(prepare, threads=5) as pipeline:
        for offset in range(5):
            pipeline.submit(_record(offset, value))
        outcomes = _outcomes(pipeline, 5)

    assert [outcome.record.offset for outcome in outcomes] == [0, 1, 2, 3, 4]


def test_an_outcome_behind_one_that_is_missing_is_not_handed_out() -> None:
    first, second = Event(), Event()

    def prepare(record: Record, _: Beat) -> Skipped:
        assert (first if record.offset == 0 else second).wait(PATIENCE_S)
        return Skipped(record)

    with _running(prepare) as pipeline:
        pipeline.submit(_record(0))
        pipeline.submit(_record(1))
        second.set()
        pipeline.wait(PATIENCE_S)
        early = pipeline.finished()
        first.set()
        outcomes = _outcomes(pipeline, 2)

    assert (early, [outcome.record.offset for outcome in outcomes]) == (None, [0, 1])


def test_room_is_waited_for_until_an_eighth_of_the_line_is_finished() -> None:
    gates = [Event() for _ in range(16)]

    def prepare(record: Record, _: Beat) -> Skipped:
        assert gates[record.offset].wait(PATIENCE_S)
        return Skipped(record)

    with _running(prepare, threads=16) as pipeline:
        for offset in range(16):
            pipeline.submit(_record(offset))
        gates[0].set()
        begun_s = time.monotonic()
        pipeline.wait_for_room(0.2)
        waited_s = time.monotonic() - begun_s
        Timer(0.05, gates[1].set).start()
        Timer(0.05, gates[2].set).start()
        pipeline.wait_for_room(PATIENCE_S)
        finished = [outcome.record.offset for outcome in _outcomes(pipeline, 3)]
        for gate in gates:
            gate.set()

    assert waited_s >= 0.2
    assert time.monotonic() - begun_s < PATIENCE_S
    assert finished == [0, 1, 2]


def test_room_in_a_short_line_is_waited_for_until_one_record_is_finished() -> None:
    with _running() as pipeline:
        pipeline.submit(_record(0))
        begun_s = time.monotonic()
        pipeline.wait_for_room(PATIENCE_S)
        outcome = pipeline.finished()

    assert time.monotonic() - begun_s < PATIENCE_S
    assert outcome is not None


def test_an_outcome_stays_until_it_is_handed_out() -> None:
    with _running() as pipeline:
        pipeline.submit(_record(0))
        pipeline.wait(PATIENCE_S)

        seen = [pipeline.finished(), pipeline.finished(), pipeline.in_flight]
        pipeline.hand_out()

        assert seen == [Skipped(_record(0)), Skipped(_record(0)), 1]
        assert (pipeline.finished(), pipeline.in_flight) == (None, 0)


def test_a_thousand_records_of_every_kind_keep_their_order_and_their_embeddings() -> None:
    chance = np.random.default_rng(0)
    values = [bytes(chance.integers(0, 256, chance.integers(0, 9), np.uint8)) for _ in range(1_000)]

    with _running(threads=4, places=12, max_batch=5) as pipeline:
        for offset, value in enumerate(values):
            pipeline.submit(_record(offset, value))
        outcomes = _outcomes(pipeline, 1_000)

    assert [_plain(outcome) for outcome in outcomes] == [
        (offset, _embeddings(value) if value else Skipped) for offset, value in enumerate(values)
    ]


# Batches.


def test_a_record_with_more_images_than_a_batch_is_embedded_in_several() -> None:
    encoder = _Encoder()

    with _running(encoder=encoder, max_batch=2) as pipeline:
        pipeline.submit(_record(0, b"\x01\x02\x03\x04\x05"))
        (outcome,) = _outcomes(pipeline, 1)

    assert _plain(outcome) == (0, [[1, 0], [2, 0], [3, 0], [4, 0], [5, 0]])
    assert encoder.batches == [(2, 0), (2, 0), (1, 0)]


def test_what_gets_ready_while_the_encoder_is_busy_goes_into_the_next_batch_together() -> None:
    encoder, observer = _Encoder(), _Observer()
    encoder.gate.clear()

    with _running(encoder=encoder, observer=observer, threads=1, max_batch=4) as pipeline:
        pipeline.submit(_record(0, b"\x01"))
        assert encoder.begun.wait(PATIENCE_S)
        for offset, value in enumerate([b"\x02", b"\x83\x04", b"\x05\x06"], start=1):
            pipeline.submit(_record(offset, value))
        pipeline.submit(_record(4))  # by the one thread, so the others are in the batcher once it is done
        _until(lambda: observer.records == 5)
        encoder.gate.set()
        outcomes = _outcomes(pipeline, 5)

    assert [_plain(outcome) for outcome in outcomes] == [
        (0, [[1, 0]]),
        (1, [[2, 0]]),
        (2, [[3, 1], [4, 0]]),
        (3, [[5, 0], [6, 0]]),
        (4, Skipped),
    ]
    assert encoder.batches == [(1, 0), (3, 1), (1, 0)]


def test_images_of_bytes_and_of_floats_in_one_batch_get_their_own_embeddings() -> None:
    encoder = _Encoder()
    value = bytes([1, 130, 3, 132, 133, 6])

    with _running(encoder=encoder, max_batch=6) as pipeline:
        pipeline.submit(_record(0, value))
        (outcome,) = _outcomes(pipeline, 1)

    assert _plain(outcome) == (0, [[1, 0], [2, 1], [3, 0], [4, 1], [5, 1], [6, 0]])
    assert encoder.batches == [(3, 3)]


def test_the_observer_is_told_of_every_record_and_every_image() -> None:
    observer = _Observer()

    with _running(observer=observer) as pipeline:
        for offset, value in enumerate([b"\x01\x02", b"", b"\x83"]):
            pipeline.submit(_record(offset, value))
        _outcomes(pipeline, 3)

    assert (observer.records, observer.images) == (3, 3)
    assert all(0 <= seconds < PATIENCE_S for seconds in observer.seconds)


class _Overlapping(_Encoder):
    """Has two batches under way at most, and notes when each begins and is waited for; fails at an image of 99."""

    depth = 2

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []

    def begin(
        self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]
    ) -> Callable[[], npt.NDArray[np.float32]]:
        name = "/".join(str(int(value)) for value in pixels[:, 0, 0, 0])
        self.steps.append(f"begin {name}")
        self.begun.set()

        def wait() -> npt.NDArray[np.float32]:
            self.steps.append(f"wait {name}")
            if (pixels == 99).any():
                raise ValueError("the model can't do 99")
            return self.encode(pixels, preprocessed)

        return wait


def test_the_next_batch_begins_while_the_device_is_at_one_and_no_third() -> None:
    encoder = _Overlapping()
    encoder.gate.clear()

    with _running(encoder=encoder, max_batch=1) as pipeline:
        pipeline.submit(_record(0, b"\x01"))
        _until(lambda: encoder.steps == ["begin 1", "wait 1"])
        for offset in (1, 2):
            pipeline.submit(_record(offset, bytes([offset + 1])))
        _until(lambda: len(pipeline._batcher._written) == 2)
        encoder.gate.set()
        outcomes = _outcomes(pipeline, 3)

    assert encoder.steps == ["begin 1", "wait 1", "begin 2", "begin 3", "wait 2", "wait 3"]
    assert [_plain(outcome) for outcome in outcomes] == [(0, [[1, 0]]), (1, [[2, 0]]), (2, [[3, 0]])]


def test_a_batch_that_fails_while_the_next_is_under_way_leaves_that_one_alone() -> None:
    encoder = _Overlapping()
    encoder.gate.clear()

    with _running(encoder=encoder, max_batch=2) as pipeline:
        pipeline.submit(_record(0, b"\x01"))
        assert encoder.begun.wait(PATIENCE_S)
        for offset, value in enumerate((b"\x02", b"\x63", b"\x04"), start=1):
            pipeline.submit(_record(offset, value))
        _until(lambda: len(pipeline._batcher._written) == 3)
        encoder.gate.set()
        outcomes = _outcomes(pipeline, 4)

    assert [_plain(outcome) for outcome in outcomes] == [
        (0, [[1, 0]]),
        (1, [[2, 0]]),
        (2, Reason.MODEL_ERROR),
        (3, [[4, 0]]),
    ]


# What is wrong.


class _Poisoned(_Encoder):
    """Makes no number of images of the value 66."""

    def __init__(self, poison: float) -> None:
        super().__init__()
        self._poison = poison

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        embeddings = super().encode(pixels, preprocessed)
        embeddings[embeddings[:, 0] == 66, 1] = self._poison
        return embeddings


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf], ids=str)
def test_an_embedding_that_is_not_finite_rejects_its_record_and_no_other(poison: float) -> None:
    with _running(encoder=_Poisoned(poison), max_batch=6) as pipeline:
        for offset, value in enumerate([b"\x01", b"\x02\x42\x03", b"\x04"]):
            pipeline.submit(_record(offset, value))
        outcomes = _outcomes(pipeline, 3)

    assert outcomes[1] == Rejected(
        _record(1, b"\x02\x42\x03"), Reason.NOT_FINITE, "the model's embedding has values that are not finite"
    )
    assert [_plain(outcome) for outcome in outcomes] == [(0, [[1, 0]]), (1, Reason.NOT_FINITE), (2, [[4, 0]])]


class _TooFew(_Encoder):
    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return super().encode(pixels, preprocessed)[1:]


def _keep_asking(ask: Callable[[Pipeline], object], pipeline: Pipeline) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        ask(pipeline)


def _fail(record: Record, _: Beat) -> Skipped:
    raise LookupError(f"no such thing as {record}")


@pytest.mark.parametrize(
    ("prepare", "encoder", "kind", "said"),
    [
        pytest.param(_fail, _Encoder(), LookupError, "no such thing as documents[0]@0", id="in a prepare thread"),
        pytest.param(_prepare, _TooFew(), ValueError, "zip()", id="too few embeddings"),
    ],
)
@pytest.mark.parametrize("ask", [Pipeline.finished, lambda pipeline: pipeline.wait(0.05)], ids=["finished", "wait"])
def test_what_a_thread_raises_is_raised_in_the_main_thread(
    prepare: Prepare, encoder: _Encoder, kind: type[Exception], said: str, ask: Callable[[Pipeline], object]
) -> None:
    with _running(prepare, encoder) as pipeline:
        pipeline.submit(_record(0, b"\x01"))
        with pytest.raises(ThreadDied) as raised:
            _keep_asking(ask, pipeline)

    assert str(raised.value).startswith(f"a thread of the pipeline failed: {kind.__name__}: {said}")
    assert re.search(r"; (prepare-\d: documents\[0\]@0|encode: a batch of 1 images) for \d\.\d s$", str(raised.value))
    assert isinstance(raised.value.__cause__, kind)


# What the device or the model refuses.


class _Choosy(_Encoder):
    """Fails at images of these values, and has memory for so many images."""

    def __init__(self, bad: Sequence[int] = (), memory: int = 1_000) -> None:
        super().__init__()
        self._bad = set(bad)
        self._memory = memory

    def encode(self, pixels: npt.NDArray[np.uint8], preprocessed: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        embeddings = super().encode(pixels, preprocessed)
        if len(embeddings) > self._memory:
            raise OutOfMemory(f"no memory for {len(embeddings)} images")
        bad = self._bad & {int(value + 128 * kind) for value, kind in embeddings}
        if bad:
            raise ValueError(f"the model can't do {min(bad)}")
        return embeddings


def _all_at_once(encoder: _Choosy, values: Sequence[bytes], observer: _Observer | None = None) -> list[Outcome]:
    """Embed records whose images are ready before the encoder takes any but the first of them."""
    encoder.gate.clear()
    with _running(encoder=encoder, places=32, max_batch=16, observer=observer) as pipeline:
        pipeline.submit(_record(0, b"\x01"))
        assert encoder.begun.wait(PATIENCE_S)
        for offset, value in enumerate(values, start=1):
            pipeline.submit(_record(offset, value))
        _until(lambda: len(pipeline._batcher._written) == sum(map(len, values)))
        encoder.gate.set()
        return _outcomes(pipeline, len(values) + 1)[1:]


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("bad", [77, 177], ids=["of bytes", "of floats"])
def test_an_error_of_the_model_rejects_the_record_that_causes_it_and_no_other(place: int, bad: int) -> None:
    values = [bytes([10 + number, 200 + number]) for number in range(8)]
    values[place] = bytes([50, bad, 150])

    outcomes = _all_at_once(_Choosy([bad]), values)

    expected: list[tuple[int, object]] = [(number, _embeddings(value)) for number, value in enumerate(values, start=1)]
    expected[place] = (place + 1, Reason.MODEL_ERROR)
    assert [_plain(outcome) for outcome in outcomes] == expected
    rejected = outcomes[place]
    assert isinstance(rejected, Rejected)
    assert rejected.detail == f"the model fails at an image of this record: ValueError: the model can't do {bad}"


def test_a_record_with_several_images_that_the_model_fails_at_has_one_outcome() -> None:
    outcomes = _all_at_once(_Choosy([7, 8]), [b"\x07\x08\x09", b"\x0a"])

    assert [_plain(outcome) for outcome in outcomes] == [(1, Reason.MODEL_ERROR), (2, [[10, 0]])]


@pytest.mark.parametrize("memory", [1, 2, 3, 7, 15])
def test_a_batch_that_the_device_has_no_memory_for_is_halved_until_it_fits(memory: int) -> None:
    observer = _Observer()
    values = [bytes([10 + number]) for number in range(16)]

    outcomes = _all_at_once(_Choosy(memory=memory), values, observer)

    assert [_plain(outcome) for outcome in outcomes] == [
        (number, _embeddings(value)) for number, value in enumerate(values, start=1)
    ]
    assert set(observer.splits) == {SplitCause.OUT_OF_MEMORY}


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        pytest.param(_Choosy(memory=0), "no memory for one image: no memory for 1 images", id="no memory at all"),
        pytest.param(_Choosy([0, 5]), "the device fails at every image: ValueError: the model can't do 5", id="broken"),
    ],
)
def test_a_device_that_fails_at_every_image_ends_the_process_and_rejects_nothing(encoder: _Choosy, said: str) -> None:
    with _running(encoder=encoder) as pipeline:
        pipeline.submit(_record(0, b"\x05"))
        with pytest.raises(DeviceError) as raised:
            _keep_asking(Pipeline.finished, pipeline)

    assert str(raised.value) == said


# Partitions that are given up.


def test_what_has_been_dropped_gets_no_outcome_however_late_it_finishes() -> None:
    encoder = _Encoder()
    encoder.gate.clear()

    with _running(encoder=encoder) as pipeline:
        for offset, partition in enumerate([0, 1, 0, 1, 2]):
            pipeline.submit(_record(offset, b"\x01", partition=partition))
        assert encoder.begun.wait(PATIENCE_S)
        pipeline.drop([1, 2])
        left = (pipeline.in_flight, pipeline.has([1, 2]), pipeline.has([2, 0]))
        encoder.gate.set()
        pipeline.submit(_record(7, b"\x02", partition=1))
        outcomes = _outcomes(pipeline, 3)
        pipeline.wait(0.05)
        late = pipeline.finished()

    assert left == (2, False, True)
    assert [_plain(outcome) for outcome in outcomes] == [(0, [[1, 0]]), (2, [[1, 0]]), (7, [[2, 0]])]
    assert late is None


def test_what_has_been_dropped_counts_no_more() -> None:
    encoder = _Encoder()
    encoder.gate.clear()

    with _running(encoder=encoder) as pipeline:
        pipeline.submit(_record(0, b"\x01\x02", partition=3, key=b"key"))
        pipeline.submit(_record(1, b"\x03", partition=4))
        before = (pipeline.in_flight, pipeline.in_flight_bytes)
        pipeline.drop([3])
        between = (pipeline.in_flight, pipeline.in_flight_bytes)
        pipeline.drop([4, 5])
        after = (pipeline.in_flight, pipeline.in_flight_bytes)
        nothing = pipeline.finished()

    assert (before, between, after, nothing) == ((2, 6), (1, 1), (0, 0), None)


def test_places_of_what_has_been_dropped_are_given_back() -> None:
    with _running(places=4) as pipeline:
        for offset in range(20):
            pipeline.submit(_record(offset, b"\x01\x02\x03", partition=1))
            pipeline.drop([1])
        pipeline.submit(_record(0, b"\x01\x02\x03\x04"))
        (outcome,) = _outcomes(pipeline, 1)

    assert _plain(outcome) == (0, [[1, 0], [2, 0], [3, 0], [4, 0]])


# What may be in flight.


def test_there_is_room_for_as_many_records_as_are_allowed() -> None:
    with _running(limits=Limits(max_records=2, max_bytes=1_000)) as pipeline:
        room = [pipeline.has_room]
        for offset in range(2):
            pipeline.submit(_record(offset))
            room.append(pipeline.has_room)
        _outcomes(pipeline, 1)
        room.append(pipeline.has_room)

    assert room == [True, True, False, True]


def test_there_is_room_until_the_bytes_are_reached_and_the_last_record_may_exceed_them() -> None:
    with _running(limits=Limits(max_records=100, max_bytes=10)) as pipeline:
        pipeline.submit(_record(0, b"\x01" * 4, key=b"12345"))
        almost = (pipeline.in_flight_bytes, pipeline.has_room)
        pipeline.submit(_record(1, b"\x01" * 8))
        over = (pipeline.in_flight_bytes, pipeline.has_room)
        _outcomes(pipeline, 2)
        done = (pipeline.in_flight, pipeline.in_flight_bytes, pipeline.has_room)

    assert (almost, over, done) == ((9, True), (17, False), (0, 0, True))


def test_records_that_need_more_places_together_than_there_are_wait_for_each_other() -> None:
    values = [b"\x01\x02\x03", b"\x81\x02\x83"] * 100

    with _running(threads=4, places=4, max_batch=2) as pipeline:
        for offset, value in enumerate(values):
            pipeline.submit(_record(offset, value))
        outcomes = _outcomes(pipeline, len(values))

    assert [_plain(outcome) for outcome in outcomes] == [
        (offset, _embeddings(value)) for offset, value in enumerate(values)
    ]


def test_a_record_that_needs_every_place_is_embedded() -> None:
    with _running(threads=3, places=4, max_batch=3) as pipeline:
        for offset in range(30):
            pipeline.submit(_record(offset, b"\x01\x02\x03\x04"))
        outcomes = _outcomes(pipeline, 30)

    assert [_plain(outcome) for outcome in outcomes] == [(n, _embeddings(b"\x01\x02\x03\x04")) for n in range(30)]


# The end.


def _alive(pipeline: Pipeline) -> list[str]:
    return [thread.name for thread in pipeline.threads if thread.is_alive()]


def test_the_threads_have_names() -> None:
    with _running(threads=3) as pipeline:
        assert _alive(pipeline) == ["prepare-0", "prepare-1", "prepare-2", "encode"]


def test_threads_that_wait_for_work_end() -> None:
    with _running(threads=3) as pipeline:
        pipeline.close()
        pipeline.wait_for_threads(PATIENCE_S)

        assert _alive(pipeline) == []


def test_threads_that_wait_in_the_batcher_for_a_place_end() -> None:
    encoder, observer = _Encoder(), _Observer()
    encoder.gate.clear()

    with _running(encoder=encoder, observer=observer, threads=4, places=2, max_batch=2) as pipeline:
        pipeline.submit(_record(0, b"\x01"))
        assert encoder.begun.wait(PATIENCE_S)
        for offset in range(1, 6):  # one row is taken: four threads wait for what the other leaves
            pipeline.submit(_record(offset, b"\x01\x02"))
        _until(lambda: observer.records == 5)
        pipeline.close()
        encoder.gate.set()
        pipeline.wait_for_threads(PATIENCE_S)

        assert _alive(pipeline) == []


def test_a_thread_that_does_not_end_is_named_with_what_it_is_at() -> None:
    encoder = _Encoder()
    encoder.gate.clear()

    with _running(encoder=encoder) as pipeline:
        pipeline.submit(_record(0, b"\x01\x02"))
        assert encoder.begun.wait(PATIENCE_S)
        pipeline.close()
        with pytest.raises(
            ThreadDied, match=r"^still at work 0\.05 s after the session's end: encode: a batch of 2 images"
        ):
            pipeline.wait_for_threads(0.05)


def test_a_thread_is_at_its_record_until_it_is_prepared() -> None:
    begun, gate = Event(), Event()

    def prepare(record: Record, _: Beat) -> Skipped:
        begun.set()
        assert gate.wait(PATIENCE_S)
        return Skipped(record)

    with _running(prepare, threads=1) as pipeline:
        pipeline.submit(_record(7))
        assert begun.wait(PATIENCE_S)
        busy = str(pipeline.activities[0]).partition(" for ")[0]
        gate.set()
        _outcomes(pipeline, 1)
        _until(lambda: str(pipeline.activities[0]) == "prepare-0 waits")

    assert busy == "prepare-0: documents[0]@7"


# The batcher alone.


def _put(batcher: Batcher, offset: int, value: bytes) -> None:
    record = _record(offset, value)
    prepared = _prepare(record, lambda: None)
    assert isinstance(prepared, Prepared)
    batcher.put(prepared, Place(record))


def _values(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> list[float]:
    return [float(value) for value in pixels[:, 0, 0, 0]]


def test_a_batch_takes_what_is_ready_without_waiting_for_more() -> None:
    batcher = Batcher(rows(8, SIDE), max_batch=4, max_wait_s=0)
    _put(batcher, 0, b"\x01\x82")
    _put(batcher, 1, b"\x03")

    batch = batcher.take()

    assert (_values(batch.pixels), _values(batch.preprocessed)) == ([1, 3], [2])
    assert [(job.place.record.offset, index) for job, index in batch.owners] == [(0, 0), (1, 0), (0, 1)]


def test_a_batch_waits_for_more_until_it_is_full() -> None:
    batcher = Batcher(rows(8, SIDE), max_batch=2, max_wait_s=PATIENCE_S)
    _put(batcher, 0, b"\x01")
    begun_s = time.monotonic()
    other = Thread(target=_put, args=(batcher, 1, b"\x02"))
    other.start()

    batch = batcher.take()

    other.join(PATIENCE_S)
    assert _values(batch.pixels) == [1, 2]
    assert time.monotonic() - begun_s < PATIENCE_S


def test_a_batch_that_waits_for_more_leaves_once_it_may_not_linger() -> None:
    batcher = Batcher(rows(8, SIDE), max_batch=2, max_wait_s=PATIENCE_S)
    _put(batcher, 0, b"\x01")
    begun_s = time.monotonic()
    hurry = Timer(0.05, lambda: batcher.linger(allowed=False))
    hurry.start()

    batch = batcher.take()

    hurry.join(PATIENCE_S)
    assert _values(batch.pixels) == [1]
    assert time.monotonic() - begun_s < PATIENCE_S


def test_a_batch_lingers_again_once_it_may() -> None:
    batcher = Batcher(rows(8, SIDE), max_batch=2, max_wait_s=0.05)
    batcher.linger(allowed=False)
    batcher.linger(allowed=True)
    _put(batcher, 0, b"\x01")
    begun_s = time.monotonic()

    batch = batcher.take()

    assert _values(batch.pixels) == [1]
    assert time.monotonic() - begun_s >= 0.05


def test_a_batch_waits_no_longer_for_more_than_it_may() -> None:
    batcher = Batcher(rows(8, SIDE), max_batch=2, max_wait_s=0.02)
    _put(batcher, 0, b"\x01")
    begun_s = time.monotonic()

    batch = batcher.take()

    assert _values(batch.pixels) == [1]
    assert 0.02 <= time.monotonic() - begun_s < PATIENCE_S


def test_images_that_a_batch_had_no_room_for_are_the_first_of_the_next() -> None:
    batcher = Batcher(rows(8, SIDE), max_batch=2, max_wait_s=0)
    _put(batcher, 0, b"\x01\x02\x03")
    _put(batcher, 1, b"\x04")

    batches = [_values(batcher.take().pixels) for _ in range(2)]

    assert batches == [[1, 2], [3, 4]]


def test_a_row_is_free_once_its_batch_is_given_back() -> None:
    batcher = Batcher(rows(2, SIDE), max_batch=2, max_wait_s=0)

    taken = []
    for value in (b"\x01\x02", b"\x03\x84", b"\x05\x06"):
        _put(batcher, 0, value)
        batch = batcher.take()
        taken.append((_values(batch.pixels), _values(batch.preprocessed)))
        batcher.give_back(batch)

    assert taken == [([1, 2], []), ([3], [4]), ([5, 6], [])]


def test_a_row_is_not_written_again_before_its_batch_is_given_back() -> None:
    batcher = Batcher(rows(1, SIDE), max_batch=1, max_wait_s=0)
    _put(batcher, 0, b"\x01")
    batch = batcher.take()
    other = Thread(target=_put, args=(batcher, 1, b"\x02"))
    other.start()

    other.join(0.02)

    assert _values(batch.pixels) == [1]
    batcher.give_back(batch)
    assert _values(batcher.take().pixels) == [2]
    other.join(PATIENCE_S)


def test_a_batch_lies_in_memory_as_it_was_written() -> None:
    memory = rows(4, SIDE)
    batcher = Batcher(memory, max_batch=4, max_wait_s=0)
    _put(batcher, 0, b"\x01\x02\x03")

    batch = batcher.take()

    assert np.shares_memory(batch.pixels, memory)


def test_a_batch_ends_where_the_memory_does() -> None:
    batcher = Batcher(rows(3, SIDE), max_batch=2, max_wait_s=0)
    taken = []
    for offset, value in enumerate([b"\x01\x02", b"\x03", b"\x04", b"\x05"]):
        _put(batcher, offset, value)
        if offset != 1:
            batch = batcher.take()
            taken.append(_values(batch.pixels))
            batcher.give_back(batch)

    assert taken == [[1, 2], [3], [4, 5]]


def test_a_row_that_is_written_before_the_one_in_front_of_it_waits_for_that() -> None:
    batcher = Batcher(rows(4, SIDE), max_batch=4, max_wait_s=0)
    _put(batcher, 0, b"\x01\x02")
    first, second = batcher._written.take(), batcher._written.take()
    batcher._written.put(second)

    early = batcher.take_ready()

    batcher._written.put(first)
    assert early is None
    assert _values(batcher.take().pixels) == [1, 2]


def test_what_is_ready_is_taken_without_waiting() -> None:
    batcher = Batcher(rows(8, SIDE), max_batch=2, max_wait_s=PATIENCE_S)
    _put(batcher, 0, b"\x01")
    begun_s = time.monotonic()

    batches = [batcher.take_ready(), batcher.take_ready()]

    assert [None if it is None else _values(it.pixels) for it in batches] == [[1], None]
    assert time.monotonic() - begun_s < PATIENCE_S


def test_a_record_is_done_with_its_last_embedding_whatever_the_order() -> None:
    batcher = Batcher(rows(8, SIDE), max_batch=3, max_wait_s=0)
    _put(batcher, 0, b"\x81\x02\x83")
    job, _ = batcher.take().owners[0]

    outcomes = [job.fill(index, np.array([index, 10 * index], np.float32)) for index in (2, 0, 1)]

    assert outcomes[:2] == [None, None]
    assert outcomes[2] is not None
    assert _plain(outcomes[2]) == (0, [[0, 0], [1, 10], [2, 20]])


def _raised(call: Callable[[], object], into: list[object]) -> None:
    try:
        into.append(call())
    except Closed as closed:
        into.append(type(closed))


@pytest.mark.parametrize("waiting", [1, 3])
def test_whoever_waits_at_a_batcher_is_woken_when_it_closes(waiting: int) -> None:
    batcher = Batcher(rows(1, SIDE), max_batch=2, max_wait_s=0)
    _put(batcher, 0, b"\x01")  # the only row is taken
    ends: list[object] = []
    calls: Sequence[Callable[[], object]] = [lambda: _put(batcher, 2, b"\x01")] * waiting
    threads = [Thread(target=_raised, args=(call, ends)) for call in calls]
    for thread in threads:
        thread.start()

    batcher.close(waiting)

    for thread in threads:
        thread.join(PATIENCE_S)
    assert ends == [Closed] * waiting


def test_an_encode_thread_that_waits_for_images_is_woken_when_the_batcher_closes() -> None:
    batcher = Batcher(rows(1, SIDE), max_batch=2, max_wait_s=0)
    ends: list[object] = []
    thread = Thread(target=_raised, args=(batcher.take, ends))
    thread.start()

    batcher.close(0)

    thread.join(PATIENCE_S)
    assert ends == [Closed]
