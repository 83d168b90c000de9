"""The loop under schedules that are made up, judged by what a broker would show afterwards.

The loop and the pipeline's line are the real ones. Group, producer and broker are fakes on one clock that passes only
while somebody waits: nothing here depends on how fast the machine is, and a schedule that fails fails again.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.dead_letter import Reason
from tests.unit.encoders import AtOnce, rows
from worker.activity import Activity
from worker.batcher import Batcher
from worker.batcher import Place as InLine
from worker.errors import ClientFailed, DrainTimeout, PartitionsLost, Rewind, SessionError
from worker.loop import Delivers, Loop, Times
from worker.pipeline import Beat, Limits, Pipeline
from worker.records import Deleted, Outcome, Record, Rejected, Skipped, SplitCause

Guarantee = Literal["at-least-once", "exactly-once"]
Call = Literal["poll", "send", "commit"]
Place = tuple[int, int]
"""A partition and an offset."""

TIMES = Times(checkpoint_interval_s=0.2, checkpoint_records=7, drain_timeout_s=0.6, revoke_timeout_s=0.3)
AGAIN_S = 0.1
TURN_S = 0.002
SLOW_S = 1.3  # a worker that is full for so long pauses
LIMIT_S = 60.0  # by when everything has to be done, whatever happened


# What happens, and when.


@dataclass(frozen=True, slots=True)
class Away:
    """Partitions are revoked; another member has them for a while and does some of their records."""

    at_s: float
    for_s: float
    partitions: frozenset[int]
    does: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Partitions are gone without a word: another member has had them, and has done some of their records."""

    at_s: float
    does: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A call of a client fails for good."""

    at_s: float
    call: Call


@dataclass(frozen=True, slots=True)
class Aborted:
    """The transaction can't go on."""

    at_s: float
    call: Call


@dataclass(frozen=True, slots=True)
class Stopped:
    """The process is asked to end; another one follows."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Commits are answered with "again", though some may have been made."""

    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Full:
    """The producer takes nothing."""

    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Unacknowledged:
    """Nothing that was sent is acknowledged."""

    at_s: float
    for_s: float


Incident = Away | Lost | Failed | Aborted | Stopped | Refused | Full | Unacknowledged


@dataclass(frozen=True, slots=True)
class Schedule:
    """A world: so many records in each partition, how long all takes, and what happens meanwhile."""

    ends: tuple[int, ...]
    gap_s: float  # between the records of a partition
    takes_s: tuple[float, ...]
    slow: frozenset[Place]
    acknowledged_s: float
    commit_s: float  # how long a transaction's takes
    max_records: int
    lands: bool  # whether what has no known end has been done
    incidents: tuple[Incident, ...]

    def duration_s(self, record: Record) -> float:
        """Return how long a record takes from its submission."""
        if (record.partition, record.offset) in self.slow:
            return SLOW_S
        return self.takes_s[(7 * record.partition + record.offset) % len(self.takes_s)]


def _schedules() -> st.SearchStrategy[Schedule]:
    at_s = st.integers(0, 200).map(lambda hundredths: hundredths / 100)
    for_s = st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.2])
    partitions = st.frozensets(st.integers(0, 2))
    does = st.sampled_from([0, 0, 1, 3])
    incidents = st.one_of(
        st.builds(Away, at_s, for_s, partitions, does),
        st.builds(Away, at_s, for_s, st.just(frozenset({0, 1, 2})), does),
        st.builds(Lost, at_s, does),
        st.builds(Failed, at_s, st.sampled_from(["poll", "send", "commit"])),
        st.builds(Aborted, at_s, st.sampled_from(["send", "commit"])),
        st.builds(Stopped, at_s),
        st.builds(Refused, at_s, for_s),
        st.builds(Full, at_s, for_s),
        st.builds(Unacknowledged, at_s, for_s),
    )
    return st.builds(
        Schedule,
        ends=st.tuples(*[st.integers(0, 30)] * 3),
        gap_s=st.sampled_from([0.0, 0.003, 0.02]),
        takes_s=st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.05, 0.2]), min_size=1, max_size=7).map(tuple),
        slow=st.frozensets(st.tuples(st.integers(0, 2), st.integers(0, 20)), max_size=2),
        acknowledged_s=st.sampled_from([0.0, 0.004, 0.05]),
        commit_s=st.sampled_from([0.0, 0.03, 0.3]),
        max_records=st.sampled_from([1, 3, 10, 1000]),
        lands=st.booleans(),
        incidents=st.lists(incidents, max_size=7).map(lambda them: tuple(sorted(them, key=lambda it: it.at_s))),
    )


