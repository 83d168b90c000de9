"""What an image file says of itself, looked at before any decoder does. Pure; runs in the prepare threads.

A decoder's work is bounded by the pixels of the header, and by the bytes of the file, but for some parts of the
formats: those are counted here. Anything else that is wrong with a file is left to its decoder to say.
"""

import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping

from schemas.dead_letter import Reason, Rejection
from worker.records import ImageFile

# Each several times what cameras, phones, scanners and editors write.
MAX_JPEG_SEGMENTS = 1_000  # before the first scan; an ICC profile may take 255
MAX_JPEG_METADATA_SEGMENTS = 16  # of EXIF, and of Photoshop's blocks: Pillow goes through them in Python
MAX_JPEG_SCANS = 100  # each goes over every block again; libtiff has the same limit, progressive files have about 10
MAX_SPARSE_JPEG_PIXELS = 4_000_000  # of one that lacks most of its data; more cost too much before that is found
MAX_PNG_CHUNKS = 10_000
MAX_PNG_COMPRESSED_TEXTS = 16  # the colour profile is one; each may become 1 MiB, by Pillow's own limit
MAX_PNG_COMPRESSED_BYTES = 2**20  # of one of them, which would not become less
MAX_GIF_BLOCKS = 10_000  # before the first picture
MAX_WEBP_CHUNKS = 10_000  # a frame is one
MAX_BMP_RUN_PIXELS = 4_000_000  # of one with run lengths, which Pillow decodes in Python
MAX_TIFF_TAGS = 256  # of EXIF data too, which is a TIFF
MAX_TIFF_STRIPS = 65_536  # or tiles
MAX_TIFF_VALUES = 262_144  # of one tag; the largest palette has 196,608
MAX_AVIF_BOXES = 10_000
MAX_AVIF_FRAMES = 10_000

