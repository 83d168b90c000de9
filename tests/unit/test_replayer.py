from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaError, Message
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from schemas.dead_letter import DeadLetter, Headers, Reason, read_dead_letter, read_omitted_sha256
from worker.cli.main import group
from worker.cli.outlets import Report
from worker.cli.progress import Passage, Progress
from worker.cli.replayer import Replayer
from worker.cli.tally import Fate, Tally, name_places
from worker.errors import DrainTimeout, KafkaSetupError, SettingsError
from worker.records import Record

# The headers of a dead letter.

LETTER = DeadLetter(Reason.BAD_IMAGE, "what was wrong", "documents", 3, 42, 1_700_000_000_000, "clip-worker", "host-1")


def with_header(name: str, value: bytes | None) -> Headers:
    return tuple((each, value if each == name else text) for each, text in LETTER.headers(()))


def without_header(name: str) -> Headers:
    return tuple(header for header in LETTER.headers(()) if header[0] != name)


def test_the_headers_of_a_dead_letter_say_what_was_written() -> None:
    assert read_dead_letter(LETTER.headers((("note", b"\xff"), ("note", None)))) == LETTER


@pytest.mark.parametrize("timestamp_ms", [None, 0, -5, 10**17])
def test_any_timestamp_is_read(timestamp_ms: int | None) -> None:
    letter = DeadLetter(Reason.NO_ID, "", "documents", 0, 0, timestamp_ms, "clip-worker", "host-1")

    assert read_dead_letter(letter.headers(())) == letter


def test_a_reason_of_another_version_is_read() -> None:
    letter = read_dead_letter(with_header("dlq.reason", b"upside-down"))

    assert letter is not None
    assert letter.reason == "upside-down"


@pytest.mark.parametrize("name", ["dlq.detail", "dlq.group", "dlq.worker"])
def test_what_only_people_read_may_be_missing_or_no_text(name: str) -> None:
    assert read_dead_letter(without_header(name)) is not None
    assert read_dead_letter(with_header(name, b"\xff")) is not None


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((), id="no headers"),
        pytest.param((("note", b"1"),), id="other headers"),
        *(
            pytest.param(without_header(f"dlq.{name}"), id=f"no {name}")
            for name in ("reason", "topic", "partition", "offset", "timestamp")
        ),
        pytest.param(with_header("dlq.reason", None), id="null"),
        pytest.param(with_header("dlq.reason", b""), id="no word"),
        pytest.param(with_header("dlq.reason", b"\xff"), id="no text"),
        pytest.param(with_header("dlq.reason", b"\x1b[31m"), id="a reason that a terminal would obey"),
        pytest.param(with_header("dlq.topic", b"a topic"), id="no topic's name"),
        pytest.param(with_header("dlq.topic", b"x" * 250), id="a topic's name that is too long"),
        pytest.param(with_header("dlq.partition", b"three"), id="no number"),
        pytest.param(with_header("dlq.partition", b"-1"), id="a negative partition"),
        pytest.param(with_header("dlq.offset", "４２".encode()), id="digits of another script"),
        pytest.param(with_header("dlq.offset", b" 42"), id="a space"),
        pytest.param(with_header("dlq.offset", b"9" * 19), id="over 64 bits"),
        pytest.param(with_header("dlq.timestamp", b"9" * 30), id="a timestamp over 64 bits"),
    ],
)
def test_other_headers_are_no_dead_letter_s(headers: Headers) -> None:
    assert read_dead_letter(headers) is None


def test_the_digest_is_read_where_the_value_was_omitted() -> None:
    omitted = (("dlq.value-omitted", b"true"), ("dlq.value-bytes", b"3"), ("dlq.value-sha256", b"abc"))

    assert read_omitted_sha256(LETTER.headers(())) is None
    assert read_omitted_sha256(LETTER.headers(()) + omitted) == "abc"
    assert read_omitted_sha256(LETTER.headers(()) + omitted[:1]) == ""


# Progress.


@pytest.mark.parametrize(
    "progress",
    [
        Progress(),
        Progress(7),
        Progress(7, {"bad-image": 9}),
        Progress(7, {"bad-image": 0}),
        Progress(7, {}, (range(3, 4),)),
        Progress(70, {"no-id": 90, "too-large": 80}, (range(5), range(10, 12), range(60, 75), range(75, 76))),
    ],
)
def test_progress_is_read_as_it_was_committed(progress: Progress) -> None:
    assert Progress.read(progress.offset, progress.metadata) == progress


def test_progress_that_an_offset_says_needs_no_metadata() -> None:
    assert Progress(7).metadata == ""
    assert Progress.read(7, "") == Progress(7)


def test_progress_over_many_ranges_is_short() -> None:
    left = tuple(range(first, first + 2) for first in range(10**9, 10**9 + 2_000, 5))

    assert len(Progress(10**9 + 2_000, {}, left).metadata) < 2_000


