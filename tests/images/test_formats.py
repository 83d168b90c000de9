"""Every format that the worker reads, in both ways of preprocessing."""

import numpy as np
import pytest
from PIL import Image

from tests.images.formats import VARIANTS, Variant
from tests.images.table import MAX_LEVELS, MAX_MEAN_LEVELS, measure, table, written_table
from tests.unit.pictures_for_tests import MAX_PIXELS, photograph
from worker.decode import Decoder

# Pillow warns of what is odd about a picture; the worker leaves that unsaid, see worker.logs.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EACH = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@EACH
def test_a_person_would_see_what_is_decoded(variant: Variant) -> None:
    """Lossy files are up to 5.4 of 255 levels off in the mean; a picture mirrored or inverted is over 40."""
    picture = photograph("coffee").resize((300, 200), Image.Resampling.LANCZOS)
    expected = np.asarray(variant.shows(picture)).astype(int)

    for file in variant.files(picture):
        shown = Decoder(MAX_PIXELS).decode(file)

        assert shown.shape == expected.shape
        assert abs(shown - expected).mean() <= 6


@EACH
def test_fast_is_as_near_to_pillow_as_promised(variant: Variant) -> None:
    measured = measure(variant)

    assert measured.levels <= MAX_LEVELS
    assert measured.mean_levels <= MAX_MEAN_LEVELS


@EACH
def test_reference_is_open_clips_own_transform(variant: Variant) -> None:
    assert measure(variant).is_open_clips


def test_the_readmes_table_of_formats_is_what_was_measured() -> None:
    assert written_table() == table([(variant, measure(variant)) for variant in VARIANTS])
