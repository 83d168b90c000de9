"""What a person sees of files of which every stored value is known, and what Pillow alone gets wrong of them."""

import struct
import sys

import numpy as np
import pytest
from PIL import Image

from schemas.dead_letter import Reason, Rejection
from tests.images import written
from tests.images.formats import FIXTURES, VARIANTS
from tests.images.oracle import opened
from tests.unit.pictures_for_tests import MAX_PIXELS, encode, geometry, model_input, photograph, turned
from worker.decode import Decoder
from worker.images import Fast, Reference
from worker.records import Pixels

BLACK, WHITE = [0, 0, 0], [255, 255, 255]


def _shown(file: bytes) -> list[list[list[int]]]:
    rows: list[list[list[int]]] = Decoder(MAX_PIXELS).decode(file).tolist()
    return rows


def _grey(level: int) -> list[int]:
    return [level] * 3


@pytest.mark.parametrize(
    ("depth", "samples", "transparent", "shown"),
    [
        pytest.param(1, [0, 1], 0, [WHITE, WHITE], id="1 bit"),
        pytest.param(2, [0, 1, 2, 3], 1, [BLACK, WHITE, _grey(170), WHITE], id="2 bits"),
        pytest.param(4, [0, 3, 4, 15], 3, [BLACK, WHITE, _grey(68), WHITE], id="4 bits"),
        pytest.param(8, [0, 3, 4, 255], 3, [BLACK, WHITE, _grey(4), WHITE], id="8 bits"),
        pytest.param(16, [0, 0x1234, 0x1235, 0xFFFF], 0x1234, [BLACK, WHITE, _grey(18), WHITE], id="16 bits"),
    ],
)
def test_one_grey_may_be_transparent(depth: int, samples: list[int], transparent: int, shown: list[list[int]]) -> None:
    row = np.array([samples], np.uint16)

    assert _shown(written.png(row, depth, written.GREY, transparent=struct.pack(">H", transparent))) == [shown]


def test_one_colour_may_be_transparent() -> None:
    row = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8)

    assert _shown(written.png(row, 8, written.RGB, transparent=struct.pack(">3H", 1, 2, 3))) == [[WHITE, [1, 2, 4]]]


def test_one_colour_of_16_bits_may_be_transparent() -> None:
    """Pillow decodes colours to 8 bits, so those that are equal in them become transparent together."""
    row = np.array([[[0x1234, 0x5678, 0x9ABC], [0x1235, 0x5678, 0x9ABC], [0x3434, 0x7878, 0xBCBC]]], np.uint16)

    file = written.png(row, 16, written.RGB, transparent=struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))

    assert _shown(file) == [[WHITE, WHITE, [0x34, 0x78, 0xBC]]]


def test_each_colour_of_a_palette_has_its_own_transparency() -> None:
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
    indices = np.array([[0, 1, 2]], np.uint8)

    file = written.png(indices, 2, written.PALETTE, palette=palette, transparent=bytes([0, 128]))

    assert _shown(file) == [[WHITE, [127, 255, 127], [0, 0, 255]]]


@pytest.mark.parametrize(("value", "level"), [(0, 0), (128, 0), (129, 1), (0x8080, 0x80), (0xFFFF, 255)], ids=str)
def test_greys_of_16_bits_are_rounded(value: int, level: int) -> None:
    assert _shown(written.png(np.array([[value]], np.uint16), 16, written.GREY)) == [[_grey(level)]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["8 bits", "16 bits"])