@pytest.mark.parametrize("metadata", ["words", "{}", "[]", "7", '{"rest":1,"reasons":[],"left":[]}', "null"])
def test_metadata_of_somebody_else_is_refused(metadata: str) -> None:
    with pytest.raises(ValueError, match="is not the progress of a replay"):
        Progress.read(0, metadata)


def test_the_offset_is_where_the_first_letter_is_that_may_not_be_replayed() -> None:
    assert Progress(7, {"bad-image": 9}).offset == 7
    assert Progress(7, {"bad-image": 5}).offset == 5
    assert Progress(7, {"bad-image": 9}, (range(2, 4), range(6, 7))).offset == 2


REASONS = ("a", "b", "c")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of replay on a partition: it stops at `stop`, and what is at `refused` can't be replayed."""

    reasons: frozenset[str]
    refused: frozenset[int]
    stop: int
    checkpoints: frozenset[int]
    is_again: bool


def called(known: Progress, letters: Mapping[int, str], call: Call, replays: Counter[int]) -> Progress:
    """Return the progress after a call, as the command makes it, by way of what would be committed."""
    start = known.forgetting(call.reasons) if call.is_again else known
    passage = Passage(start, call.reasons)
    for offset, reason in letters.items():
        if not start.offset <= offset < call.stop:
            continue
        if passage.fate(reason, offset) is None:
            passage.note(offset, replayed=True)  # as it is sent
            if offset in call.refused:
                passage.note(offset, replayed=False)  # as its report comes
            else:
                replays[offset] += 1
        passage.position = offset + 1
        if offset in call.checkpoints:
            passage.progress()
    committed = passage.progress()
    return Progress.read(committed.offset, committed.metadata)


def due(letters: Mapping[int, str], reasons: Collection[str]) -> list[int]:
    return [offset for offset, reason in letters.items() if not reasons or reason in reasons]


OFFSETS = st.frozensets(st.integers(0, 20))
CALLS = st.builds(
    Call, st.frozensets(st.sampled_from(REASONS), max_size=2), OFFSETS, st.integers(0, 22), OFFSETS, st.booleans()
)
LETTERS = st.dictionaries(st.integers(0, 20), st.sampled_from([*REASONS, "new"])).map(
    lambda each: dict(sorted(each.items()))
)


@given(LETTERS, st.lists(CALLS, max_size=6))
def test_each_letter_is_replayed_once_whatever_calls_came_before(letters: dict[int, str], calls: list[Call]) -> None:
    progress, replayed = Progress(), set[int]()

    for call in calls:
        if call.is_again:
            replayed -= set(due(letters, call.reasons))
        expected = Counter(
            offset
            for offset in due(letters, call.reasons)
            if offset < call.stop and offset not in call.refused | replayed
        )
        replays = Counter[int]()

        progress = called(progress, letters, call, replays)

        replayed |= set(expected)
        assert replays == expected
        assert {offset for offset, reason in letters.items() if progress.is_replayed(reason, offset)} == replayed


def test_letters_that_are_refused_in_a_row_are_one_range_across_others() -> None:
    passage = Passage(Progress(), {"a"})
    for offset, reason in enumerate("aabaca"):
        if passage.fate(reason, offset) is None:
            passage.note(offset, replayed=False)
    passage.position = 6

    assert passage.progress() == Progress(0, {"a": 6}, (range(6),))


# What is printed.


def test_letters_are_named_by_partition_in_ranges() -> None:
    places = [(1, 4), (0, 3), (0, 4), (0, 5), (0, 7), (1, 5), (2, 0)]

    assert name_places("dead-letters", places) == "dead-letters[0]@3-5,7 dead-letters[1]@4-5 dead-letters[2]@0"


def test_the_table_has_the_fates_that_there_were() -> None:
    tally = Tally()
    for reason, fate in (("no-id", Fate.REPLAYED), ("bad-image", Fate.OTHER), ("no-id", Fate.REPLAYED)):
        tally.count(reason, fate)
    console = Console(width=80)

    with console.capture() as capture:
        console.print(tally.table("replayed"))

    assert [line.split() for line in capture.get().splitlines() if line.strip(" ─")] == [
        ["reason", "replayed", "of", "another", "reason"],
        ["bad-image", "0", "1"],
        ["no-id", "2", "0"],
        ["all", "2", "1"],
    ]


def test_an_unknown_reason_is_an_error_that_names_the_known_ones() -> None:
    result = CliRunner().invoke(group, ["replay", "--reason", "bad-picture"])

    assert result.exit_code == 2
    assert "'bad-picture' is not one of" in result.output
    assert [reason.value for reason in Reason if f"'{reason}'" not in result.output] == []


