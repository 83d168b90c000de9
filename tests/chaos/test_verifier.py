"""The verifier on hand-made logs: what is right passes, and everything that can go wrong is found."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.chaos.verifier import Input, Log, Outcome, Sample, most_within, verify

ENDS = {("embeddings", 0): 100}


def _input(offset: int, expected: str | None = None) -> Input:
    return Input((0, offset), b"key", expected or f"{offset}: image {offset}")


def _outcome(offset: int, source: int, said: str | None = None) -> Outcome:
    return Outcome("embeddings", 0, offset, 1000 * offset, (0, source), b"key", said or f"{source}: image {source}")


def _log(*sources: int, committed: Sequence[Sample] = (Sample({0: 3}, ENDS),)) -> Log:
    """Return a run with three records, and outcomes of these in this order."""
    outcomes = [_outcome(offset, source) for offset, source in enumerate(sources)]
    return Log([_input(offset) for offset in range(3)], outcomes, committed, {0: 3})


def test_one_outcome_for_each_record_in_order_is_right() -> None:
    report = verify(_log(0, 1, 2), allowed_duplicates=0)

    assert report.problems == []
    assert (report.records, report.embeddings, report.duplicates) == (3, 3, 0)


def test_an_outcome_of_every_kind_is_counted() -> None:
    expected = ["0: image 0", "1: null", "2: bad-image of 1234abcd", "3: nothing"]
    inputs = [_input(offset, text) for offset, text in enumerate(expected)]
    outcomes = [_outcome(offset, offset, text) for offset, text in enumerate(expected[:3])]

    report = verify(Log(inputs, outcomes, [Sample({0: 4}, ENDS)], {0: 4}), allowed_duplicates=0)

    assert report.problems == []
    assert (report.embeddings, report.tombstones, report.dead_letters, report.nothing) == (1, 1, 1, 1)


def test_repetitions_in_order_are_counted_and_right_where_they_are_allowed() -> None:
    report = verify(_log(0, 1, 0, 1, 2), allowed_duplicates=2)

    assert report.problems == []
    assert (report.duplicates, report.late) == (2, 0)


def test_a_repetition_behind_what_came_later_is_counted_as_late() -> None:
    assert verify(_log(0, 1, 2, 1), allowed_duplicates=1).late == 1


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        (replace(_log(0, 2), input_ends={}, samples=[]), "1 × without an outcome"),
        (replace(_log(), input_ends={}, samples=[]), "3 × without an outcome"),
        (_log(0, 1, 1, 2), "1 × repeated, 1 times in all where 0 are allowed"),
        (_log(0, 2, 1), "1 × out of order"),
        (_log(0, 1, 2, 3), "1 × outcome of no record"),
        (_log(0, 1, 2, committed=[Sample({0: 2}, ENDS)]), "1 × not committed at the end"),
        (_log(0, 1, 2, committed=[Sample({}, ENDS)]), "1 × not committed at the end"),
        (_log(0, 1, 2, committed=[]), "1 × not committed at the end"),
        (_log(0, 1, 2, committed=[Sample({0: 3}, {("embeddings", 0): 2})]), "1 × committed before it was written"),
        (_log(0, 1, 2, committed=[Sample({0: 2}, ENDS), Sample({0: 1}, ENDS), Sample({0: 3}, ENDS)]), "1 × committed"),
    ],
)
def test_what_is_wrong_is_found(log: Log, problem: str) -> None:
    [found] = verify(log, allowed_duplicates=0).problems

    assert found.startswith(problem)


@pytest.mark.parametrize(
    "wrong",
    [
        _outcome(1, 1, "1: image 2"),
        _outcome(1, 1, "1: null"),
        _outcome(1, 1, "1: bad-image of 1234abcd"),
        _outcome(1, 1, "2: image 1"),
        replace(_outcome(1, 1), key=b"another key"),
    ],
)
def test_an_outcome_that_is_not_the_expected_one_is_found(wrong: Outcome) -> None:
    log = replace(_log(0, 1, 2), outcomes=[_outcome(0, 0), wrong, _outcome(2, 2)])

    [found] = verify(log, allowed_duplicates=0).problems

    assert found.startswith("1 × with a wrong outcome")


def test_an_outcome_where_nothing_is_to_come_out_is_found() -> None:
    log = Log([_input(0, "0: nothing")], [_outcome(0, 0)], [Sample({0: 1}, ENDS)], {0: 1})

    [found] = verify(log, allowed_duplicates=0).problems

    assert found.startswith("1 × with a wrong outcome")


def test_a_repetition_that_is_wrong_is_found_behind_a_right_one() -> None:
    log = replace(_log(0, 1, 2), outcomes=[*_log(0, 1, 2).outcomes, _outcome(3, 2, "2: image 1")])

    [found] = verify(log, allowed_duplicates=1).problems

    assert found.startswith("1 × with a wrong outcome")


def test_the_order_of_outcomes_on_different_output_partitions_does_not_matter() -> None:
    elsewhere = replace(_outcome(0, 2), partition=1)
    log = replace(_log(0, 1), outcomes=[elsewhere, _outcome(0, 0), _outcome(1, 1)])
    ends = {**ENDS, ("embeddings", 1): 100}

    assert verify(replace(log, samples=[Sample({0: 3}, ends)]), allowed_duplicates=0).problems == []


def test_the_most_outcomes_within_a_time_are_counted() -> None:
    outcomes = [replace(_outcome(0, 0), appended_ms=time_ms) for time_ms in (0, 900, 1000, 1100, 5000)]

    assert most_within(outcomes, 0.2) == 3
    assert most_within(outcomes, 1) == 3
    assert most_within(outcomes, 10) == 5