def test_white_is_0_where_a_tiff_says_so(dtype: type[np.uint8] | type[np.uint16]) -> None:
    highest = np.iinfo(dtype).max
    samples = np.array([[0, highest // 5, highest]], dtype)

    assert _shown(written.tiff(samples, photometric="miniswhite")) == [[WHITE, _grey(204), BLACK]]


def test_grey_whose_alpha_is_multiplied_in_already_is_laid_over_white() -> None:
    samples = np.array([[[0, 0], [64, 128], [255, 255]]], np.uint8)

    file = written.tiff(samples, photometric="minisblack", extrasamples=["assocalpha"])

    assert _shown(file) == [[WHITE, _grey(191), WHITE]]


@pytest.mark.parametrize(
    ("samples", "levels"),
    [
        pytest.param(np.array([[0, 0.5, 1]], np.float32), [0, 128, 255], id="0 to 1"),
        pytest.param(np.array([[0, 1, 255]], np.float32), [0, 1, 255], id="0 to 255"),
        pytest.param(np.array([[-3, 128.4, 1e30]], np.float32), [0, 128, 255], id="beyond"),
        pytest.param(np.array([[np.nan, 0.2, 1]], np.float32), [0, 51, 255], id="not a number"),
        pytest.param(np.array([[0, 257, 70_000]], np.uint32), [0, 1, 255], id="32 bits"),
        pytest.param(np.array([[-1, 257, 32_767]], np.int16), [0, 1, 127], id="16 bits with a sign"),
    ],
)
def test_numbers_of_a_tiff_are_greys(
    samples: np.ndarray[tuple[int, ...], np.dtype[np.generic]], levels: list[int]
) -> None:
    assert _shown(written.tiff(samples)) == [[_grey(level) for level in levels]]


def test_of_several_pages_the_first_is_seen() -> None:
    first, second = Image.new("L", (1, 1), 10), Image.new("L", (1, 1), 200)

    assert _shown(encode(first, "TIFF", save_all=True, append_images=[second])) == [[_grey(10)]]


def test_a_colour_profile_changes_nothing() -> None:
    with_profile = next(variant for variant in VARIANTS if str(variant) == "PNG, ICC profile")
    picture = photograph("coffee").resize((30, 20))

    (file,) = with_profile.files(picture)

    assert "icc_profile" in opened(file).info
    assert np.array_equal(Decoder(MAX_PIXELS).decode(file), np.asarray(picture))


def test_cmyk_is_inverted_where_adobe_wrote_it() -> None:
    """No ink is white; a JPEG stores it as 255."""
    no_ink = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    cyan = encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)

    assert _shown(no_ink)[0][0] == WHITE
    assert _shown(cyan)[0][0] == [0, 255, 255]


def _is_near(shown: Pixels, expected: Image.Image) -> bool:
    return shown.shape == np.asarray(expected).shape and bool(abs(shown.astype(int) - np.asarray(expected)).mean() < 6)


def test_an_avif_that_another_writer_turned_is_turned_once() -> None:
    """`irot` is a turn to the left and comes before `imir`, here top to bottom: ISO/IEC 23008-12."""
    coffee = Image.open(FIXTURES / "coffee.png")
    upright = coffee.transpose(Image.Transpose.ROTATE_90).transpose(Image.Transpose.FLIP_TOP_BOTTOM)

    assert _is_near(Decoder(MAX_PIXELS).decode((FIXTURES / "10-bit-turned.avif").read_bytes()), upright)


# HEIC, which is an extra.


def _heic() -> bytes:
    return (FIXTURES / "10-bit.heic").read_bytes()


def test_a_heic_is_turned_once_and_only_by_its_container() -> None:
    """Phones say it in the EXIF data as well. open_clip's transform sees it turned too: Pillow's plugin turns it."""
    picture = photograph("coffee").resize((60, 40))
    file = encode(picture, "HEIF", exif=turned(6).tobytes())

    assert _is_near(Decoder(MAX_PIXELS).decode(file), picture.transpose(Image.Transpose.ROTATE_270))
    assert opened(file).size == (40, 60)


@pytest.mark.parametrize("kind", [Fast, Reference], ids=["fast", "reference"])
def test_a_heic_without_the_extra_is_refused_with_the_extras_name(
    kind: type[Fast] | type[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # which is what Python does with a package that is missing
    preprocess = kind(model_input(), geometry(), MAX_PIXELS)

    with pytest.raises(Rejection) as raised:
        preprocess(_heic())

    assert (raised.value.reason, raised.value.detail) == (
        Reason.BAD_IMAGE,
        "a HEIC image, for which the worker lacks the extra heic: pip install 'clip-worker[heic]'",
    )


def test_without_the_extra_every_other_format_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)

    shown = Decoder(MAX_PIXELS).decode((FIXTURES / "10-bit.avif").read_bytes())

    assert _is_near(shown, Image.open(FIXTURES / "coffee.png"))


def test_a_heic_of_too_many_pixels_is_refused_by_its_header() -> None:
    with pytest.raises(Rejection) as raised:
        Decoder(max_pixels=96 * 72 - 1).decode(_heic())

    assert raised.value.reason is Reason.TOO_MANY_PIXELS


def test_a_heic_that_is_cut_off_is_refused() -> None:
    with pytest.raises(Rejection) as raised:
        Decoder(MAX_PIXELS).decode(_heic()[:-900])

    assert raised.value.reason is Reason.BAD_IMAGE


# What is refused, so that nothing is shown wrongly.


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(written.tiff(np.zeros((2, 2), np.float64)), id="TIFF of 64-bit floats"),
        pytest.param(written.tiff(np.zeros((2, 2), np.float16)), id="TIFF of 16-bit floats"),
        pytest.param(written.tiff(np.zeros((2, 2, 3), np.float32), photometric="rgb"), id="TIFF of RGB floats"),
        pytest.param(b"\xff\x0a" + bytes(100), id="JPEG XL"),
    ],
)
def test_what_can_not_be_read_is_refused(file: bytes) -> None:
    with pytest.raises(Rejection) as raised:
        Decoder(MAX_PIXELS).decode(file)

    assert raised.value.reason is Reason.BAD_IMAGE