def test_a_kafka_property_that_there_is_not_is_an_error_before_anything_else() -> None:
    flags = ("--bootstrap-servers", "127.0.0.1:1", "--kafka", "no.such.property=1")

    result = CliRunner().invoke(group, ["replay", *flags])

    assert isinstance(result.exception, SettingsError)
    assert "no.such.property" in str(result.exception)


# One call, with letters and an outlet of our own.


class Letters:
    """Letters of partition 0 whose values are their offsets."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.ends: Mapping[int, int] = {0: total}

    def __iter__(self) -> Iterator[Message | None]:
        headers: list[tuple[str, str | bytes | None]] = [*LETTER.headers(())]
        for offset in range(self.total):
            yield None
            yield Message(
                topic="dead-letters", partition=0, offset=offset, key=b"key", value=b"%d" % offset, headers=headers
            )


class Outlet:
    """Acknowledges what `errors` has nothing for once it is flushed; keeps what happens in its order."""

    def __init__(self, errors: Mapping[int, KafkaError] | None = None, room: int = 1_000) -> None:
        self.happened: list[object] = []
        self.answers = True
        self._errors = errors or {}
        self._room = room
        self._queue: list[tuple[int, Report]] = []

    def send(self, record: Record, report: Report) -> bool:
        if len(self._queue) == self._room:
            return False
        self._queue.append((int(record.value or b""), report))
        return True

    def flush(self) -> bool:
        if not self.answers:
            return False
        for offset, report in self._queue:
            report(self._errors.get(offset))
            self.happened.append(offset)
        self._queue.clear()
        return True

    def commit(self, progress: Mapping[int, Progress]) -> bool:
        self.happened.append(progress[0])
        return True


@dataclass(slots=True)
class Stop:
    """Somebody who may ask to stop."""

    requested: bool = False
    is_overdue: bool = False


def replayer(letters: int, outlet: Outlet, stop: Stop | None = None, seconds_a_look: float = 0) -> Replayer:
    """Return a call whose clock goes on by so much at each look."""
    return Replayer(
        Letters(letters),
        lambda _, __: None,
        outlet,
        {"documents": 4},
        {0: Progress()},
        (),
        stop or Stop(),
        clock=count(step=seconds_a_look).__next__,
    )


def test_progress_is_committed_after_a_hundred_letters_are_acknowledged() -> None:
    outlet = Outlet()

    replayer(250, outlet).run()

    assert outlet.happened == [
        *range(100),
        Progress(100),
        *range(100, 200),
        Progress(200),
        *range(200, 250),
        Progress(250),
    ]


def test_progress_is_committed_after_a_second() -> None:
    outlet = Outlet()

    replayer(2, outlet, seconds_a_look=1).run()

    assert outlet.happened == [Progress(0), 0, Progress(1), Progress(1), 1, Progress(2), Progress(2)]


def test_a_full_queue_is_emptied_before_more_is_sent() -> None:
    outlet = Outlet(room=2)

    replayer(5, outlet).run()

    assert outlet.happened == [0, 1, 2, 3, 4, Progress(5)]


def test_a_letter_that_no_queue_takes_is_refused() -> None:
    call = replayer(1, outlet := Outlet(room=0))

    call.run()

    assert call.tally.named == {"larger than the producer's queue.buffering.max.kbytes": [(0, 0)]}
    assert outlet.happened == [Progress(1, {}, (range(1),))]


def test_a_letter_that_the_broker_refuses_is_left_and_the_others_are_not() -> None:
    outlet = Outlet({1: KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)})
    call = replayer(3, outlet)

    call.run()

    assert outlet.happened == [0, 1, 2, Progress(3, {}, (range(1, 2),))]
    assert (call.tally.total(Fate.REPLAYED), call.tally.total(Fate.REFUSED)) == (2, 1)
    assert list(call.uncommitted) == []


def test_where_an_acknowledgement_does_not_come_nothing_is_committed_and_what_was_sent_is_named() -> None:
    outlet = Outlet({1: KafkaError(KafkaError._MSG_TIMED_OUT), 2: KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)})
    call = replayer(3, outlet)

    with pytest.raises(KafkaSetupError, match="the brokers don't acknowledge what is sent: Local: Message timed out"):
        call.run()

    assert outlet.happened == [0, 1, 2]
    assert list(call.uncommitted) == [(0, 0), (0, 1)]


def test_a_stop_sends_no_more_and_commits_what_was_sent() -> None:
    outlet = Outlet()

    replayer(3, outlet, Stop(requested=True)).run()

    assert outlet.happened == [Progress(0)]


def test_a_stop_that_is_over_gives_up_and_names_what_was_sent() -> None:
    outlet, stop = Outlet(), Stop(is_overdue=True)
    outlet.answers = False
    call = replayer(100, outlet, stop)

    with pytest.raises(DrainTimeout, match="100 letters were sent and are not acknowledged"):
        call.run()

    assert list(call.uncommitted) == [(0, offset) for offset in range(100)]
