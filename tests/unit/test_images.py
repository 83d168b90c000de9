import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import Compose, Normalize, ToTensor

from schemas.dead_letter import Reason, Rejection
from tests.images.oracle import fitted, opened, seen
from tests.unit.pictures_for_tests import (
    FORMS,
    MAX_PIXELS,
    PHOTOGRAPHS,
    SIZE,
    TURNABLE,
    encode,
    file_of,
    geometry,
    model_input,
    photograph,
    turned,
)
from worker.fit import _interpolate
from worker.images import Fast, Reference
from worker.records import Pixels

# Pillow warns of what is odd about a picture; the worker leaves that unsaid, see worker.logs.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BOTH = pytest.mark.parametrize("kind", [Fast, Reference], ids=["fast", "reference"])

UNKNOWN = "neither of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIF, or its header is broken"
# width × height
SHAPES = [
    (128, 64),
    (64, 128),
    (1, 1),
    (2, 3),
    (3, 700),
    (700, 3),
    (1, 200),
    (200, 1),
    (224, 224),
    (223, 225),
    (225, 223),
    (224, 225),
    (225, 224),
    (224, 1000),
    (1000, 224),
    (225, 1000),
    (1000, 225),
    (448, 448),
]


def _make(kind: type[Fast] | type[Reference], max_pixels: int = MAX_PIXELS) -> Fast | Reference:
    return kind(model_input(), geometry(), max_pixels)


@pytest.fixture(scope="module")
def fast() -> Fast | Reference:
    return _make(Fast)


@pytest.fixture(scope="module")
def reference() -> Fast | Reference:
    return _make(Reference)


def _noise(width: int, height: int) -> Pixels:
    return np.random.default_rng(width * 100_003 + height).integers(0, 256, (height, width, 3), np.uint8)


def _photo(width: int, height: int) -> Pixels:
    return np.asarray(photograph("astronaut").resize((width, height), Image.Resampling.BICUBIC))


def _by_pillow(image: Image.Image) -> Pixels:
    return fitted(image, model_input())