_READ_PAST_THE_END = (IndexError, OverflowError, struct.error)  # by an offset of up to 64 bits


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise where an image is too large. Raises: `Rejection` with `too-many-pixels`."""
    if width * height > max_pixels:
        raise Rejection(
            Reason.TOO_MANY_PIXELS, f"{width}×{height} is {width * height} pixels, which exceeds {max_pixels}"
        )


def check_headers(data: ImageFile, max_pixels: int) -> Collection[int]:
    """Raise where decoding the first frame would take far more than the pixels of its header.

    Return the markers of a JPEG up to the first scan's, nothing of any other file, and of one that ends too early.
    Raises: `Rejection` with `bad-image` or `too-many-pixels`.
    """
    try:
        for signature, check in _CHECKS.items():
            if signature.match(data):
                return check(data, max_pixels) or ()
    except _READ_PAST_THE_END:  # its decoder says it
        return ()
    return ()


def _is_at(data: ImageFile, at: int, expected: bytes) -> bool:
    return data[at : at + len(expected)] == expected


def _refuse_over(limit: int, count: int, what: str) -> None:
    if count > limit:
        raise Rejection(Reason.BAD_IMAGE, f"{what}: over {limit}")


# JPEG, https://www.w3.org/Graphics/JPEG/itu-t81.pdf, annex B.

APP1, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset([0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)])  # as Pillow takes them
_FIRST_MARKER, _FILLING = 0xC0, 0xFF
_EXIF = b"Exif\0\0"
_METADATA = (_EXIF, b"Photoshop 3.0\0")
_APP13 = 0xED
_PROGRESSIVE = frozenset([0xC2, 0xC6, 0xCA, 0xCE])
_FRAMES = _PROGRESSIVE | {0xC0, 0xC1, 0xC3, 0xC5, 0xC7, 0xC9, 0xCB, 0xCD, 0xCF}
_SEQUENTIAL = frozenset([0xC0, 0xC1])  # Huffman codes, all of a block at once
_PIXELS_A_BYTE = 256  # at most: 64 of a block, whose two or more codes have a bit or more each
_SCAN = b"\xff\xda"
_IN_SCAN = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")  # what ends a scan's data: no stuffing, filling or restart


def jpeg_segments(data: ImageFile) -> Iterator[tuple[int, int]]:
    """Yield each marker, and where it is, up to the first scan's, as Pillow finds them.

    Raises: `Rejection` with `bad-image` at the 1,001st segment or byte that is passed over.
    """
    at, steps = 2, 0
    while at + 1 < len(data):
        _refuse_over(MAX_JPEG_SEGMENTS, steps := steps + 1, "segments or filling bytes before the first scan of a JPEG")
        marker = data[at + 1]
        if data[at] != _FILLING or marker == _FILLING:
            at += 1
            continue
        if 0 < marker < _FIRST_MARKER:
            return
        if marker:
            yield marker, at
        if marker == _START_OF_SCAN:
            return
        at = at + 2 if not marker or marker in _WITHOUT_LENGTH else _after_segment(data, at)


def _check_jpeg(data: ImageFile, max_pixels: int) -> Collection[int]:
    markers, counts = set(), dict.fromkeys(_METADATA, 0)
    has_many_scans, components = True, 0
    for marker, at in jpeg_segments(data):
        markers.add(marker)
        if marker in _FRAMES:
            has_many_scans, components = marker in _PROGRESSIVE, data[at + 9]
            height, width = struct.unpack_from(">HH", data, at + 5)
            check_pixels(width, height, max_pixels)
            if marker in _SEQUENTIAL and width * height > MAX_SPARSE_JPEG_PIXELS:
                what = f"{width * height} pixels of a JPEG of {len(data)} bytes"
                _refuse_over(_PIXELS_A_BYTE * len(data), width * height, what)
        elif marker in (APP1, _APP13):
            _check_jpeg_metadata(data, at + 4, counts)
        elif marker == _START_OF_SCAN and (has_many_scans or data[at + 4] < components):
            _refuse_over(MAX_JPEG_SCANS, _count_scans(data, at), "scans of a JPEG")
    return markers


def _check_jpeg_metadata(data: ImageFile, at: int, counts: dict[bytes, int]) -> None:
    kind = next((kind for kind in _METADATA if _is_at(data, at, kind)), None)
    if kind is None:
        return
    counts[kind] += 1
    _refuse_over(MAX_JPEG_METADATA_SEGMENTS, counts[kind], "EXIF or Photoshop segments of a JPEG")
    if kind == _EXIF and counts[kind] == 1:
        _check_exif(data, at)


def _after_segment(data: ImageFile, at: int) -> int:
    return at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))


def _count_scans(data: ImageFile, at: int) -> int:
    """Count the scans from the first one at `at` to the end of the image, one too many at most."""
    most = bytes(data[at:]).count(_SCAN)
    if most <= MAX_JPEG_SCANS:  # what follows the image may have these bytes by chance, but then it is no matter
        return most
    scans, markers = 0, 0
    while data[at + 1] != _END_OF_IMAGE and scans <= MAX_JPEG_SCANS:
        _refuse_over(MAX_JPEG_SEGMENTS, markers := markers + 1, "segments between the scans of a JPEG")
        scans += data[at + 1] == _START_OF_SCAN
        found = _IN_SCAN.search(data, _after_segment(data, at))
        if found is None:
            break
        at = found.start()
    return scans


# PNG, https://www.w3.org/TR/png-3/#5Chunk-layout.

_COMPRESSED_TEXTS = (b"iCCP", b"iTXt", b"zTXt")
_KEYWORD_BYTES = 80  # at most, its null included


def _check_png(data: ImageFile, _: int) -> None:
    at, chunks, texts = 8, 0, 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        _refuse_over(MAX_PNG_CHUNKS, chunks := chunks + 1, "chunks of a PNG")
        if kind in _COMPRESSED_TEXTS and _is_compressed(data, kind, at + 8):
            _refuse_over(MAX_PNG_COMPRESSED_TEXTS, texts := texts + 1, "compressed texts and profiles of a PNG")
            _refuse_over(MAX_PNG_COMPRESSED_BYTES, length, f"{length} bytes of a compressed text or profile of a PNG")
        elif kind == b"eXIf":
            _check_exif(data, at + 8)
        at += 12 + length


def _is_compressed(data: ImageFile, kind: bytes, at: int) -> bool:
    """Return whether the text is; an iTXt says it after its keyword and a null."""
    null = bytes(data[at : at + _KEYWORD_BYTES]).find(b"\0")
    return kind != b"iTXt" or null < 0 or data[at + null + 1] != 0


# GIF, https://www.w3.org/Graphics/GIF/spec-gif89a.txt.

_EXTENSION, _IMAGE = 0x21, 0x2C


def _check_gif(data: ImageFile, max_pixels: int) -> None:
    width, height = struct.unpack_from("<HH", data, 6)
    check_pixels(width, height, max_pixels)
    at, blocks = 13, 0
    if data[10] & 0x80:
        at += 6 << (data[10] & 7)
    while data[at] != _IMAGE:
        _refuse_over(MAX_GIF_BLOCKS, blocks := blocks + 1, "blocks before the first picture of a GIF")
        at += 1
        if data[at - 1] != _EXTENSION:
            continue
        at += 1
        while length := data[at]:
            _refuse_over(MAX_GIF_BLOCKS, blocks := blocks + 1, "blocks before the first picture of a GIF")
            at += 1 + length
        at += 1
    left, top, width, height = struct.unpack_from("<4H", data, at + 1)
    check_pixels(left + width, top + height, max_pixels)


# WebP, https://developers.google.com/speed/webp/docs/riff_container.


def _check_webp(data: ImageFile, max_pixels: int) -> None:
    kind = data[12:16]
    if kind == b"VP8X":
        check_pixels(int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1, max_pixels)
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        check_pixels((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, max_pixels)
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        check_pixels(width & 0x3FFF, height & 0x3FFF, max_pixels)
    at, chunks = 12, 0
    while at + 8 <= len(data):
        _refuse_over(MAX_WEBP_CHUNKS, chunks := chunks + 1, "chunks of a WebP")
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            _check_exif(data, at + 8)
        at += 8 + length + (length & 1)


# BMP, https://learn.microsoft.com/windows/win32/api/wingdi/ns-wingdi-bitmapinfoheader.

_RUN_LENGTHS = (1, 2)


def _check_bmp(data: ImageFile, _: int) -> None:
    width, height, compression = struct.unpack_from("<ii4xI", data, 18)
    if compression not in _RUN_LENGTHS:
        return
    pixels = abs(width * height)
    if pixels > MAX_BMP_RUN_PIXELS:
        detail = f"a BMP with run lengths of {pixels} pixels, which exceeds {MAX_BMP_RUN_PIXELS}"
        raise Rejection(Reason.TOO_MANY_PIXELS, detail)
    # Two bytes a pixel are the most that a run of one pixel takes; the rest is for headers, and for ends of lines.
    _refuse_over(4 * pixels + 65_536, len(data), f"{len(data)} bytes of a BMP with run lengths of {pixels} pixels")


# TIFF, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf, and BigTIFF.

_BYTES, _SHORT, _LONG, _LONG8 = (1, 2, 6, 7), 3, 4, 16
_STRIP_OFFSETS, _TILE_OFFSETS, _TILE_WIDTH, _TILE_LENGTH = 273, 324, 322, 323


def _check_tiff(data: ImageFile, max_pixels: int) -> None:
    tile = {_TILE_WIDTH: 0, _TILE_LENGTH: 0}
    for tag, kind, count, value in _tiff_tags(data):
        if tag in tile and kind in (_SHORT, _LONG, _LONG8):
            tile[tag] = max(tile[tag], value)
            check_pixels(tile[_TILE_WIDTH], tile[_TILE_LENGTH], max_pixels)
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS):
            _refuse_over(MAX_TIFF_STRIPS, count, f"{count} strips or tiles of a TIFF")
        if kind not in _BYTES:
            _refuse_over(MAX_TIFF_VALUES, count, f"{count} values of tag {tag} of a TIFF")


def _tiff_tags(data: ImageFile) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, type, count and value, or where the values are, of the first directory."""
    order, is_big, at, tags = _tiff_directory(data, 0)
    entry, value_at = ("HHQQ", 12) if is_big else ("HHII", 8)
    for _ in range(tags):
        tag, kind, count, value = struct.unpack_from(order + entry, data, at)
        if kind == _SHORT:
            (value,) = struct.unpack_from(order + "H", data, at + value_at)
        yield tag, kind, count, value
        at += struct.calcsize("=" + entry)


