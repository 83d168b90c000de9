import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pytest

from worker.activity import Activity
from worker.errors import EXIT_STALLED
from worker.health import Health, start_watchdog

STALL_S = 10.0
PATIENCE_S = 10.0  # how long a test waits for what has to come


class _Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def health(clock: _Clock) -> Health:
    return Health(STALL_S, clock)


@contextmanager
def _living_thread(name: str) -> Iterator[Thread]:
    end = Event()
    thread = Thread(target=end.wait, name=name, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        end.set()
        thread.join(PATIENCE_S)


def _dead_thread(name: str) -> Thread:
    thread = Thread(target=lambda: None, name=name)
    thread.start()
    thread.join(PATIENCE_S)
    return thread


# What a thread is at.


def test_a_thread_that_waits_never_stalls(clock: _Clock) -> None:
    activity = Activity("encode", clock)
    clock.now_s += 1_000_000

    assert (activity.is_stalled(STALL_S), activity.busy_s, str(activity)) == (False, 0, "encode waits")


def test_a_thread_stalls_once_it_has_been_at_the_same_work_for_longer_than_it_may(clock: _Clock) -> None:
    activity = Activity("encode", clock)
    activity.begin("a batch of 8 images")

    found = []
    for _ in range(3):
        found.append((activity.busy_s, activity.is_stalled(STALL_S)))
        clock.now_s += STALL_S

    assert found == [(0, False), (STALL_S, False), (2 * STALL_S, True)]


def test_a_thread_that_gives_signs_of_life_does_not_stall(clock: _Clock) -> None:
    activity = Activity("prepare-0", clock)

    for _ in range(10):
        activity.begin("documents[0]@7")
        clock.now_s += STALL_S
        assert not activity.is_stalled(STALL_S)


def test_a_thread_that_has_ended_its_work_does_not_stall(clock: _Clock) -> None:
    activity = Activity("prepare-0", clock)
    activity.begin("documents[0]@7")
    clock.now_s += 2 * STALL_S
    activity.end()

    assert not activity.is_stalled(STALL_S)


def test_what_waits_for_a_broker_may_take_longer(clock: _Clock) -> None:
    activity = Activity("main", clock)
    activity.begin("a checkpoint", patience_s=30)

    clock.now_s += STALL_S + 30
    in_time = activity.is_stalled(STALL_S)
    clock.now_s += 0.1
    late = activity.is_stalled(STALL_S)

    assert (in_time, late) == (False, True)


def test_patience_ends_with_the_work_that_it_was_for(clock: _Clock) -> None:
    activity = Activity("main", clock)
    activity.begin("a checkpoint", patience_s=30)
    activity.begin("the loop")
    clock.now_s += STALL_S + 0.1

    assert activity.is_stalled(STALL_S)


# /livez.


def test_a_process_whose_model_loads_is_alive_however_long_it_takes(health: Health, clock: _Clock) -> None:
    clock.now_s += 1_000_000

    assert health.stalled() is None


def test_a_stalled_thread_is_named_with_its_work(health: Health, clock: _Clock) -> None:
    with _living_thread("prepare-0") as thread:
        activity, other = Activity("prepare-0", clock), Activity("encode", clock)
        health.watch([activity, other], [thread])
        activity.begin("documents[0]@7")
        well = health.stalled()
        clock.now_s += STALL_S + 2.5

        assert (well, health.stalled()) == (None, "prepare-0: documents[0]@7 for 12.5 s")


def test_a_dead_thread_is_named_at_once(health: Health) -> None:
    with _living_thread("prepare-0") as thread:
        health.watch([], [thread, _dead_thread("encode")])

        assert health.stalled() == "encode is dead"


def test_everything_that_is_wrong_is_named(health: Health, clock: _Clock) -> None:
    activity = Activity("main", clock)
    health.watch([activity], [_dead_thread("encode"), _dead_thread("prepare-1")])
    activity.begin("the loop")
    health.expect_end_within(5)
    clock.now_s += 20

    assert health.stalled() == "main: the loop for 20.0 s; the end is overdue; encode is dead; prepare-1 is dead"


def test_threads_that_are_no_longer_watched_may_be_dead(health: Health) -> None:
    health.watch([], [_dead_thread("encode")])

    with _living_thread("main") as thread:
        health.watch([], [thread])

        assert health.stalled() is None


def test_an_end_is_overdue_once_its_time_is_up(health: Health, clock: _Clock) -> None:
    health.expect_end_within(45)

    clock.now_s += 45
    in_time = health.stalled()
    clock.now_s += 0.1
    late = health.stalled()

    assert (in_time, late) == (None, "the end is overdue")


# /readyz.


def test_before_the_model_is_loaded_it_is_not_ready(health: Health) -> None:
    assert health.unready() == "the model loads"


def test_it_is_ready_once_it_has_joined_and_a_broker_has_answered_lately(health: Health, clock: _Clock) -> None:
    with _living_thread("main") as thread:
        health.watch([], [thread])
        found = [health.unready()]
        health.note_group(joined=False, silent_s=5)
        found.append(health.unready())
        health.note_group(joined=True, silent_s=4)
        found.append(health.unready())
        clock.now_s += 6
        found.append(health.unready())
        clock.now_s += 1
        found.append(health.unready())

    not_joined = "the consumer has not joined its group"
    assert found == [not_joined, not_joined, None, None, "no broker has answered for 11 s"]


def test_a_member_that_rebalances_stays_ready(health: Health) -> None:
    with _living_thread("main") as thread:
        health.watch([], [thread])
        health.note_group(joined=True, silent_s=0)
        health.note_group(joined=False, silent_s=0)

        assert health.unready() is None


def test_a_new_session_has_to_join_again(health: Health) -> None:
    with _living_thread("main") as thread:
        health.watch([], [thread])
        health.note_group(joined=True, silent_s=0)
        health.watch([], [thread])

        assert health.unready() == "the consumer has not joined its group"


def test_a_broker_that_never_answered_is_said_to_be_silent(health: Health) -> None:
    with _living_thread("main") as thread:
        health.watch([], [thread])
        health.note_group(joined=True, silent_s=float("inf"))

        assert health.unready() == "no broker has answered yet"


def test_a_broker_that_goes_is_missed_after_a_while(clock: _Clock, health: Health) -> None:
    said = []
    with _living_thread("main") as thread:
        health.watch([], [thread])
        health.note_group(joined=True, silent_s=1)
        for _ in range(3):
            clock.now_s += 4
            health.note_group(joined=True, silent_s=float("inf"))
            said.append(health.unready())

    assert said == [None, None, "no broker has answered for 13 s"]


def test_a_process_that_is_to_end_is_not_ready(health: Health) -> None:
    with _living_thread("main") as thread:
        health.watch([], [thread])
        health.note_group(joined=True, silent_s=0)
        health.expect_end_within(45)

        assert health.unready() is not None


# The watchdog.


def test_the_watchdog_ends_the_process_once_something_hangs(caplog: pytest.LogCaptureFixture) -> None:
    health = Health(0.2)
    activity = Activity("main")
    ended = Event()
    codes: list[int] = []

    def end(exit_code: int) -> None:
        codes.append(exit_code)
        ended.set()

    with _living_thread("main") as thread:
        health.watch([activity], [thread])
        begun_s = time.monotonic()
        activity.begin("the loop")
        start_watchdog(health, end)
        assert ended.wait(PATIENCE_S)

    assert codes == [EXIT_STALLED]
    assert time.monotonic() - begun_s > 0.2
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("ending the process: main: the loop for ")


def test_the_last_line_names_what_every_thread_is_at(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    health = Health(0.2)
    activities = [Activity("main"), Activity("prepare-0"), Activity("prepare-1"), Activity("prepare-2")]
    ended = Event()

    def end(_: int) -> None:
        ended.set()

    with _living_thread("main") as thread:
        health.watch(activities, [thread])
        activities[1].begin("documents[0]@7")
        activities[3].begin("documents[2]@9", patience_s=100)
        start_watchdog(health, end)
        assert ended.wait(PATIENCE_S)

    [line] = [record.getMessage() for record in caplog.records]
    in_hand = r"prepare-0: documents\[0\]@7 for \d+\.\d s"
    assert re.fullmatch(
        rf"ending the process: {in_hand}; at work: {in_hand}; prepare-2: documents\[2\]@9 for \d+\.\d s", line
    )
    assert "in watch" in capfd.readouterr().err


def test_where_a_thread_has_died_nothing_is_said_to_be_at_work(health: Health) -> None:
    health.watch([Activity("prepare-0")], [_dead_thread("encode")])

    assert health.at_work() == "no thread is at work"


def test_a_process_that_is_to_end_stays_unready_though_its_consumer_is_still_in_the_group(health: Health) -> None:
    with _living_thread("main") as thread:
        health.watch([], [thread])
        health.expect_end_within(45)
        health.note_group(joined=True, silent_s=0)

        assert health.unready() is not None