# The world in which it happens.


@dataclass
class _Broker:
    """What is durable, in the order in which it came to be. It takes every commit, as Kafka does."""

    log: list[Place] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)

    def write(self, *places: Place) -> None:
        self.log += places

    def commit(self, positions: Mapping[int, int]) -> None:
        for partition, offset in positions.items():
            missing = set(range(offset)) - set(self.offsets(partition))
            assert not missing, f"{offset} was committed for {partition} without the outcomes of {sorted(missing)}"
            before = self.committed.get(partition, 0)
            assert offset >= before, f"{offset} was committed for {partition}, where {before} was"
            self.committed[partition] = offset

    def offsets(self, partition: int) -> list[int]:
        return [offset for number, offset in self.log if number == partition]


class _World:
    """The clock, the broker, and what has not happened yet."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.broker = _Broker()
        self.now_s = 0.0
        self.coming = list(schedule.incidents)
        self.back_s: dict[int, float] = {}  # when another member gives up what it has
        self.was_unclean = False  # at-least-once may have repeated something
        self.was_aborted_at_the_end = False  # a stop leaves what it took back to the next process
        self.end_doubt: Callable[[Sequence[int]], None] = lambda _: None

    def clock(self) -> float:
        return self.now_s

    @property
    def is_over(self) -> bool:
        self.was_aborted_at_the_end = False
        return self.is_done or self.due(Stopped) is not None

    def due(self, kind: type[Incident], call: Call | None = None) -> Incident | None:
        """Take the next incident of a kind whose time has come."""
        for number, incident in enumerate(self.coming):
            if incident.at_s > self.now_s:
                return None
            if isinstance(incident, kind) and call in (None, getattr(incident, "call", None)):
                return self.coming.pop(number)
        return None

    def is_in(self, *kinds: type[Refused | Full | Unacknowledged]) -> bool:
        return any(
            isinstance(it, kinds) and it.at_s <= self.now_s < it.at_s + it.for_s for it in self.schedule.incidents
        )

    def fail(self, call: Call) -> None:
        if self.due(Failed, call) is not None:
            raise ClientFailed(f"{call} failed")

    def give_to_another(self, partitions: Sequence[int], does: int) -> None:
        """Let another member begin where the group's offsets say."""
        self.end_doubt(partitions)
        for partition in partitions:
            begin = self.broker.committed.get(partition, 0)
            end = min(begin + does, self.schedule.ends[partition])
            self.broker.write(*[(partition, offset) for offset in range(begin, end)])
            self.broker.commit({partition: end})

    @property
    def is_done(self) -> bool:
        assert self.now_s < LIMIT_S, f"not done: {self.broker.committed} of {self.schedule.ends}"
        if any(isinstance(it, Away | Lost | Stopped) for it in self.coming):
            return False
        committed = self.broker.committed
        return all(committed.get(number, 0) == end for number, end in enumerate(self.schedule.ends))


