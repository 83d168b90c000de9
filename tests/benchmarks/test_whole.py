"""The parts that need a broker, at a scale that says little of speed; the floors are loose, for machines are shared."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from statistics import fmean

import pytest

from tests.benchmarks.latency import latency_on, poisson
from tests.benchmarks.overhead import overhead_on
from tests.benchmarks.profiles import profile_on
from tests.benchmarks.pyspy import read_stack
from tests.benchmarks.report import Bound, Measurement, Result, Size
from tests.benchmarks.scale import scale_on
from tests.benchmarks.simulated import TRICKS, idle_share
from tests.benchmarks.stage import Round, Stage, opened
from tests.benchmarks.whole import whole_on

SMOKE = Size(rounds=1, scale=0.02)

Part = Callable[[Stage, Size, Callable[[str], None]], Iterator[Result]]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with opened(SMOKE.scale) as it:
        yield it


def test_the_overhead_of_a_record_is_told_by_thread_and_by_step(stage: Stage) -> None:
    results = _results(overhead_on, stage)

    threads = ("all threads", "thread main", "thread prepare", "thread encode", "thread rdk", "Kafka in and out alone")
    assert all(_median(results, f"{size}, {each}") > 0 for size in ("2 KB", "60 KB", "1 MB") for each in threads)
    assert _median(results, "70 KB, Kafka in and out alone") > 0
    assert _median(results, "2 KB, all threads") < 3_000


def test_the_whole_worker_reaches_a_share_of_its_roofline(stage: Stage) -> None:
    results = _results(whole_on, stage)

    ratios = {name: _ratio(results, name) for name in results if name.endswith("worker of roofline")}
    idle_shares = [_ratio(results, name) for name in results if name.endswith("share of time without a batch")]
    assert len(ratios) == 5 + len(TRICKS)
    assert ratios["ViT-B/32 on the CPU, 500×375 JPEG: worker of roofline"] >= 0.3
    assert len(idle_shares) == 4 + len(TRICKS)
    assert all(0 <= share < 1 for share in idle_shares)


def test_the_latency_at_every_load_is_split_into_stages(stage: Stage) -> None:
    results = _results(latency_on, stage)

    for load in ("one at a time", "25% load", "50% load", "80% load"):
        parts = [_median(results, f"{load}: p50 of {each}") for each in ("in", "preparation", "wait and model", "out")]
        assert all(0 < part <= _median(results, f"{load}: max of all") for part in parts)
    assert _ratio(results, "p99 at 50 % load, of its p50") >= 1


def test_workers_partitions_and_guarantees_are_measured_beside_each_other(stage: Stage) -> None:
    results = _results(scale_on, stage)

    assert _median(results, "4 workers: rate") > _median(results, "1 worker: rate")
    assert len(_measurement(results, "4 workers: peak memory of each worker").values) == 4
    assert {"2 workers of 1 worker", "exactly-once of at-least-once", "64 partitions: CPU"} <= results.keys()


def test_the_profile_tells_the_main_and_the_encode_thread_apart(stage: Stage) -> None:
    results = _results(profile_on, stage)

    assert 0 < _median(results, "the GIL is held") <= 110  # samples come late on a machine that is busy
    assert any(name.startswith("main, step ") for name in results)


def test_a_rate_leaves_out_the_first_and_the_last_tenth() -> None:
    steady = range(10_000, 11_000, 10)
    slow_start_and_drain = [0] * 5 + list(steady) + [20_000] * 5

    assert Round(slow_start_and_drain, {}).rate == pytest.approx(100)


def test_the_device_is_idle_between_the_end_of_a_batch_and_the_begin_of_the_next() -> None:
    slow_start = [(-100.0 + number, -99.9 + number, 1) for number in range(8)]
    steady = [(float(begun_s), begun_s + 0.75, 8) for begun_s in range(10)]

    share = idle_share(f"{begun_s} {ended_s} {images}" for begun_s, ended_s, images in slow_start + steady)

    assert share == pytest.approx(7 * 0.25 / 7.75)


def test_open_loop_arrivals_have_the_asked_rate_and_are_the_same_for_a_seed() -> None:
    arrivals_s = poisson(50, 100, seed=3)

    assert arrivals_s == poisson(50, 100, seed=3)
    gaps_s = [later - earlier for earlier, later in pairwise(arrivals_s)]
    assert fmean(gaps_s) == pytest.approx(1 / 50, rel=0.1)


def test_a_sampled_stack_belongs_to_the_innermost_module_of_ours() -> None:
    line = "thread (12): prepare-3;run (threading.py:9);_prepare_all (worker/pipeline.py:4);get (queue.py:1) 17"

    stack, count = read_stack(line)

    assert (stack.thread, stack.step, stack.function, count) == ("prepare", "pipeline", "queue.get", 17)


def _results(part: Part, stage: Stage) -> Mapping[str, Result]:
    return {result.name: result for result in part(stage, SMOKE, print)}


def _measurement(results: Mapping[str, Result], name: str) -> Measurement:
    found = results[name]
    assert isinstance(found, Measurement)
    return found


def _median(results: Mapping[str, Result], name: str) -> float:
    return _measurement(results, name).median


def _ratio(results: Mapping[str, Result], name: str) -> float:
    found = results[name]
    assert isinstance(found, Bound)
    return found.ratio
