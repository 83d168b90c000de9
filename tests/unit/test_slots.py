"""The slots that batches take turns in."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from worker.slots import Embeddings, Slots


@dataclass
class MeanSlot:
    """Embeds an image as its mean; fails at what is all 255, as it waits for it."""

    log: list[str]
    name: str
    pixels: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 1, 1, 3), np.uint8))

    def begin(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.log.append(f"{self.name} begins {len(pixels)}")
        self.pixels = pixels.copy()

    def wait(self) -> Embeddings:
        self.log.append(f"{self.name} waits")
        if (self.pixels == 255).all():
            raise RuntimeError("as told")
        return np.array([[image.mean()] for image in self.pixels], np.float32)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def slots(log: list[str]) -> Slots:
    return Slots([MeanSlot(log, "first"), MeanSlot(log, "second")])


def _batch(*levels: int) -> npt.NDArray[np.uint8]:
    return np.array(levels, np.uint8).repeat(2 * 2 * 3).reshape(-1, 2, 2, 3)


def test_two_batches_are_under_way_at_once(slots: Slots, log: list[str]) -> None:
    first, second = slots.begin(_batch(1)), slots.begin(_batch(2, 3))

    assert log == ["first begins 1", "second begins 2"]
    assert first().tolist() == [[1]]
    assert second().tolist() == [[2], [3]]


def test_a_slot_is_used_again_once_its_batch_has_been_waited_for(slots: Slots, log: list[str]) -> None:
    for level in range(3):
        assert slots.begin(_batch(level))().tolist() == [[level]]

    assert log == ["first begins 1", "first waits", "second begins 1", "second waits", "first begins 1", "first waits"]


def test_a_batch_too_many_waits_for_the_oldest_whose_embeddings_are_kept(slots: Slots, log: list[str]) -> None:
    waits = [slots.begin(_batch(level)) for level in (1, 2, 3)]

    assert log == ["first begins 1", "second begins 1", "first waits", "first begins 1"]
    assert [wait().tolist() for wait in waits] == [[[1]], [[2]], [[3]]]


def test_batches_may_be_waited_for_in_any_order_and_more_than_once(slots: Slots) -> None:
    first, second = slots.begin(_batch(1)), slots.begin(_batch(2))

    assert [second().item(), first().item(), second().item(), first().item()] == [2, 1, 2, 1]


def test_what_the_device_raises_meets_who_waits_for_that_batch(slots: Slots) -> None:
    bad, good = slots.begin(_batch(255)), slots.begin(_batch(1))

    assert good().tolist() == [[1]]
    with pytest.raises(RuntimeError, match="as told"):
        bad()