class _Source:
    """A member of the group. What it has given is current until its partition is given up, or it goes back."""

    def __init__(self, world: _World) -> None:
        self._world = world
        self._next: dict[int, int] = {}  # of each partition that is owned
        self._paused: set[int] = set()
        self._current: dict[Place, Record] = {}
        self._listener: Loop | None = None

    @property
    def owned(self) -> set[int]:
        return set(self._next)

    def is_current(self, record: Record) -> bool:
        return self._current.get((record.partition, record.offset)) is record

    def subscribe(self, listener: Loop) -> None:
        self._listener = listener

    def poll(self, timeout_s: float) -> Record | None:
        """Run the rebalances that are due, and give a record in the same call, as the client may."""
        world = self._world
        world.fail("poll")
        self._rebalance()
        record = self._give()
        if record is None:
            world.now_s += min(timeout_s, 10 * TURN_S)
        return record

    def note_committed(self, positions: Mapping[int, int]) -> None:
        assert set(positions) <= self.owned

    def rewind(self, positions: Mapping[int, int]) -> None:
        assert set(positions) <= self.owned
        self._current = {
            place: it for place, it in self._current.items() if place[1] < positions.get(place[0], place[1] + 1)
        }
        self._next.update(positions)

    def pause(self) -> None:
        self._paused |= self.owned

    def resume(self) -> None:
        self._paused -= self.owned

    def _rebalance(self) -> None:
        world = self._world
        lost = world.due(Lost)
        if isinstance(lost, Lost):
            world.give_to_another(sorted(self.owned), lost.does)
            raise PartitionsLost(f"lost {sorted(self.owned)}")
        away = world.due(Away)
        if isinstance(away, Away):
            self._give_up(sorted(away.partitions & self.owned), away)
        self._take_back()

    def _give_up(self, partitions: Sequence[int], away: Away) -> None:
        assert self._listener is not None
        try:
            self._listener.revoked(partitions)
        finally:
            for partition in partitions:
                del self._next[partition]
                self._world.back_s[partition] = self._world.now_s + away.for_s
            self._paused.difference_update(partitions)
            self._current = {place: it for place, it in self._current.items() if place[0] not in partitions}
            self._world.give_to_another(partitions, away.does)

    def _take_back(self) -> None:
        assert self._listener is not None
        world = self._world
        free = [it for it in range(3) if it not in self._next and world.back_s.get(it, 0.0) <= world.now_s]
        if free:
            self._next |= {partition: world.broker.committed.get(partition, 0) for partition in free}
            self._listener.assigned(free)

    def _give(self) -> Record | None:
        world, schedule = self._world, self._world.schedule
        for partition, offset in sorted(self._next.items(), key=lambda it: it[1]):
            is_there = offset < schedule.ends[partition] and offset * schedule.gap_s <= world.now_s
            if is_there and partition not in self._paused:
                self._next[partition] += 1
                record = Record("documents", partition, offset, None, b"value", None, ())
                self._current[partition, offset] = record
                return record
        return None


class _Pipeline(Pipeline):
    """The real line; the work that its threads would do ends when the schedule says."""

    def __init__(self, world: _World) -> None:
        self._world = world
        self._at_work: list[tuple[float, InLine]] = []
        limits = Limits(max_records=world.schedule.max_records, max_bytes=1_000_000)
        super().__init__(_skip, _NoModel(), Batcher(rows(1, 1), 1, 0.0), limits, 0, _Nobody())

    def wait(self, timeout_s: float) -> None:
        world = self._world
        while not self._inbox.empty():
            place = self._inbox.get()
            assert place is not None
            self._at_work.append((world.now_s + world.schedule.duration_s(place.record), place))
        self._at_work.sort(key=lambda it: it[0])
        end_s = world.now_s + timeout_s
        if self._at_work and timeout_s:
            end_s = min(end_s, max(world.now_s, self._at_work[0][0]))
        world.now_s = end_s
        while self._at_work and self._at_work[0][0] <= end_s:
            _, place = self._at_work.pop(0)
            self._done.put((place, _outcome(place.record)))
        super().wait(0)

    def wait_for_room(self, timeout_s: float) -> None:
        self.wait(timeout_s)


def _outcome(record: Record) -> Outcome:
    kinds: Sequence[Outcome] = (Skipped(record), Deleted(record), Rejected(record, Reason.BAD_IMAGE, "not an image"))
    return kinds[record.offset % len(kinds)]


def _skip(record: Record, _: Beat) -> Skipped:
    return Skipped(record)


