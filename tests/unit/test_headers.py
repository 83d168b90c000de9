import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from schemas.dead_letter import Reason, Rejection
from tests.unit.pictures_for_tests import FORMS, MAX_PIXELS, encode, file_of, photograph, turned
from worker import headers
from worker.headers import check_headers, jpeg_segments

PLAIN = encode(Image.new("RGB", (32, 24)), "JPEG", progressive=True)


def _refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Reason, str]:
    with pytest.raises(Rejection) as raised:
        check_headers(data, max_pixels)
    return raised.value.reason, raised.value.detail


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _jpeg_with(inserted: bytes) -> bytes:
    return PLAIN[:2] + inserted + PLAIN[2:]


def _jpeg_of_scans(scans: int) -> bytes:
    """Return a progressive JPEG whose last scan comes so often that it has so many."""
    last = PLAIN.rindex(b"\xff\xda")
    own = PLAIN.count(b"\xff\xda")
    return PLAIN[:last] + PLAIN[last:-2] * (scans - own + 1) + PLAIN[-2:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_with(*chunks: bytes) -> bytes:
    plain = encode(Image.new("RGB", (32, 24)), "PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]


# What cameras and editors write is let through.


@pytest.mark.parametrize("form", FORMS)
def test_a_photograph_of_any_form_is_let_through(form: str) -> None:
    check_headers(file_of(form, "coffee"), MAX_PIXELS)


@pytest.mark.parametrize("form", FORMS)
def test_the_segments_of_a_jpeg_are_told_and_nothing_of_any_other_file(form: str) -> None:
    file = file_of(form, "coffee")

    markers = check_headers(memoryview(file), MAX_PIXELS)

    assert set(markers) == ({marker for marker, _ in jpeg_segments(file)} if form.startswith("jpeg") else set())


@pytest.mark.parametrize("length", range(64))
def test_a_file_that_ends_in_its_header_is_left_to_its_decoder(length: int) -> None:
    for form in FORMS:
        check_headers(file_of(form, "coffee")[:length], MAX_PIXELS)


def test_a_jpeg_with_a_large_profile_exif_and_xmp_is_let_through() -> None:
    photo = photograph("rocket")

    check_headers(encode(photo, "JPEG", icc_profile=bytes(4_000_000), exif=turned(6), xmp=bytes(60_000)), MAX_PIXELS)


def test_a_large_png_in_chunks_of_8_kb_with_texts_is_let_through() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1_500, 1_500, 3), np.uint8)
    texts = PngImagePlugin.PngInfo()
    for number in range(10):
        texts.add_text(f"Raw profile type {number}", "x" * 5_000, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000)

    check_headers(encode(Image.fromarray(noise), "PNG", pnginfo=texts, compress_level=1), MAX_PIXELS)


def test_a_gif_with_a_long_comment_is_let_through() -> None:
    check_headers(encode(Image.new("P", (32, 24)), "GIF", comment=bytes(100_000)), MAX_PIXELS)


def test_a_tiff_of_rows_that_are_strips_each_is_let_through() -> None:
    file = encode(Image.new("L", (4, 20_000)), "TIFF", tiffinfo={278: 1}, compression="raw")

    check_headers(file, MAX_PIXELS)


def test_a_bigtiff_whose_directory_is_beyond_any_file_is_left_to_its_decoder() -> None:
    check_headers(b"II+\0\x08\0\0\0" + b"\xff" * 8, MAX_PIXELS)
    check_headers(_png_with(_chunk(b"eXIf", b"II+\0\x08\0\0\0" + b"\xff" * 8)), MAX_PIXELS)


# The limits.


def test_a_jpeg_has_at_most_100_scans() -> None:
    check_headers(_jpeg_of_scans(100), MAX_PIXELS)

    assert _refusal(_jpeg_of_scans(101)) == (Reason.BAD_IMAGE, "scans of a JPEG: over 100")


def test_what_follows_a_jpeg_is_not_taken_for_its_scans() -> None:
    check_headers(PLAIN + b"\xff\xda" * 1_000, MAX_PIXELS)
    check_headers(PLAIN + PLAIN * 100, MAX_PIXELS)


def test_scans_are_counted_past_what_only_looks_like_the_end() -> None:
    comment = _segment(0xFE, b"\xff\xd9")
    last = PLAIN.rindex(b"\xff\xda")
    file = PLAIN[:last] + (comment + PLAIN[last:-2]) * 200 + PLAIN[-2:]

    assert _refusal(file) == (Reason.BAD_IMAGE, "scans of a JPEG: over 100")


