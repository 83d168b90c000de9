from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from worker.activity import Activity
from worker.errors import ClientFailed, DrainTimeout, PartitionsLost, Rewind
from worker.loop import Loop, Times
from worker.records import Outcome, Record, Skipped

NEVER = float("inf")
AGAIN_S = 0.1
TIMES = Times(checkpoint_interval_s=1, checkpoint_records=1_000, drain_timeout_s=3, revoke_timeout_s=2)


def _record(offset: int, partition: int = 0) -> Record:
    return Record("documents", partition, offset, b"key", b"value", None, ())


@dataclass
class _Clock:
    """Seconds that pass only while somebody waits."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


Rebalance = Callable[[Loop], None]


@dataclass
class _Source:
    """Gives each record, or runs each rebalance, at its time, one a poll and in that order.

    A record of a paused partition waits until that is resumed.
    """

    clock: _Clock
    events: list[tuple[object, ...]]
    coming: list[tuple[float, Record | Rebalance | Exception]] = field(default_factory=list)
    polls: list[float] = field(default_factory=list)
    noted: dict[int, int] = field(default_factory=dict)
    assignment: set[int] = field(default_factory=set)
    paused: set[int] = field(default_factory=set)
    log: list[Record] = field(default_factory=list)
    _listener: Loop | None = None

    def subscribe(self, listener: Loop) -> None:
        self._listener = listener

    def poll(self, timeout_s: float) -> Record | None:
        assert self._listener is not None
        self.polls.append(self.clock.now_s)
        for number, (at_s, what) in enumerate(self.coming):
            if at_s > self.clock.now_s + timeout_s:
                break
            if isinstance(what, Record) and what.partition in self.paused:
                continue
            del self.coming[number]
            self.clock.now_s = max(self.clock.now_s, at_s)
            if isinstance(what, Exception):
                raise what
            if isinstance(what, Record):
                self.log.append(what)
                return what
            what(self._listener)
            return None
        self.clock.now_s += timeout_s
        return None

    def note_committed(self, positions: Mapping[int, int]) -> None:
        self.noted.update(positions)

    def rewind(self, positions: Mapping[int, int]) -> None:
        """Let what was given since these positions come again, before all else."""
        again = [it for it in self.log if it.offset >= positions.get(it.partition, 0)]
        self.log = [it for it in self.log if it not in again]
        self.coming = [(self.clock.now_s, it) for it in again] + self.coming
        self.events.append(("rewind", dict(positions)))

    def pause(self) -> None:
        self.paused |= self.assignment
        self.events.append(("pause", self.clock.now_s))

    def resume(self) -> None:
        self.paused -= self.assignment
        self.events.append(("resume", self.clock.now_s))

    def assign(self, at_s: float, *partitions: int) -> None:
        def assign(listener: Loop) -> None:
            self.assignment.update(partitions)
            listener.assigned(partitions)

        self.coming.append((at_s, assign))

    def revoke(self, at_s: float, *partitions: int) -> None:
        def revoke(listener: Loop) -> None:
            listener.revoked(partitions)
            self.assignment.difference_update(partitions)
            self.paused.difference_update(partitions)

        self.coming.append((at_s, revoke))


@dataclass
class _Flow:
    """Finishes each record some time after it was taken in, and hands out in order."""

    clock: _Clock
    takes_s: Callable[[Record], float]
    max_records: int
    line: list[tuple[Record, float]] = field(default_factory=list)
    lingers: list[bool] = field(default_factory=list)
    most: int = 0

    @property
    def in_flight(self) -> int:
        return len(self.line)

    @property
    def has_room(self) -> bool:
        return len(self.line) < self.max_records

    def submit(self, record: Record) -> None:
        self.line.append((record, self.clock.now_s + self.takes_s(record)))
        self.most = max(self.most, len(self.line))

    def finished(self) -> Outcome | None:
        if not self.line or self.line[0][1] > self.clock.now_s:
            return None
        return Skipped(self.line[0][0])

    def hand_out(self) -> None:
        del self.line[0]

    def wait(self, timeout_s: float) -> None:
        self.clock.now_s += timeout_s

    def wait_for_room(self, timeout_s: float) -> None:
        self.wait(timeout_s)

    def has(self, partitions: Sequence[int]) -> bool:
        return any(record.partition in partitions for record, _ in self.line)

    def drop(self, partitions: Sequence[int]) -> None:
        self.line = [(record, at_s) for record, at_s in self.line if record.partition not in partitions]

    def linger(self, *, allowed: bool) -> None:
        self.lingers.append(allowed)


@dataclass
class _Delivery:
    """Keeps what it is given; `accepts` and `commits` say whether, and may raise."""

    clock: _Clock
    events: list[tuple[object, ...]]
    accepts: Callable[[Record], bool]
    commits: Callable[[], bool]
    sent: list[Record] = field(default_factory=list)
    tried: list[tuple[float, dict[int, int]]] = field(default_factory=list)
    committed: list[tuple[float, dict[int, int]]] = field(default_factory=list)
    opens: Iterator[bool] = field(default_factory=lambda: iter(()))
    hurried_s: list[float] = field(default_factory=list)
    while_polled: Callable[[], None] = lambda: None

    def poll(self) -> None:
        self.while_polled()

    def send(self, outcome: Outcome) -> bool:
        if not self.accepts(outcome.record):
            return False
        self.sent.append(outcome.record)
        self.events.append(("sent", outcome.record.partition, outcome.record.offset))
        return True

    def open(self) -> bool:
        return next(self.opens, True)

    def hurry(self) -> None:
        self.hurried_s.append(self.clock.now_s)

    def commit(self, positions: Mapping[int, int]) -> float | None:
        self.tried.append((self.clock.now_s, dict(positions)))
        if not self.commits():
            return AGAIN_S
        self.committed.append((self.clock.now_s, dict(positions)))
        self.events.append(("committed", dict(positions)))
        return None

    def abandon(self) -> None:
        self.events.append(("abandoned",))

    def close(self) -> None:
        """Nothing is open."""

    @property
    def last(self) -> dict[int, int]:
        """Return the last offset committed of each partition."""
        return {partition: offset for _, positions in self.committed for partition, offset in positions.items()}


@dataclass
class _Observer:
    events: list[tuple[object, ...]]
    checkpoints_s: list[float] = field(default_factory=list)

    def checkpointed(self, seconds: float) -> None:
        self.checkpoints_s.append(seconds)

    def rebalanced(self, kind: str, partitions: int) -> None:
        self.events.append((kind, partitions))

    def rewound(self) -> None:
        self.events.append(("rewound",))


class _Session:
    """A loop over fakes that share one clock; partitions 0 and 1 are assigned at once."""

    def __init__(
        self,
        *,
        takes_s: Callable[[Record], float] = lambda _: 0.0,
        accepts: Callable[[Record], bool] = lambda _: True,
        commits: Callable[[], bool] = lambda: True,
        max_records: int = 100,
        times: Times = TIMES,
    ) -> None:
        self.events: list[tuple[object, ...]] = []
        self.clock = _Clock()
        self.source = _Source(self.clock, self.events)
        self.flow = _Flow(self.clock, takes_s, max_records)
        self.delivery = _Delivery(self.clock, self.events, accepts, commits)
        self.observer = _Observer(self.events)
        self.activity = Activity("main", self.clock)
        self.loop = Loop(self.source, self.flow, self.delivery, times, self.observer, self.activity, self.clock)
        self.source.assign(0.0, 0, 1)

    def comes(self, at_s: float, *records: Record) -> None:
        self.source.coming += [(at_s, record) for record in records]

    def run(self, until_s: float) -> None:
        self.loop.run(lambda: self.clock.now_s >= until_s)


# Outcomes and offsets.


def test_outcomes_are_handed_on_in_order_and_the_offset_after_the_last_is_committed() -> None:
    session = _Session()
    records = [_record(5), _record(6), _record(40, 1), _record(8), _record(41, 1)]
    session.comes(0.0, *records)

    session.run(until_s=2)

    assert session.delivery.sent == records
    assert session.delivery.last == session.source.noted == {0: 9, 1: 42}
    assert session.loop._positions == {}


def test_positions_are_those_of_outcomes_that_are_handed_on_and_not_committed() -> None:
    session = _Session(accepts=lambda record: record.offset < 7, commits=lambda: False)
    session.comes(0.0, _record(5), _record(6), _record(7), _record(8), _record(40, 1))

    with pytest.raises(DrainTimeout):
        session.run(until_s=2)

    assert session.loop._positions == {0: 7}


def test_nothing_behind_a_missing_outcome_is_committed() -> None:
    session = _Session(takes_s=lambda record: NEVER if record.offset == 7 else 0)
    session.comes(0.0, _record(5), _record(6), _record(7), _record(8))

    with pytest.raises(DrainTimeout):
        session.run(until_s=5)

    assert (session.delivery.sent, session.delivery.last) == ([_record(5), _record(6)], {0: 7})


def test_an_outcome_that_has_to_wait_is_sent_again_before_what_comes_after_it() -> None:
    refusals = {5: 3, 7: 10, 8: 1}

    def accepts(record: Record) -> bool:
        refusals[record.offset] = refusals.get(record.offset, 0) - 1
        return refusals[record.offset] < 0

    session = _Session(accepts=accepts)
    records = [_record(offset) for offset in range(5, 10)]
    session.comes(0.0, *records)

    session.run(until_s=5)

    assert (session.delivery.sent, session.delivery.last) == (records, {0: 10})
    assert len(session.delivery.sent) == 5


def test_nothing_is_committed_past_an_outcome_that_has_to_wait() -> None:
    session = _Session(accepts=lambda record: record.offset != 7)
    session.comes(0.0, *[_record(offset) for offset in range(5, 10)])

    with pytest.raises(DrainTimeout):
        session.run(until_s=5)

    assert (session.delivery.sent, session.delivery.last) == ([_record(5), _record(6)], {0: 7})


# Checkpoints.


def test_checkpoints_are_an_interval_apart() -> None:
    session = _Session()
    for number in range(100):
        session.comes(number * 0.05, _record(number))

    session.run(until_s=4.5)

    times_s = [at_s for at_s, _ in session.delivery.committed[:-1]]  # the last is that of the stop
    gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
    assert times_s[0] < 0.1
    assert [round(gap_s, 1) for gap_s in gaps_s] == [1.0] * 4


def test_a_checkpoint_holds_all_that_was_handed_on_since_the_last() -> None:
    session = _Session()
    session.comes(0.0, _record(5))
    session.comes(0.5, _record(6), _record(40, 1))
    session.comes(1.5, _record(7))

    session.run(until_s=4)

    assert [positions for _, positions in session.delivery.committed] == [{0: 6}, {0: 7, 1: 41}, {0: 8}]


def test_a_checkpoint_is_made_before_its_time_once_it_holds_enough_records() -> None:
    session = _Session(times=replace(TIMES, checkpoint_interval_s=60, checkpoint_records=3))
    session.comes(0.0, _record(0))
    session.comes(1.0, *[_record(offset) for offset in range(1, 8)])

    session.run(until_s=2)

    assert [positions for _, positions in session.delivery.committed] == [{0: 1}, {0: 4}, {0: 7}, {0: 8}]
    assert session.delivery.committed[1][0] < 1.1


def test_nothing_is_taken_in_before_the_producer_is_open() -> None:
    session = _Session()
    session.delivery.opens = iter([False, False, True])
    session.comes(0.0, _record(5))

    session.run(until_s=2)

    assert session.delivery.last == {0: 6}
    assert next(session.delivery.opens, None) is None


def test_a_stop_before_the_producer_is_open_ends_at_once() -> None:
    session = _Session()
    session.delivery.opens = iter([False])

    session.run(until_s=0)

    assert (session.events, session.source.polls) == ([], [])


@pytest.mark.parametrize("interval_s", [0.2, 1, 5])
def test_an_idle_worker_commits_its_last_offsets_within_two_intervals(interval_s: float) -> None:
    session = _Session(times=replace(TIMES, checkpoint_interval_s=interval_s))
    session.comes(0.0, _record(5))
    session.comes(0.1, _record(6), _record(7))

    session.run(until_s=20)

    (_, first), (last_s, last) = session.delivery.committed
    assert (first, last) == ({0: 6}, {0: 8})
    assert last_s <= 0.1 + 2 * interval_s


def test_nothing_is_committed_while_nothing_comes() -> None:
    session = _Session()

    session.run(until_s=10)

    assert session.delivery.tried == []


def test_what_has_been_committed_is_not_committed_again() -> None:
    session = _Session()
    session.comes(0.0, _record(5))

    session.run(until_s=10)

    assert [positions for _, positions in session.delivery.tried] == [{0: 6}]


def test_a_commit_that_is_refused_is_made_again_before_what_came_in_between() -> None:
    session = _Session(commits=lambda: not 0.5 < session.clock.now_s < 1.5)
    session.comes(0.0, _record(5))
    session.comes(0.3, _record(6))
    session.comes(1.25, _record(40, 1))

    session.run(until_s=3)

    tried = [positions for _, positions in session.delivery.tried]
    different = [positions for number, positions in enumerate(tried) if number == 0 or positions != tried[number - 1]]
    assert (different, len(tried) > 3) == ([{0: 6}, {0: 7}, {1: 41}], True)
    assert [positions for _, positions in session.delivery.committed] == [{0: 6}, {0: 7}, {1: 41}]


@pytest.mark.parametrize("busy_s", [0.0, 2.0], ids=["idle", "with work in flight"])
def test_a_commit_that_is_refused_is_made_again_after_polling_and_not_at_once(busy_s: float) -> None:
    session = _Session(takes_s=lambda it: busy_s * it.partition, commits=lambda: session.clock.now_s > 1)
    session.comes(0.0, _record(5), _record(40, 1))

    session.run(until_s=1.5)

    times_s = [at_s for at_s, _ in session.delivery.tried if at_s < 1.1]
    assert len(times_s) > 5
    for earlier_s, later_s in pairwise(times_s):
        assert 0.099 < later_s - earlier_s < 0.3
        assert any(earlier_s <= at_s <= later_s for at_s in session.source.polls)


def test_the_observer_is_told_of_checkpoints_that_were_committed() -> None:
    def commits() -> bool:
        session.clock.now_s += 0.25
        return len(session.delivery.tried) != 1

    session = _Session(commits=commits)
    session.comes(0.0, _record(5))

    session.run(until_s=3)

    assert (len(session.delivery.tried), session.observer.checkpoints_s) == (2, [0.25])


# Partitions that come and go.


def test_a_revoked_partition_is_settled_before_it_is_given_up() -> None:
    session = _Session(takes_s=lambda _: 0.5)
    session.comes(0.0, _record(5), _record(40, 1), _record(6))
    session.source.revoke(0.1, 0)

    session.run(until_s=2)

    assert session.events == [
        ("assigned", 2),
        ("sent", 0, 5),
        ("sent", 1, 40),
        ("sent", 0, 6),
        ("committed", {0: 7, 1: 41}),
        ("revoked", 1),
    ]


def test_what_was_handed_on_of_a_revoked_partition_is_committed_before_it_is_given_up() -> None:
    session = _Session(times=replace(TIMES, checkpoint_interval_s=60))
    session.comes(0.0, _record(5))
    session.comes(0.3, _record(6))
    session.source.revoke(0.6, 0)

    session.run(until_s=2)

    assert session.events == [
        ("assigned", 2),
        ("sent", 0, 5),
        ("committed", {0: 6}),
        ("sent", 0, 6),
        ("committed", {0: 7}),
        ("revoked", 1),
    ]


def test_a_commit_that_is_refused_while_a_partition_is_revoked_is_made_again() -> None:
    answers = iter([False, False, False])
    session = _Session(commits=lambda: next(answers, True))
    session.comes(0.0, _record(5))
    session.source.revoke(0.05, 0)

    session.run(until_s=2)

    assert session.events == [("assigned", 2), ("sent", 0, 5), ("committed", {0: 6}), ("revoked", 1)]
    assert session.clock.now_s < 3


def test_what_is_handed_on_while_a_commit_is_refused_is_committed_after_it() -> None:
    session = _Session(commits=lambda: session.clock.now_s > 0.5)
    session.comes(0.0, _record(5))
    session.comes(0.2, _record(6))
    session.source.revoke(0.3, 0)

    session.run(until_s=3)

    assert session.events == [
        ("assigned", 2),
        ("sent", 0, 5),
        ("sent", 0, 6),
        ("committed", {0: 6}),
        ("committed", {0: 7}),
        ("revoked", 1),
    ]


def test_what_is_in_flight_of_other_partitions_stays_in_flight() -> None:
    session = _Session(takes_s=lambda record: 1.0 if record.partition else 0.1)
    session.comes(0.0, _record(5), _record(40, 1))
    session.source.revoke(0.05, 0)

    session.run(until_s=2)

    assert session.events == [
        ("assigned", 2),
        ("sent", 0, 5),
        ("committed", {0: 6}),
        ("revoked", 1),
        ("sent", 1, 40),
        ("committed", {1: 41}),
    ]


def test_what_can_not_be_settled_in_time_is_dropped_and_not_committed() -> None:
    session = _Session(takes_s=lambda record: NEVER if record.offset == 6 else 0.1)
    session.comes(0.0, _record(5), _record(6), _record(40, 1))
    session.source.revoke(0.05, 0)

    session.run(until_s=4)

    assert session.events == [
        ("assigned", 2),
        ("sent", 0, 5),
        ("committed", {0: 6}),
        ("revoked", 1),
        ("sent", 1, 40),
        ("committed", {1: 41}),
    ]
    assert session.loop._positions == {}


def test_a_partition_is_given_up_when_its_time_is_up() -> None:
    given_up_s: list[float] = []
    session = _Session(takes_s=lambda _: NEVER)
    session.comes(0.0, _record(5))
    session.source.revoke(0.05, 0)
    session.source.coming.append((0.05, lambda _: given_up_s.append(session.clock.now_s)))

    session.run(until_s=4)

    assert 1.6 <= given_up_s[0] < 2


def test_what_is_finished_of_a_partition_is_committed_when_its_time_is_up() -> None:
    session = _Session(
        takes_s=lambda record: NEVER if record.offset == 7 else 0.5, times=replace(TIMES, checkpoint_interval_s=60)
    )
    session.comes(0.0, _record(5))
    session.comes(1.0, _record(6), _record(7))
    session.source.revoke(1.1, 0)

    session.run(until_s=4)

    assert session.events == [
        ("assigned", 2),
        ("sent", 0, 5),
        ("committed", {0: 6}),
        ("sent", 0, 6),
        ("committed", {0: 7}),
        ("revoked", 1),
    ]


def test_no_batch_waits_for_more_records_while_a_partition_is_settled() -> None:
    session = _Session(takes_s=lambda _: 0.1)
    session.comes(0.0, _record(5))
    session.source.revoke(0.05, 0)
    session.source.coming.append((0.2, lambda _: session.events.append(("lingers", *session.flow.lingers))))

    session.run(until_s=1)

    assert ("lingers", False, True) in session.events


def test_a_commit_that_stays_refused_does_not_keep_a_partition() -> None:
    session = _Session(commits=lambda: session.clock.now_s > 3)
    session.comes(0.0, _record(5))
    session.source.revoke(0.05, 0)

    session.run(until_s=4)

    assert session.events == [("assigned", 2), ("sent", 0, 5), ("revoked", 1), ("abandoned",)]


def test_a_partition_that_comes_back_begins_where_its_records_do() -> None:
    session = _Session(takes_s=lambda record: NEVER if record.offset == 6 else 0)
    session.comes(0.0, _record(5), _record(6))
    session.source.revoke(0.1, 0)
    session.source.assign(2.5, 0)
    session.comes(2.6, _record(2), _record(3))

    session.run(until_s=4)

    assert session.delivery.sent == [_record(5), _record(2), _record(3)]
    assert session.delivery.last == {0: 4}


def test_a_rebalance_that_takes_nothing_commits_nothing() -> None:
    session = _Session()
    session.source.revoke(0.5)
    session.source.assign(0.6)

    session.run(until_s=2)

    assert session.events == [("assigned", 2), ("revoked", 2), ("assigned", 2)]


@pytest.mark.parametrize("error", [PartitionsLost("lost [0]"), ClientFailed("consumer: fatal")], ids=["lost", "fatal"])
def test_what_ends_a_session_is_raised_and_nothing_is_committed_any_more(error: Exception) -> None:
    session = _Session(times=replace(TIMES, checkpoint_interval_s=60))
    session.comes(0.0, _record(5))
    session.comes(0.5, _record(6))
    session.source.coming.append((1.0, error))

    with pytest.raises(type(error)) as raised:
        session.run(until_s=5)

    assert raised.value is error
    assert [positions for _, positions in session.delivery.tried] == [{0: 6}]


# The end.


def test_a_stop_finishes_what_is_in_flight_and_takes_nothing_more_in() -> None:
    session = _Session(takes_s=lambda _: 2.0)
    session.comes(0.0, _record(5), _record(6))
    session.comes(1.05, _record(7))

    session.run(until_s=1)

    assert (session.delivery.sent, session.delivery.last) == ([_record(5), _record(6)], {0: 7})
    assert max(session.source.polls) < 1
    assert 2 <= session.clock.now_s < 2.5


def test_a_stop_commits_at_once_whatever_the_interval() -> None:
    session = _Session(times=replace(TIMES, checkpoint_interval_s=60))
    session.comes(0.0, _record(5))
    session.comes(0.5, _record(6))

    session.run(until_s=1)

    assert [positions for _, positions in session.delivery.committed] == [{0: 6}, {0: 7}]
    assert session.clock.now_s < 1.5


def test_a_stop_of_a_worker_that_owns_nothing_ends_at_once() -> None:
    session = _Session()
    session.source.revoke(0.5, 0, 1)

    session.run(until_s=1)

    assert (session.delivery.tried, session.clock.now_s < 1.5) == ([], True)


def test_a_stop_before_anything_was_assigned_ends_at_once() -> None:
    session = _Session()

    session.run(until_s=0)

    assert (session.events, session.source.polls) == ([], [])


def test_a_stop_commits_the_finished_prefix_when_its_time_is_up() -> None:
    session = _Session(takes_s=lambda record: NEVER if record.offset == 7 else 2.0)
    session.comes(0.0, _record(5), _record(40, 1), _record(6), _record(7), _record(8))

    with pytest.raises(DrainTimeout, match=r"^2 records were unfinished after 3 s$"):
        session.run(until_s=1)

    assert session.delivery.last == {0: 7, 1: 41}
    assert session.flow.in_flight == 2
    assert 4 <= session.clock.now_s < 4.2


def test_a_stop_that_can_not_commit_says_so() -> None:
    session = _Session(takes_s=lambda record: NEVER if record.offset == 6 else 0, commits=lambda: False)
    session.comes(0.0, _record(5), _record(6))

    said = r"^1 records were unfinished after 3 s, and what was finished could not be committed$"
    with pytest.raises(DrainTimeout, match=said):
        session.run(until_s=1)

    assert session.delivery.committed == []


# What is taken in.


def test_no_more_is_taken_in_than_there_is_room_for() -> None:
    session = _Session(takes_s=lambda _: 0.2, max_records=3)
    records = [_record(offset) for offset in range(50)]
    session.comes(0.0, *records)

    session.run(until_s=10)

    assert (session.delivery.sent, session.flow.most) == (records, 3)


def test_outcomes_are_handed_on_while_records_keep_coming() -> None:
    session = _Session(max_records=10_000)
    session.comes(0.0, *[_record(offset) for offset in range(1_000)])

    session.run(until_s=1)

    assert session.delivery.last == {0: 1_000}
    assert session.flow.most <= 64


def test_an_abort_that_waits_for_a_broker_is_no_stall() -> None:
    session = _Session()
    stalled: list[bool] = []

    def abort() -> None:
        session.clock.now_s += 10
        stalled.append(session.activity.is_stalled(stall_timeout_s=5))

    session.delivery.while_polled = abort

    session.run(until_s=30)

    assert set(stalled) == {False}


def test_what_was_sent_hurries_once_nothing_is_in_flight() -> None:
    session = _Session(takes_s=lambda record: 0.4 if record.offset == 5 else 1.2)
    session.comes(0.1, _record(5), _record(6))

    session.run(until_s=2)

    assert session.delivery.sent == [_record(5), _record(6)]
    assert [at_s for at_s in session.delivery.hurried_s if 0.1 < at_s < 1.3] == []
    assert [at_s for at_s in session.delivery.hurried_s if 1.3 <= at_s < 1.4] != []


def test_a_full_worker_pauses_after_a_second_and_polls_for_rebalances() -> None:
    session = _Session(takes_s=lambda _: 2.5, max_records=2)
    session.comes(0.0, _record(5), _record(6))

    session.run(until_s=2)

    ((kind, at_s),) = [event for event in session.events if event[0] in ("pause", "resume")]
    assert isinstance(at_s, float)
    assert (kind, 1 <= at_s < 1.1) == ("pause", True)
    assert not [at_s for at_s in session.source.polls if 0.1 < at_s < 1]
    assert len([at_s for at_s in session.source.polls if 1.1 < at_s < 2]) > 10


def test_a_worker_that_is_full_for_less_than_a_second_does_not_pause() -> None:
    session = _Session(takes_s=lambda _: 0.9, max_records=2)
    session.comes(0.0, *[_record(offset) for offset in range(8)])

    session.run(until_s=6)

    assert session.delivery.last == {0: 8}
    assert [event for event in session.events if event[0] in ("pause", "resume")] == []


def test_a_worker_that_has_room_again_resumes() -> None:
    session = _Session(takes_s=lambda record: 1.5 if record.offset < 2 else 0, max_records=2)
    records = [_record(offset) for offset in range(6)]
    session.comes(0.0, *records)

    session.run(until_s=4)

    assert [event[0] for event in session.events if event[0] in ("pause", "resume")] == ["pause", "resume"]
    assert (session.delivery.sent, session.source.paused) == (records, set())


def test_what_was_paused_is_resumed_though_a_partition_was_assigned_in_between() -> None:
    session = _Session(takes_s=lambda record: 1.4985 if record.offset == 5 else 0, max_records=1)
    session.comes(0.0, _record(5))
    session.source.assign(1.4987, 2)  # in the very turn of the loop in which there is room again
    session.comes(2.0, _record(6), _record(70, 2))

    session.run(until_s=3)

    assert session.source.paused == set()
    assert (session.delivery.sent, session.delivery.last) == (
        [_record(5), _record(6), _record(70, 2)],
        {0: 7, 2: 71},
    )


def test_a_full_worker_pauses_a_partition_that_is_assigned_to_it() -> None:
    session = _Session(takes_s=lambda _: NEVER, max_records=1)
    session.comes(0.0, _record(5))
    session.source.assign(1.5, 2)

    with pytest.raises(DrainTimeout):
        session.run(until_s=2)

    assert session.source.paused == {0, 1, 2}


def test_a_full_worker_settles_a_partition_that_is_revoked() -> None:
    session = _Session(takes_s=lambda _: 2.0, max_records=1)
    session.comes(0.0, _record(5))
    session.source.revoke(1.5, 0)

    session.run(until_s=3)

    assert [event for event in session.events if event[0] in ("sent", "committed", "revoked")] == [
        ("sent", 0, 5),
        ("committed", {0: 6}),
        ("revoked", 1),
    ]


def test_a_record_of_a_partition_that_is_assigned_to_a_full_worker_is_not_lost() -> None:
    session = _Session(takes_s=lambda _: 2.0, max_records=1)
    session.comes(0.0, _record(5))
    session.source.assign(1.5, 2)
    session.comes(1.5, _record(70, 2))

    session.run(until_s=3)

    assert (session.delivery.sent, session.delivery.last) == ([_record(5), _record(70, 2)], {0: 6, 2: 71})


# Transactions.


def test_an_aborted_transaction_is_done_again_from_the_last_checkpoint() -> None:
    aborts = iter([False, False, False, True])

    def accepts(_: Record) -> bool:
        if next(aborts, False):
            raise Rewind("a transaction was aborted")
        return True

    session = _Session(accepts=accepts)
    session.comes(0.0, _record(5))
    session.comes(0.3, _record(6), _record(40, 1), _record(7))

    session.run(until_s=3)

    assert session.events == [
        ("assigned", 2),
        ("sent", 0, 5),
        ("committed", {0: 6}),
        ("sent", 0, 6),
        ("sent", 1, 40),
        ("rewind", {0: 6, 1: 40}),
        ("rewound",),
        ("sent", 0, 6),
        ("sent", 1, 40),
        ("sent", 0, 7),
        ("committed", {0: 8, 1: 41}),
    ]


def test_what_is_in_flight_when_a_transaction_is_aborted_is_handed_on_once() -> None:
    aborts = iter([True])

    def commits() -> bool:
        if next(aborts, False):
            raise Rewind("a transaction was aborted")
        return True

    session = _Session(takes_s=lambda record: 0.1 * record.offset, commits=commits)
    session.comes(0.0, _record(0), _record(1), _record(2))

    session.run(until_s=3)

    assert [record.offset for record in session.delivery.sent] == [0, 0, 1, 2]
    assert session.delivery.last == {0: 3}


def test_a_checkpoint_that_waits_keeps_its_positions_or_it_would_wait_for_ever() -> None:
    session = _Session(commits=lambda: session.clock.now_s > 3)
    for tenth in range(50):
        session.comes(tenth / 10, _record(5 + tenth))

    session.run(until_s=6)

    first_try_s = session.delivery.tried[0][0]
    tried = [positions for at_s, positions in session.delivery.tried if first_try_s <= at_s <= 3]
    assert all(positions == tried[0] for positions in tried)
    assert session.delivery.last == {0: 55}