def _tiff_directory(data: ImageFile, start: int) -> tuple[str, bool, int, int]:
    """Return byte order, whether it is a BigTIFF, and where the first directory's tags are and how many."""
    order = "<" if _is_at(data, start, b"II") else ">"
    is_big = data[start + 2] == 43  # noqa: PLR2004 - BigTIFF's version
    where, size = ("8xQ", "Q") if is_big else ("4xI", "H")
    (at,) = struct.unpack_from(order + where, data, start)
    (tags,) = struct.unpack_from(order + size, data, start + at)
    _refuse_over(MAX_TIFF_TAGS, tags, f"{tags} tags of a TIFF, or of EXIF data")
    return order, is_big, start + at + struct.calcsize("=" + size), tags


def _check_exif(data: ImageFile, at: int) -> None:
    while _is_at(data, at, _EXIF):
        at += len(_EXIF)
    try:
        _tiff_directory(data, at)
    except _READ_PAST_THE_END:
        return  # viewers ignore what is broken


# AVIF, ISO/IEC 14496-12 (the boxes) and https://aomediacodec.github.io/av1-avif/.

# Boxes of boxes, and how many bytes come before those.
_CONTAINERS = dict.fromkeys((b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0) | {b"meta": 4}


def _check_avif(data: ImageFile, max_pixels: int) -> None:
    at, boxes = 0, 0
    while at + 8 <= len(data):
        _refuse_over(MAX_AVIF_BOXES, boxes := boxes + 1, "boxes of an AVIF")
        length, kind = struct.unpack_from(">I4s", data, at)
        content = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, content)
            content += 8
        if kind == b"ispe":
            width, height = struct.unpack_from(">II", data, content + 4)
            check_pixels(width, height, max_pixels)
        elif kind == b"stsz":
            (frames,) = struct.unpack_from(">I", data, content + 8)
            _refuse_over(MAX_AVIF_FRAMES, frames, f"{frames} frames of an AVIF")
        after = max(content, at + length) if length else len(data)
        at = content + _CONTAINERS[kind] if kind in _CONTAINERS else after


_CHECKS: Mapping[re.Pattern[bytes], Callable[[ImageFile, int], Collection[int] | None]] = {
    re.compile(rb"\xff\xd8\xff"): _check_jpeg,
    re.compile(rb"\x89PNG\r\n\x1a\n"): _check_png,
    re.compile(rb"GIF8[79]a"): _check_gif,
    re.compile(rb"BM"): _check_bmp,
    re.compile(rb"RIFF....WEBP", re.DOTALL): _check_webp,
    re.compile(rb"(II|MM)(\0[\x2a\x2b]|[\x2a\x2b]\0)"): _check_tiff,
    re.compile(rb"....ftyp", re.DOTALL): _check_avif,
}
