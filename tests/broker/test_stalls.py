"""What hangs, dies, fails or is only slow: the worker as a process on a real broker."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest
from confluent_kafka import KafkaException

from tests.broker.instant_worker import (
    BREAKS_DEVICE,
    DELAY,
    FAILS_MODEL,
    FAULTS,
    HANGS_DECODER,
    HANGS_DEVICE,
    HANGS_IN,
    HANGS_WHEN,
    IS_SLOW,
    KILLS_THREAD,
    MEMORY,
    SLOW_S,
    Colour,
)
from tests.broker.kafka import Kafka, Sent, Topics, committed, create_topic, end_offsets, produce, read_all
from tests.broker.processes import START_TIMEOUT_S, Worker, group_of, running_worker, started_worker
from worker.errors import EXIT_STALLED, DeviceError, ThreadDied

PARTITIONS = 4
RECORDS = 200
AT_FAULT = 100
WATCHDOG_S = 2.0  # how much later than /livez the watchdog ends the process
IN_TIME_S = 60
STALL_S = 2
STALLS = (
    *("--stall-timeout-s", str(STALL_S), "--checkpoint-interval-s", "0.2"),
    *("--kafka", "session.timeout.ms=6000"),  # the group waits so long for a process that ended without leaving
)
FAULTY = {FAULTS: "1"}


def _document(number: int, colour: Colour | None = None, chunks: Sequence[Colour] = ()) -> bytes:
    fields = {"id": str(number), "blob": _picture(colour or (number % 250, 1, 1))}
    return bytes(msgpack.packb(fields | {"chunks": [{"blob": _picture(each)} for each in chunks]}))


def _picture(colour: Colour) -> Mapping[str, object]:
    return {"dtype": "uint8", "shape": [1, 1, 3], "data": bytes(colour)}


def _sent(at_fault: Mapping[int, Colour]) -> list[Sent]:
    return [
        Sent(str(number).encode(), _document(number, at_fault.get(number)), partition=number % PARTITIONS)
        for number in range(RECORDS)
    ]


def _places(kafka: Kafka, topic: str, prefix: str = "source.") -> list[tuple[int, int]]:
    """Return where the records on a topic came from, in their order there."""
    told = [dict(message.headers() or ()) for message in read_all(kafka.bootstrap_servers, topic)]
    return [(int(each[f"{prefix}partition"] or b""), int(each[f"{prefix}offset"] or b"")) for each in told]


def _all_places() -> list[tuple[int, int]]:
    return [(number % PARTITIONS, number // PARTITIONS) for number in range(RECORDS)]


def _commits(kafka: Kafka, topics: Topics) -> Mapping[int, int]:
    return committed(kafka.bootstrap_servers, group_of(topics), topics.input)


def _everything_is_committed(kafka: Kafka, topics: Topics) -> bool:
    try:
        return _commits(kafka, topics) == end_offsets(kafka.bootstrap_servers, topics.input)
    except KafkaException as exception:
        if not exception.args[0].retriable():  # the group's coordinator is on its way
            raise
        return False


def _has_embedded(worker: Worker, images: int) -> Callable[[], bool]:
    return lambda: worker.metric("clip_worker_images_total") >= images


def _finish(kafka: Kafka, topics: Topics, worker: Worker) -> None:
    worker.wait_until(lambda: _everything_is_committed(kafka, topics), IN_TIME_S, "everything is committed")
    assert worker.stop() == 0


def _check_that_nothing_is_committed_unwritten(kafka: Kafka, topics: Topics) -> None:
    outcomes = set(_places(kafka, topics.output)) | set(_places(kafka, topics.dead_letters, "dlq."))
    for partition, offset in _commits(kafka, topics).items():
        assert {(partition, before) for before in range(offset)} <= outcomes


def _check_that_a_restart_does_the_rest(kafka: Kafka, topics: Topics) -> None:
    _check_that_nothing_is_committed_unwritten(kafka, topics)
    with running_worker(kafka, topics) as worker:
        _finish(kafka, topics, worker)
    assert set(_places(kafka, topics.output)) == set(_all_places())


def _what_livez_says(worker: Worker) -> str:
    """Return what /livez says of a worker that hangs; asked only while that is there to answer."""
    said: list[str] = []

    def fails() -> bool:
        status, text = worker.get("/livez")
        if status != 200:
            said.append(text.strip())
        return bool(said)

    worker.wait_until(fails, STALL_S + IN_TIME_S, "/livez fails")
    return said[0]


# What hangs.


@pytest.mark.parametrize(
    ("colour", "named"),
    [
        pytest.param(HANGS_DEVICE, r"encode: a batch of \d+ images for \d\.\d s", id="the device"),
        pytest.param(HANGS_DECODER, r"prepare-\d: documents-\w+\[0\]@25 for \d\.\d s", id="a decoder"),
    ],
)
def test_a_thread_that_hangs_ends_the_process_and_a_restart_does_the_rest(
    kafka: Kafka, topics: Topics, colour: Colour, named: str
) -> None:
    produce(kafka.bootstrap_servers, topics.input, _sent({AT_FAULT: colour}))

    with started_worker(kafka, topics, *STALLS, env=FAULTY) as worker:
        said = _what_livez_says(worker)
        failed_s = time.monotonic()
        exit_code = worker.wait()
        ended_s = time.monotonic()
        log = worker.log

    assert re.fullmatch(named, said)
    assert exit_code == EXIT_STALLED
    assert ended_s - failed_s < WATCHDOG_S + 1.5
    assert re.search(f"ending the process: {named}", log)
    _check_that_a_restart_does_the_rest(kafka, topics)


@pytest.mark.parametrize(("call", "work"), [("poll", "the loop"), ("commit", "a checkpoint")])
def test_a_client_call_that_hangs_ends_the_process_and_a_restart_does_the_rest(
    kafka: Kafka, topics: Topics, call: str, work: str, tmp_path: Path
) -> None:
    hang = tmp_path / "hang"
    slow = {DELAY: "0.05", HANGS_IN: call, HANGS_WHEN: str(hang)}
    produce(kafka.bootstrap_servers, topics.input, _sent({}))

    with running_worker(kafka, topics, *STALLS, env=FAULTY | slow) as worker:
        worker.wait_until(_has_embedded(worker, 20), IN_TIME_S, "some outcomes")
        hang.touch()
        said = _what_livez_says(worker)
        exit_code = worker.wait()

    assert re.fullmatch(rf"main: {work} for \d\.\d s", said)
    assert exit_code == EXIT_STALLED
    _check_that_a_restart_does_the_rest(kafka, topics)


def test_a_thread_that_dies_ends_the_process_and_a_restart_does_the_rest(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.input, _sent({AT_FAULT: KILLS_THREAD}))

    with started_worker(kafka, topics, *STALLS, env=FAULTY) as worker:
        exit_code = worker.wait(START_TIMEOUT_S)
        log = worker.log

    assert exit_code == ThreadDied.exit_code
    assert "a thread of the pipeline failed: RuntimeError: as told" in log
    _check_that_a_restart_does_the_rest(kafka, topics)


# What is only slow.


def test_a_record_of_many_slow_images_is_no_stall(kafka: Kafka, topics: Topics) -> None:
    images = 8
    assert images * SLOW_S > 2 * STALL_S
    value = _document(0, IS_SLOW, chunks=[IS_SLOW] * (images - 1))
    produce(kafka.bootstrap_servers, topics.input, [Sent(b"0", value, (("traversal", b"r,c"),))])

    with running_worker(kafka, topics, *STALLS, env=FAULTY) as worker:
        worker.wait_until(
            lambda: worker.get("/livez") == (200, "ok\n") and worker.metric("clip_worker_images_total") == images,
            IN_TIME_S,
            "all images are embedded",
        )
        assert worker.stop() == 0


SUSPENDED_S = 20.0
QUICK_STALLS = ("--stall-timeout-s", "5", "--checkpoint-interval-s", "0.3")


@contextmanager
def _suspended(kafka: Kafka) -> Iterator[None]:
    kafka.suspend()
    try:
        yield
    finally:
        kafka.resume()


def _topics_like(kafka: Kafka, topics: Topics) -> Topics:
    others = Topics(*[f"{name}-too" for name in (topics.input, topics.output, topics.dead_letters)])
    create_topic(kafka.bootstrap_servers, others.input, PARTITIONS)
    create_topic(kafka.bootstrap_servers, others.output)
    create_topic(kafka.bootstrap_servers, others.dead_letters)
    return others


def test_a_suspended_broker_is_no_stall_and_costs_nothing(kafka: Kafka, topics: Topics) -> None:
    once = _topics_like(kafka, topics)
    for each in (topics, once):
        produce(kafka.bootstrap_servers, each.input, _sent({}))
    slow = {DELAY: "0.15"}

    with (
        running_worker(kafka, topics, *QUICK_STALLS, env=slow) as at_least_once,
        running_worker(kafka, once, *QUICK_STALLS, "--delivery", "exactly-once", env=slow) as exactly_once,
    ):
        workers = (at_least_once, exactly_once)
        for worker in workers:
            worker.wait_until(_has_embedded(worker, 8), IN_TIME_S, "at work")
        with _suspended(kafka):
            end_s = time.monotonic() + SUSPENDED_S
            unready = set()
            while time.monotonic() < end_s:
                assert [worker.get("/livez")[0] for worker in workers] == [200, 200]
                unready |= {worker.pid for worker in workers if worker.get("/readyz")[0] == 503}
                time.sleep(0.2)
        assert unready == {worker.pid for worker in workers}
        for worker in workers:
            worker.wait_until_ready()
        _finish(kafka, topics, at_least_once)
        _finish(kafka, once, exactly_once)

    assert set(_places(kafka, topics.output)) == set(_all_places())
    assert Counter(_places(kafka, once.output)) == Counter(_all_places())


# What the device refuses.


def test_a_record_that_the_model_fails_at_becomes_a_dead_letter_and_the_others_go_on(
    kafka: Kafka, topics: Topics
) -> None:
    produce(kafka.bootstrap_servers, topics.input, _sent({AT_FAULT: FAILS_MODEL}))

    with running_worker(kafka, topics, env=FAULTY) as worker:
        _finish(kafka, topics, worker)

    [letter] = read_all(kafka.bootstrap_servers, topics.dead_letters)
    told = dict(letter.headers() or ())
    assert (told["dlq.reason"], told["dlq.detail"]) == (
        b"model-error",
        b"the model fails at an image of this record: RuntimeError: as told",
    )
    at_fault = (AT_FAULT % PARTITIONS, AT_FAULT // PARTITIONS)
    assert Counter([*_places(kafka, topics.output), at_fault]) == Counter(_all_places())


def test_batches_that_the_device_has_no_memory_for_are_made_smaller(kafka: Kafka, topics: Topics) -> None:
    produce(kafka.bootstrap_servers, topics.input, _sent({}))

    with running_worker(kafka, topics, "--max-batch", "8", env=FAULTY | {MEMORY: "3", DELAY: "0.01"}) as worker:
        worker.wait_until(lambda: _everything_is_committed(kafka, topics), IN_TIME_S, "everything is committed")
        assert worker.metric("clip_worker_split_batches_total", cause="out-of-memory") > 0
        assert worker.stop() == 0

    assert Counter(_places(kafka, topics.output)) == Counter(_all_places())


def test_a_device_that_fails_at_everything_ends_the_process_and_a_restart_does_the_rest(
    kafka: Kafka, topics: Topics
) -> None:
    produce(kafka.bootstrap_servers, topics.input, _sent({AT_FAULT: BREAKS_DEVICE}))

    with started_worker(kafka, topics, *STALLS, env=FAULTY) as worker:
        exit_code = worker.wait(START_TIMEOUT_S)
        log = worker.log

    assert exit_code == DeviceError.exit_code
    assert "the device fails at every image: RuntimeError: as told" in log
    assert read_all(kafka.bootstrap_servers, topics.dead_letters) == []
    _check_that_a_restart_does_the_rest(kafka, topics)
