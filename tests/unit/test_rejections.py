import pytest

from schemas.dead_letter import Reason
from worker.errors import TooManyRejections
from worker.records import Deleted, Embedded, Rejected, Skipped, Written
from worker.rejections import RejectionLimits

FINE = Written(Embedded, images=1)
BAD = Written(Rejected, reason=Reason.BAD_IMAGE)


def _noted(limits: RejectionLimits, *written: Written) -> RejectionLimits:
    for each in written:
        limits.note(each)
    return limits


def test_without_limits_everything_may_be_rejected() -> None:
    limits = _noted(RejectionLimits(None, 10, None), *[BAD] * 1_000)

    assert not limits.are_reached
    limits.check()


def test_a_run_of_rejections_reaches_the_limit_with_its_last_one() -> None:
    limits = _noted(RejectionLimits(None, 10, 3), BAD, BAD)
    before = limits.are_reached

    limits.note(BAD)

    assert (before, limits.are_reached) == (False, True)
    with pytest.raises(
        TooManyRejections,
        match=r"^3 records in a row became dead letters, WORKER_MAX_REJECTED_IN_A_ROW=3; the last reason: bad-image$",
    ):
        limits.check()


@pytest.mark.parametrize("other", [FINE, Written(Deleted), Written(Skipped)])
def test_any_other_outcome_ends_a_run(other: Written) -> None:
    assert not _noted(RejectionLimits(None, 10, 3), BAD, BAD, other, BAD, BAD).are_reached


def test_a_share_is_judged_once_the_window_is_full() -> None:
    limits = _noted(RejectionLimits(0.5, 4, None), BAD, BAD, BAD)
    before = limits.are_reached

    limits.note(FINE)

    assert (before, limits.are_reached) == (False, True)
    with pytest.raises(
        TooManyRejections,
        match=r"^3 of the last 4 records became dead letters, a share of 0.75, WORKER_MAX_REJECTED_SHARE=0.5; ",
    ):
        limits.check()


def test_a_share_under_the_limit_never_reaches_it_however_long_the_stream() -> None:
    assert not _noted(RejectionLimits(0.5, 4, None), *[BAD, FINE, FINE, FINE] * 100).are_reached


def test_a_share_is_of_the_last_records_only() -> None:
    assert not _noted(RejectionLimits(0.5, 4, None), BAD, FINE, FINE, FINE, BAD, FINE, FINE, FINE).are_reached


def test_what_was_reached_stays_reached() -> None:
    limits = _noted(RejectionLimits(None, 10, 1), BAD, FINE)

    with pytest.raises(TooManyRejections):
        limits.check()
