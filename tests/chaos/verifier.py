"""Accounts for every record of a run: what came in, what came out, and what was committed when.

`verify` looks at a `Log` and nothing else, so that hand-made ones show what it finds.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from confluent_kafka import Message

from tests.broker.kafka import Brokers, Topics, read_each
from tests.chaos.models import INSTANT, Model
from tests.chaos.stream import Judge, expectation, headers_of

Delivery = Literal["at-least-once", "exactly-once"]
DELIVERIES: tuple[Delivery, ...] = ("at-least-once", "exactly-once")
Place = tuple[int, int]
"""An input record's partition and offset."""

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Input:
    """A record of the input topic, and what has to become of it; `nothing` at the end where that is nothing."""

    place: Place
    key: bytes | None
    expected: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A record of an output topic: where it is, when it came there, which record it is the outcome of."""

    topic: str
    partition: int
    offset: int
    appended_ms: int
    place: Place
    key: bytes | None
    said: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What was committed at a moment, and then where the output partitions ended."""

    committed: Mapping[int, int]
    ends: Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Log:
    """A whole run; `samples` are in order of time, the last one from its end, as is `input_ends` by partition."""

    inputs: Sequence[Input]
    outcomes: Sequence[Outcome]
    samples: Sequence[Sample]
    input_ends: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Report:
    """The counts of a run, and what is wrong with it.

    `late` counts repetitions that landed behind a later record of their key's partition: at-least-once allows it.
    """

    records: int
    embeddings: int
    tombstones: int
    dead_letters: int
    nothing: int
    duplicates: int
    late: int
    samples: int
    problems: Sequence[str] = field(default=())


def read_log(
    brokers: Brokers,
    topics: Topics,
    samples: Sequence[Sample],
    input_ends: Mapping[int, int],
    model: Model = INSTANT,
) -> Log:
    """Read a finished run."""
    judge = Judge(model.embeddings())
    inputs = [
        Input(_place_of(it), it.key(), expectation(it)) for it in read_each(brokers.bootstrap_servers, topics.input)
    ]
    outcomes = [
        _outcome(it, judge, prefix)
        for topic, prefix in ((topics.output, "source"), (topics.dead_letters, "dlq"))
        for it in read_each(brokers.bootstrap_servers, topic)
    ]
    return Log(inputs, outcomes, samples, input_ends)


def verify(log: Log, allowed_duplicates: int) -> Report:
    """Account for every record; more repetitions than are allowed are a problem."""
    outcomes_of: defaultdict[Place, list[Outcome]] = defaultdict(list)
    for outcome in log.outcomes:
        outcomes_of[outcome.place].append(outcome)
    duplicates = sum(len(outcomes) - 1 for outcomes in outcomes_of.values())
    said = Counter(_kind(outcome.said) for outcome in log.outcomes)
    firsts, lasts = _out_of_order(log.outcomes, keep_first=True), _out_of_order(log.outcomes, keep_first=False)
    problems = [
        *_told("without an outcome", (it for it in log.inputs if _is_missing(it, outcomes_of))),
        *_told("with a wrong outcome", _wrong(log.inputs, outcomes_of)),
        *_told("outcome of no record", outcomes_of.keys() - {it.place for it in log.inputs}),
        *_told("out of order", firsts),
        *_told("committed before it was written", _early(log, outcomes_of)),
        *_told("committed offset went back", _gone_back(log.samples)),
        *_told("not committed at the end", _uncommitted(log)),
    ]
    if duplicates > allowed_duplicates:
        repeated = (outcomes for outcomes in outcomes_of.values() if len(outcomes) > 1)
        problems += _told(f"repeated, {duplicates} times in all where {allowed_duplicates} are allowed", repeated)
    return Report(
        records=len(log.inputs),
        embeddings=said["image"],
        tombstones=said["null"],
        dead_letters=said.total() - said["image"] - said["null"],
        nothing=sum(_kind(it.expected) == "nothing" for it in log.inputs),
        duplicates=duplicates,
        late=len(lasts),
        samples=len(log.samples),
        problems=problems,
    )