class _NoModel(AtOnce):
    def encode(self, pixels: npt.NDArray[np.uint8], _: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        raise AssertionError(f"{len(pixels)} images without a document")


class _Nobody:
    """Listens to the loop and to the pipeline."""

    def prepared(self, seconds: float) -> None: ...
    def encoded(self, images: int, seconds: float) -> None: ...
    def split(self, cause: SplitCause) -> None: ...
    def checkpointed(self, seconds: float) -> None: ...
    def rebalanced(self, kind: str, partitions: int) -> None: ...
    def rewound(self) -> None: ...


class _Sent:
    """What was handed on and is not durable; the rules that both deliveries hold the loop to."""

    def __init__(self, world: _World, source: _Source) -> None:
        self._world = world
        self._source = source
        self._places: list[tuple[float, Place]] = []  # with the time of the acknowledgement
        self._tried_s: float | None = None
        self._waited_s = 0.0

    def add(self, outcome: Outcome) -> None:
        record = outcome.record
        assert self._source.is_current(record), f"{record} was handed on after the end of its assignment"
        self._places.append(
            (self._world.now_s + self._world.schedule.acknowledged_s, (record.partition, record.offset))
        )

    def acknowledged(self) -> list[Place]:
        """Take what is acknowledged by now."""
        if self._world.is_in(Unacknowledged):
            return []
        taken = [place for at_s, place in self._places if at_s <= self._world.now_s]
        del self._places[: len(taken)]
        return taken

    def all(self) -> list[Place]:
        """Take everything."""
        places, self._places = self._places, []
        return [place for _, place in places]

    def __bool__(self) -> bool:
        return bool(self._places)

    def check_commit(self, positions: Mapping[int, int]) -> None:
        """See that the session may commit these, and that it gets there while nothing is in its way."""
        assert set(positions) <= self._source.owned, f"{positions} were committed by an owner of {self._source.owned}"
        world, schedule = self._world, self._world.schedule
        if self._tried_s is not None and not world.is_in(Refused, Unacknowledged, Full):
            self._waited_s += world.now_s - self._tried_s
        self._tried_s = world.now_s
        world.now_s += 0.001
        allowed_s = schedule.acknowledged_s + schedule.commit_s + 2 * AGAIN_S
        assert self._waited_s < allowed_s, f"a checkpoint has waited for {self._waited_s:.3f} s"

    def note_end_of_commit(self) -> None:
        self._tried_s, self._waited_s = None, 0.0


class _AtLeastOnce:
    """Written is what is acknowledged, and the offsets go their own way."""

    def __init__(self, world: _World, source: _Source) -> None:
        self._world = world
        self._sent = _Sent(world, source)
        self._is_waiting = False
        self._acknowledged: Mapping[int, int] = {}

    def open(self) -> bool:
        return True

    def poll(self) -> None:
        self._world.broker.write(*self._sent.acknowledged())

    def send(self, outcome: Outcome) -> bool:
        self._world.fail("send")
        self.poll()
        if self._is_waiting or self._world.is_in(Full):
            return False
        self._sent.add(outcome)
        return True

    def hurry(self) -> None:
        self.poll()

    def commit(self, positions: Mapping[int, int]) -> float | None:
        world = self._world
        self._sent.check_commit(positions)
        world.fail("commit")
        self.poll()
        if not positions.items() <= self._acknowledged.items():
            self._is_waiting = True
            if self._sent:
                return 0.0
            self._is_waiting, self._acknowledged = False, dict(positions)
        if world.is_in(Refused):
            if world.schedule.lands:
                world.broker.commit(positions)
            return AGAIN_S
        world.broker.commit(positions)
        self._sent.note_end_of_commit()
        return None

    def abandon(self) -> None:
        self._is_waiting = False
        self._world.was_unclean = True
        self._sent.note_end_of_commit()

    def close(self) -> None:
        places = self._sent.all()
        self._world.was_unclean |= bool(places)
        if self._world.schedule.lands:
            self._world.broker.write(*places)


class _ExactlyOnce:
    """Written is what was committed with its offsets."""

    def __init__(self, world: _World, source: _Source) -> None:
        self._world = world
        self._sent = _Sent(world, source)
        self._acknowledged: list[Place] = []
        self._is_closing = False
        self._committing: tuple[float, Mapping[int, int]] | None = None
        world.end_doubt = self._end_doubt

    def open(self) -> bool:
        return True

    def poll(self) -> None:
        self._acknowledged += self._sent.acknowledged()

    def send(self, outcome: Outcome) -> bool:
        self._world.fail("send")
        self._abort_if_due("send")
        self._acknowledged += self._sent.acknowledged()
        if self._is_closing or self._world.is_in(Full):
            return False
        self._sent.add(outcome)
        return True

    def hurry(self) -> None:
        """Readers see what was sent once it is committed."""

    def commit(self, positions: Mapping[int, int]) -> float | None:
        world = self._world
        self._sent.check_commit(positions)
        world.fail("commit")
        self._abort_if_due("commit")
        self._is_closing = True
        self._acknowledged += self._sent.acknowledged()
        if self._sent:
            return 0.0
        if self._committing is None:
            if world.is_in(Refused):
                return AGAIN_S
            self._committing = (world.now_s + world.schedule.commit_s, dict(positions))
        if world.now_s < self._committing[0]:
            return 0.0
        self._finish(self._committing[1])
        self._sent.note_end_of_commit()
        return None

    def abandon(self) -> None:
        if self._committing is not None:
            raise ClientFailed("given up while it was being committed")
        self._is_closing = False
        if self._sent or self._acknowledged:
            self._abort()

    def close(self) -> None:
        self._end_doubt(range(3))

    def _end_doubt(self, partitions: Sequence[int]) -> None:
        """End a commit that is under way: Kafka tells nobody of its offsets before that."""
        if self._committing is None or not set(partitions) & set(self._committing[1]):
            return
        if self._world.schedule.lands:
            self._finish(self._committing[1])
        self._acknowledged, self._committing = [], None

    def _finish(self, positions: Mapping[int, int]) -> None:
        self._world.broker.write(*self._acknowledged)
        self._world.broker.commit(positions)
        self._acknowledged, self._committing, self._is_closing = [], None, False

    def _abort_if_due(self, call: Call) -> None:
        if self._world.due(Aborted, call) is not None:
            self._abort()

    def _abort(self) -> None:
        self._sent.all()
        self._acknowledged, self._committing, self._is_closing = [], None, False
        self._sent.note_end_of_commit()
        self._world.was_aborted_at_the_end = True
        raise Rewind("aborted")


# A process after the other, until all is done.


def _hold_session(world: _World, guarantee: Guarantee) -> None:
    """Work until a stop, or until all is done; end as the worker's own sessions do."""
    source = _Source(world)
    pipeline = _Pipeline(world)
    delivery: Delivers = (_AtLeastOnce if guarantee == "at-least-once" else _ExactlyOnce)(world, source)
    loop = Loop(source, pipeline, delivery, TIMES, _Nobody(), Activity("main", world.clock), world.clock)
    try:
        loop.run(lambda: world.is_over)
        if not world.was_aborted_at_the_end:
            assert (pipeline.in_flight, pipeline.in_flight_bytes, dict(loop._positions)) == (0, 0, {})
    except (SessionError, DrainTimeout):
        world.was_unclean = True
    finally:
        delivery.close()
        pipeline.close()
        pipeline.wait_for_threads(10)


def _run(schedule: Schedule, guarantee: Guarantee) -> _World:
    world = _World(schedule)
    while not world.is_done:
        _hold_session(world, guarantee)
    return world


@pytest.mark.parametrize("guarantee", ["at-least-once", "exactly-once"])
@settings(
    max_examples=400,
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(schedule=_schedules())
def test_whatever_happens_every_record_has_its_outcome_before_its_offset_is_committed(
    guarantee: Guarantee, schedule: Schedule
) -> None:
    world = _run(schedule, guarantee)

    for partition, end in enumerate(schedule.ends):
        offsets = world.broker.offsets(partition)
        first_of_each = list(dict.fromkeys(offsets))
        may_repeat = guarantee == "at-least-once" and world.was_unclean
        assert (first_of_each if may_repeat else offsets) == list(range(end))