def test_a_jpeg_has_at_most_1000_segments_between_its_scans() -> None:
    last = PLAIN.rindex(b"\xff\xda")
    file = PLAIN[:last] + _segment(0xFE, b"\xff\xda") * 1_000 + PLAIN[last:]

    assert _refusal(file) == (Reason.BAD_IMAGE, "segments between the scans of a JPEG: over 1000")


def test_a_jpeg_has_at_most_1000_segments_before_its_picture() -> None:
    segments = len(list(jpeg_segments(PLAIN)))
    check_headers(_jpeg_with(_segment(0xE5, b"") * (1_000 - segments)), MAX_PIXELS)

    detail = "segments or filling bytes before the first scan of a JPEG: over 1000"
    assert _refusal(_jpeg_with(_segment(0xE5, b"") * (1_001 - segments))) == (Reason.BAD_IMAGE, detail)


@pytest.mark.parametrize("kind", [b"Exif\0\0", b"Photoshop 3.0\0"], ids=["EXIF", "Photoshop"])
def test_a_jpeg_has_at_most_16_segments_of_metadata_of_a_kind(kind: bytes) -> None:
    marker = 0xE1 if kind.startswith(b"Exif") else 0xED
    check_headers(_jpeg_with(_segment(marker, kind) * 16), MAX_PIXELS)

    detail = "EXIF or Photoshop segments of a JPEG: over 16"
    assert _refusal(_jpeg_with(_segment(marker, kind) * 17)) == (Reason.BAD_IMAGE, detail)


def test_a_png_has_at_most_16_compressed_texts_and_plain_ones_do_not_count() -> None:
    text = _chunk(b"zTXt", b"t\0\0" + zlib.compress(b"x"))
    plain = _chunk(b"iTXt", b"t\0\0\0\0\0x")
    check_headers(_png_with(*[text] * 16, *[plain] * 100), MAX_PIXELS)

    detail = "compressed texts and profiles of a PNG: over 16"
    assert _refusal(_png_with(*[text] * 17)) == (Reason.BAD_IMAGE, detail)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [(32 * 24 - 1, Reason.TOO_MANY_PIXELS), (32 * 24, None)],
    ids=["a pixel less", "as many as it has"],
)
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF"])
def test_decoders_that_allocate_as_they_open_get_no_more_pixels_than_are_allowed(
    kind: str, limit: int, reason: Reason | None
) -> None:
    file = encode(Image.new("RGB", (32, 24)), kind)

    if reason is None:
        check_headers(file, limit)
    else:
        assert _refusal(file, limit) == (reason, f"32×24 is 768 pixels, which exceeds {limit}")


@pytest.mark.parametrize("exif_first", [b"", b"Exif\0\0"], ids=["plain", "with its name"])
def test_exif_data_has_at_most_256_tags(exif_first: bytes) -> None:
    def exif(tags: int) -> bytes:
        return exif_first + b"MM\0*\0\0\0\x08" + struct.pack(">H", tags) + bytes(12 * tags + 4)

    check_headers(_png_with(_chunk(b"eXIf", exif(256))), MAX_PIXELS)

    detail = "257 tags of a TIFF, or of EXIF data: over 256"
    assert _refusal(_png_with(_chunk(b"eXIf", exif(257)))) == (Reason.BAD_IMAGE, detail)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("kind", [3, 4], ids=["short", "long"])
def test_a_tile_of_a_tiff_is_as_large_as_a_picture_may_be(order: str, kind: int) -> None:
    def tag(number: int, value: int) -> bytes:
        packed = struct.pack(order + ("HH" if kind == 3 else "I"), *([value, 0] if kind == 3 else [value]))
        return struct.pack(order + "HHI", number, kind, 1) + packed

    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 2)
    file = start + tag(322, 100) + tag(323, 50) + bytes(4)

    check_headers(file, 5_000)
    assert _refusal(file, 4_999) == (Reason.TOO_MANY_PIXELS, "100×50 is 5000 pixels, which exceeds 4999")


def test_every_limit_is_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    limits = {name: limit for name, limit in vars(headers).items() if name.startswith("MAX_")}

    missing = [name for name, limit in limits.items() if f"{limit:,}" not in readme]
    assert missing == ["MAX_PNG_COMPRESSED_BYTES"]  # which is there as 1 MiB
