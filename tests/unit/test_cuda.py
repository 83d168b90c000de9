"""What of the CUDA device's logic needs none: the sizes that graphs are captured for."""

import pytest

from worker.cuda import buckets, smallest_bucket


@pytest.mark.parametrize(
    ("max_batch", "expected"),
    [(1, [1]), (8, [8, 1]), (20, [20, 8, 1]), (128, [128, 64, 32, 8, 1]), (256, [256, 128, 64, 32, 8, 1])],
)
def test_graphs_are_captured_for_a_few_sizes_up_to_the_largest_batch(max_batch: int, expected: list[int]) -> None:
    assert buckets(max_batch) == expected


@pytest.mark.parametrize(("images", "expected"), [(1, 1), (2, 8), (8, 8), (9, 32), (129, 256), (256, 256), (257, None)])
def test_a_batch_is_computed_as_the_smallest_size_that_it_fits_in(images: int, expected: int | None) -> None:
    assert smallest_bucket(buckets(256), images) == expected


def test_a_model_that_was_not_captured_has_no_size() -> None:
    assert smallest_bucket([], 1) is None