def _assert_close(pixels: Pixels, expected: Pixels) -> None:
    """Check that no value is more than 2 of 255 levels off, and all together less than 0.02."""
    assert (pixels.dtype, pixels.shape) == (np.dtype(np.uint8), (SIZE, SIZE, 3))
    levels = np.abs(pixels.astype(int) - expected)
    assert levels.max() <= 2
    assert levels.mean() <= 0.02


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("form", FORMS)
def test_fast_shows_what_a_person_sees(form: str, name: str, fast: Fast) -> None:
    file = file_of(form, name)

    _assert_close(fast(file), _by_pillow(seen(opened(file))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNABLE)
def test_fast_turns_a_picture_as_its_exif_data_says(kind: str, orientation: int, fast: Fast) -> None:
    stored = photograph("coffee").resize((300, 200))
    file = encode(stored, kind, exif=turned(orientation), **TURNABLE[kind])

    _assert_close(fast(file), _by_pillow(seen(opened(file))))


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize(
    "form", [{"mode": "L"}, {"mode": "CMYK"}, {"mode": "RGB", "progressive": True}], ids=["grey", "cmyk", "progressive"]
)
def test_fast_turns_every_kind_of_jpeg(form: dict[str, object], orientation: int, fast: Fast) -> None:
    options = dict(form)
    stored = photograph("coffee").resize((300, 200)).convert(str(options.pop("mode")))
    file = encode(stored, "JPEG", exif=turned(orientation), **options)

    _assert_close(fast(file), _by_pillow(seen(opened(file))))


def test_fast_turns_a_jpeg_whose_xmp_data_says_so(fast: Fast) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stored = photograph("coffee").resize((300, 200))
    file = encode(stored, "JPEG", xmp=xmp)

    _assert_close(fast(file), _by_pillow(opened(file).transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0MM\0\x2a\xff\xff\xff\xff", turned(0).tobytes(), turned(9).tobytes()],
    ids=["empty", "garbage", "cut short", "orientation 0", "orientation 9"],
)
def test_fast_shows_a_picture_as_it_is_stored_where_its_exif_data_is_broken(exif: bytes, fast: Fast) -> None:
    stored = photograph("coffee").resize((300, 200))

    _assert_close(fast(encode(stored, "JPEG", exif=exif)), _by_pillow(opened(encode(stored, "JPEG"))))


@pytest.mark.parametrize("highest", [1, 255], ids=["0 to 1", "0 to 255"])
def test_fast_scales_floats_to_what_they_mean(highest: int, fast: Fast) -> None:
    grey = photograph("chelsea").convert("L")
    floats = Image.fromarray(np.asarray(grey).astype(np.float32) * np.float32(highest / 255))

    _assert_close(fast(encode(floats, "TIFF")), _by_pillow(grey.convert("RGB")))


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize("pixels", [_noise, _photo], ids=["noise", "photograph"])
def test_fast_takes_arrays_of_any_shape(
    pixels: Callable[[int, int], Pixels], width: int, height: int, fast: Fast
) -> None:
    array = pixels(width, height)

    _assert_close(fast(array), _by_pillow(Image.fromarray(array)))


def test_fast_keeps_an_array_of_the_models_size_bit_for_bit(fast: Fast) -> None:
    array = _noise(SIZE, SIZE)

    assert np.array_equal(fast(array), array)


@BOTH
def test_an_array_is_read_only_and_stays_as_it_is(kind: type[Fast] | type[Reference]) -> None:
    array = _noise(300, 200)
    array.flags.writeable = False

    pixels = _make(kind)(array)

    assert np.array_equal(array, _noise(300, 200))
    assert not np.shares_memory(pixels, array)


# open_clip's own transform.


def _assert_open_clips(pixels: Pixels, image: Image.Image) -> None:
    """Check that the pixels, normalised, are the tensor that open_clip makes of the image, bit for bit."""
    config = PreprocessCfg()
    normalise = Compose([ToTensor(), Normalize(config.mean, config.std)])
    assert (pixels.dtype, pixels.shape) == (np.dtype(np.uint8), (SIZE, SIZE, 3))
    assert torch.equal(normalise(np.array(pixels)), image_transform_v2(config, is_train=False)(image))


@pytest.mark.parametrize("name", ["coffee", "rocket"])
@pytest.mark.parametrize("form", FORMS)
def test_reference_is_open_clips_own_transform(form: str, name: str, reference: Reference) -> None:
    file = file_of(form, name)

    _assert_open_clips(reference(file), opened(file))


@pytest.mark.parametrize("kind", TURNABLE)
def test_reference_turns_a_picture_only_where_open_clip_does(kind: str, reference: Reference) -> None:
    file = encode(photograph("coffee").resize((300, 200)), kind, exif=turned(6), **TURNABLE[kind])

    _assert_open_clips(reference(file), opened(file))


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_reference_is_open_clips_own_transform_of_arrays(width: int, height: int, reference: Reference) -> None:
    array = _noise(width, height)

    _assert_open_clips(reference(array), Image.fromarray(array))


# Very long pictures.


@BOTH
@pytest.mark.parametrize(("width", "height"), [(1, 5_000), (5_000, 1), (2, 2_000), (3_000, 3), (4, 4_000)])
def test_of_a_very_long_picture_the_middle_isseen(kind: type[Fast] | type[Reference], width: int, height: int) -> None:
    array = _noise(width, height)
    top, left = max(0, height // 2 - 48), max(0, width // 2 - 48)
    middle = array[top : top + 96, left : left + 96]  # 96 is divided by every width here, so nothing is rounded

    pixels = _make(kind)(array)

    assert np.array_equal(pixels, _by_pillow(Image.fromarray(middle)))


@BOTH
@pytest.mark.parametrize(
    ("width", "height"), [(1, 20_000), (20_000, 1), (1, 1_000_000), (7, 5_000_000)], ids=lambda side: f"{side:,}"
)
def test_a_picture_of_any_length_takes_no_time(kind: type[Fast] | type[Reference], width: int, height: int) -> None:
    array = np.full((height, width, 3), (10, 20, 30), np.uint8)
    preprocess = _make(kind)
    begun_s = time.monotonic()

    pixels = preprocess(array)

    assert time.monotonic() - begun_s < 2
    assert np.array_equal(pixels, np.full((SIZE, SIZE, 3), (10, 20, 30), np.uint8))


# What is not an image.


def _refusal(preprocess: Fast | Reference, image: bytes | Pixels) -> tuple[Reason, str]:
    with pytest.raises(Rejection) as raised:
        preprocess(image)
    return raised.value.reason, raised.value.detail


@BOTH
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(b"x", id="one byte"),
        pytest.param(np.random.default_rng(0).bytes(10_000), id="noise"),
        pytest.param(bytes(1_000), id="zeros"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", id="EPS"),
        pytest.param(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n", id="PDF"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>', id="SVG"),
        pytest.param(b"<!DOCTYPE html><title>404 Not Found</title>", id="HTML"),
        pytest.param(encode(Image.new("RGB", (8, 8)), "PPM"), id="PPM"),
        pytest.param(encode(Image.new("RGB", (8, 8)), "TGA"), id="TGA"),
        pytest.param(encode(Image.new("RGB", (16, 16)), "ICO"), id="ICO"),
        pytest.param(encode(Image.new("RGB", (8, 8)), "JPEG2000"), id="JPEG 2000"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="only a signature"),
    ],
)
def test_a_file_of_another_format_is_rejected(kind: type[Fast] | type[Reference], file: bytes) -> None:
    assert _refusal(_make(kind), file) == (Reason.BAD_IMAGE, UNKNOWN)


@BOTH
@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_file_is_rejected(kind: type[Fast] | type[Reference], form: str) -> None:
    file = file_of(form, "rocket")

    reason, _ = _refusal(_make(kind), file[: len(file) // 3])

    assert reason is Reason.BAD_IMAGE


@BOTH
@pytest.mark.parametrize("form", ["jpeg-420", "jpeg-grey", "jpeg-progressive", "png-rgb", "webp", "tiff", "bmp"])
def test_a_file_that_lacks_its_last_tenth_is_rejected(kind: type[Fast] | type[Reference], form: str) -> None:
    file = file_of(form, "rocket")

    reason, _ = _refusal(_make(kind), file[: len(file) * 9 // 10])

    assert reason is Reason.BAD_IMAGE


# Too many pixels.


def _jpeg_of_65500() -> bytes:
    file = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
    height_at = file.index(b"\xff\xc0") + 5
    file[height_at : height_at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(file)


def _png_of_65500() -> bytes:
    file = bytearray(encode(Image.new("RGB", (16, 16)), "PNG"))
    file[16:24] = struct.pack(">II", 65_500, 65_500)
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    return bytes(file)


def _gif_of_65500() -> bytes:
    file = bytearray(encode(Image.new("P", (16, 16)), "GIF"))
    file[6:10] = struct.pack("<HH", 65_500, 65_500)
    return bytes(file)


def _bmp_of_65500() -> bytes:
    file = bytearray(encode(Image.new("RGB", (16, 16)), "BMP"))
    file[18:26] = struct.pack("<ii", 65_500, 65_500)
    return bytes(file)


def _tiff_of_65500() -> bytes:
    file = bytearray(encode(Image.new("RGB", (16, 16)), "TIFF"))
    for tag in (256, 257):
        at = file.index(struct.pack("<HHI", tag, 4, 1)) + 8
        file[at : at + 4] = struct.pack("<I", 65_500)
    return bytes(file)


@BOTH
@pytest.mark.parametrize(
    "make",
    [_jpeg_of_65500, _png_of_65500, _gif_of_65500, _bmp_of_65500, _tiff_of_65500],
    ids=["jpeg", "png", "gif", "bmp", "tiff"],
)
def test_a_header_that_claims_too_many_pixels_is_rejected_before_any_is_decoded(
    kind: type[Fast] | type[Reference], make: Callable[[], bytes]
) -> None:
    file = make()
    begun_s = time.monotonic()

    refusal = _refusal(_make(kind), file)

    assert refusal == (Reason.TOO_MANY_PIXELS, "65500×65500 is 4290250000 pixels, which exceeds 50000000")
    assert time.monotonic() - begun_s < 1


@BOTH
@pytest.mark.parametrize("form", ["jpeg-420", "jpeg-cmyk", "png-rgb", "webp", "gif", "bmp", "tiff", "avif"])
def test_as_many_pixels_as_are_allowed_are_decoded_and_no_more(kind: type[Fast] | type[Reference], form: str) -> None:
    file = FORMS[form](photograph("rocket").resize((20, 10)))

    assert _make(kind, max_pixels=200)(file).shape == (SIZE, SIZE, 3)
    assert _refusal(_make(kind, max_pixels=199), file) == (
        Reason.TOO_MANY_PIXELS,
        "20×10 is 200 pixels, which exceeds 199",
    )


@BOTH
def test_as_many_pixels_of_an_array_as_are_allowed_are_taken_and_no_more(kind: type[Fast] | type[Reference]) -> None:
    array = _noise(20, 10)

    assert _make(kind, max_pixels=200)(array).shape == (SIZE, SIZE, 3)
    assert _refusal(_make(kind, max_pixels=199), array) == (
        Reason.TOO_MANY_PIXELS,
        "20×10 is 200 pixels, which exceeds 199",
    )


def test_a_picture_stays_as_it_is_when_the_next_one_is_prepared() -> None:
    fast = Fast(model_input(), geometry(), MAX_PIXELS)
    first, second = (encode(photograph(name).resize((SIZE, SIZE)), "JPEG") for name in ("coffee", "chelsea"))
    prepared = fast(first)
    before = prepared.copy()

    fast(second)

    assert np.array_equal(prepared, before)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (257, 300), (640, 2000), (1000, 999)])
def test_leaving_out_what_the_crop_throws_away_changes_no_pixel(width: int, height: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    long = int(SIZE * max(width, height) / min(width, height))
    to = (SIZE, long) if height < width else (long, SIZE)
    kept = tuple(round((side - SIZE) / 2) + SIZE for side in to)
    channels_last = torch.from_numpy(rgb).permute(2, 0, 1)[None]

    part = _interpolate(channels_last, to, (kept[0], kept[1]), "bicubic")

    whole = interpolate(channels_last, to, mode="bicubic", antialias=True)
    assert torch.equal(part[:, :, : kept[0], : kept[1]], whole[:, :, : kept[0], : kept[1]])