def most_within(outcomes: Iterable[Outcome], seconds: float) -> int:
    """Return the largest number of outcomes that were written within so many seconds."""
    times = sorted(outcome.appended_ms for outcome in outcomes)
    most = first = 0
    for last, time_ms in enumerate(times):
        while time_ms - times[first] > seconds * 1000:
            first += 1
        most = max(most, last - first + 1)
    return most


def _told(what: str, found: Iterable[object]) -> list[str]:
    listed = list(found)
    examples = "; ".join(str(each) for each in listed[:_EXAMPLES])
    return [f"{len(listed)} × {what}: {examples}"] if listed else []


def _kind(said: str) -> str:
    return said.split(": ", 1)[1].split(" ", 1)[0]


def _is_missing(record: Input, outcomes_of: Mapping[Place, Sequence[Outcome]]) -> bool:
    return _kind(record.expected) != "nothing" and record.place not in outcomes_of


def _wrong(inputs: Iterable[Input], outcomes_of: Mapping[Place, Sequence[Outcome]]) -> Iterable[str]:
    for record in inputs:
        for outcome in outcomes_of.get(record.place, ()):
            if (outcome.key, outcome.said) != (record.key, record.expected):
                yield f"{record} became {outcome}"


def _out_of_order(outcomes: Iterable[Outcome], *, keep_first: bool) -> list[str]:
    """Look at the source offsets of each input partition in each output partition, every one taken once."""
    lines: defaultdict[tuple[str, int, int], dict[int, int]] = defaultdict(dict)
    for outcome in sorted(outcomes, key=lambda it: it.offset):
        partition, offset = outcome.place
        line = lines[outcome.topic, outcome.partition, partition]
        if keep_first:
            line.setdefault(offset, outcome.offset)
        else:
            line.pop(offset, None)
            line[offset] = outcome.offset
    return [
        f"{topic}[{output}]: {partition}@{second} came after @{first}"
        for (topic, output, partition), line in lines.items()
        for first, second in pairwise(line)
        if second < first
    ]


def _early(log: Log, outcomes_of: Mapping[Place, Sequence[Outcome]]) -> Iterable[str]:
    """Look at what each sample's commits added to the one's before: it was written by then."""
    records: defaultdict[int, list[Input]] = defaultdict(list)
    for record in sorted(log.inputs, key=lambda it: it.place):
        records[record.place[0]].append(record)
    looked_at: Counter[int] = Counter()
    for sample in log.samples:
        for partition, committed in sample.committed.items():
            line = records[partition]
            while looked_at[partition] < len(line) and line[looked_at[partition]].place[1] < committed:
                record = line[looked_at[partition]]
                looked_at[partition] += 1
                written = (it.offset < sample.ends[it.topic, it.partition] for it in outcomes_of.get(record.place, ()))
                if _kind(record.expected) != "nothing" and not any(written):
                    yield f"{record} with {committed}"


def _gone_back(samples: Sequence[Sample]) -> Iterable[str]:
    for before, after in pairwise(samples):
        for partition, committed in before.committed.items():
            if after.committed.get(partition, -1) < committed:
                yield f"{partition} from {committed} to {after.committed.get(partition)}"


def _uncommitted(log: Log) -> Iterable[str]:
    committed = log.samples[-1].committed if log.samples else {}
    for partition, end in log.input_ends.items():
        if end and committed.get(partition) != end:
            yield f"partition {partition}: {committed.get(partition)} of {end}"


def _place_of(message: Message) -> Place:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    return partition, offset


def _outcome(message: Message, judge: Judge, prefix: str) -> Outcome:
    headers = headers_of(message)
    topic, place = message.topic(), _place_of(message)
    assert topic is not None
    return Outcome(
        topic=topic,
        partition=place[0],
        offset=place[1],
        appended_ms=message.timestamp()[1],
        place=(int(headers[f"{prefix}.partition"]), int(headers[f"{prefix}.offset"])),
        key=message.key(),
        said=judge.said(message),
    )
