"""Records that are small, or well within the limits, and made to cost a reader far more than they should."""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import msgpack
import numpy as np
from PIL import Image

from schemas.dead_letter import Headers, Reason
from schemas.document import pack_document
from tests.unit.pictures_for_tests import encode

BYTES = 16_000_000  # about what WORKER_MAX_IMAGE_BYTES and Kafka let through
HUGE = 65_535


@dataclass(frozen=True, slots=True)
class Bomb:
    """A whole value, or a picture in a document. `reason` None: it costs nothing, and is prepared."""

    name: str
    reason: Reason | None
    make: Callable[[], bytes]
    is_picture: bool = True
    headers: Headers = ()

    def value(self) -> bytes:
        return pack_document("bomb", self.make()) if self.is_picture else self.make()


@cache
def _picture(kind: str, **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    image = Image.fromarray(noise)
    return encode(image.convert("P") if kind == "GIF" else image, kind, **options)


def _replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _zeros(count: int) -> bytes:
    """Return a zlib stream of so many zeros, whole MiB of them, without an end."""
    packer = zlib.compressobj(9)
    packer.compress(b"")
    packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + block * (count // 2**20)


# JPEG.


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _jpeg_with(inserted: bytes) -> bytes:
    plain = _picture("JPEG")
    return plain[:2] + inserted + plain[2:]


def _jpeg_of(width: int, height: int, *, progressive: bool) -> bytes:
    file = _picture("JPEG", progressive=progressive)
    at = file.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    return _replaced(file, at, struct.pack(">HH", height, width))


def _jpeg_of_many_scans(scans: int, side: int = 7_000, *, progressive: bool = True) -> bytes:
    """Return a grey JPEG whose scans all are empty: each an end-of-band run after the other."""
    rows = (side + 7) // 8
    blocks = rows * rows
    frame = _segment(0xC2 if progressive else 0xC0, struct.pack(">BHHBBBB", 8, side, side, 1, 1, 0x11, 0))
    quantisation = _segment(0xDB, b"\0" + bytes([1]) * 64)
    # Of one code of one bit: a run of 16,384 blocks, or more, without anything; 0 for the first coefficient.
    dc = _segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    ac = _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")
    runs = -(-blocks // 0x4000)
    bits = ("0" + "0" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8)
    first = _segment(0xDA, bytes([1, 1, 0x00, 0, 0, 0])) + bytes(-(-blocks // 8))
    later = _segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0])) + data
    return b"\xff\xd8" + quantisation + frame + dc + ac + first + later * scans + b"\xff\xd9"


def _jpeg_of_scans_and(segment: bytes) -> bytes:
    """Return a progressive JPEG with 16 MB of segments before its last scan, and a comment of what looks like scans."""
    plain = _picture("JPEG", progressive=True)
    last = plain.rindex(b"\xff\xda")
    return plain[:last] + segment * (BYTES // len(segment)) + _segment(0xFE, b"\xff\xda" * 200) + plain[last:]


def _photoshop(blocks: int) -> bytes:
    return _segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * blocks)


JPEGS = [
    Bomb("JPEG, 65,535 × 65,535", Reason.TOO_MANY_PIXELS, lambda: _jpeg_of(HUGE, HUGE, progressive=False)),
    Bomb("JPEG, progressive, 65,535 × 65,535", Reason.TOO_MANY_PIXELS, lambda: _jpeg_of(HUGE, HUGE, progressive=True)),
    Bomb("JPEG, 49 million pixels in 600 bytes", Reason.BAD_IMAGE, lambda: _jpeg_of(7_000, 7_000, progressive=False)),
    Bomb("JPEG, 5,000 empty scans of 49 million pixels", Reason.BAD_IMAGE, lambda: _jpeg_of_many_scans(5_000)),
    Bomb(
        "JPEG, 4 million comments between its scans", Reason.BAD_IMAGE, lambda: _jpeg_of_scans_and(_segment(0xFE, b""))
    ),
    Bomb("JPEG, 4 million empty segments", Reason.BAD_IMAGE, lambda: _jpeg_with(_segment(0xE5, b"") * (BYTES // 4))),
    Bomb(
        "JPEG, 1.6 million EXIF segments",
        Reason.BAD_IMAGE,
        lambda: _jpeg_with(_segment(0xE1, b"Exif\0\0x") * (BYTES // 11)),
    ),
    Bomb(
        "JPEG, 900 EXIF segments",
        Reason.BAD_IMAGE,
        lambda: _jpeg_with(_segment(0xE1, b"Exif\0\0" + bytes(17_000)) * 900),
    ),
    Bomb("JPEG, 16 MB of filling bytes", Reason.BAD_IMAGE, lambda: _jpeg_with(b"\xff" * BYTES)),
    Bomb("JPEG, 16 MB between two segments", Reason.BAD_IMAGE, lambda: _jpeg_with(bytes(BYTES))),
    Bomb(
        "JPEG, 8 million restart markers in its header",
        Reason.BAD_IMAGE,
        lambda: _jpeg_with(b"\xff\xd0" * (BYTES // 2)),
    ),
    Bomb("JPEG, 16 MB of Photoshop's blocks", Reason.BAD_IMAGE, lambda: _jpeg_with(_photoshop(5_400) * 240)),
]

# PNG.


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(*chunks: bytes, width: int = 32, height: int = 24, bits: int = 8, colour: int = 2) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _pixels(width: int = 32, height: int = 24) -> bytes:
    return _chunk(b"IDAT", zlib.compress(bytes((1 + 3 * width) * height)))


def _frames(count: int) -> Iterator[bytes]:
    yield _chunk(b"acTL", struct.pack(">II", count, 0))
    control = struct.pack(">IIIIHHBB", 32, 24, 0, 0, 1, 10, 0, 0)
    yield _chunk(b"fcTL", struct.pack(">I", 0) + control)
    yield _pixels()
    data = zlib.compress(bytes((1 + 3 * 32) * 24))
    for number in range(1, 2 * count, 2):
        yield _chunk(b"fcTL", struct.pack(">I", number) + control)
        yield _chunk(b"fdAT", struct.pack(">I", number + 1) + data)


PNGS = [
    Bomb("PNG, 2³¹−1 × 2³¹−1", Reason.TOO_MANY_PIXELS, lambda: _png(_pixels(), width=2**31 - 1, height=2**31 - 1)),
    Bomb("PNG, 32 × 24, 15 GB of pixels in 16 MB", None, lambda: _png(_chunk(b"IDAT", _zeros(15 * 2**30)))),
    Bomb(
        "PNG, a profile of 15 GB",
        Reason.BAD_IMAGE,
        lambda: _png(_chunk(b"iCCP", b"p\0\0" + _zeros(15 * 2**30)), _pixels()),
    ),
    Bomb(
        "PNG, a zTXt of 15 GB",
        Reason.BAD_IMAGE,
        lambda: _png(_chunk(b"zTXt", b"t\0\0" + _zeros(15 * 2**30)), _pixels()),
    ),
    Bomb(
        "PNG, an iTXt of 15 GB",
        Reason.BAD_IMAGE,
        lambda: _png(_chunk(b"iTXt", b"t\0\1\0\0\0" + _zeros(15 * 2**30)), _pixels()),
    ),
    Bomb(
        "PNG, 2,000 zTXt of 1 MB",
        Reason.BAD_IMAGE,
        lambda: _png(_chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(2**20 - 1), 9)) * 2_000, _pixels()),
    ),
    Bomb(
        "PNG, 60 zTXt of 1 MB",
        Reason.BAD_IMAGE,
        lambda: _png(_chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(2**20 - 1), 9)) * 60, _pixels()),
    ),
    Bomb(
        "PNG, 2,000 profiles of 1 MB",
        Reason.BAD_IMAGE,
        lambda: _png(_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**20 - 1), 9)) * 2_000, _pixels()),
    ),
    Bomb(
        "PNG, 1.3 million empty chunks", Reason.BAD_IMAGE, lambda: _png(_chunk(b"tEXt", b"") * (BYTES // 12), _pixels())
    ),
    Bomb(
        "PNG, its pixels in 1.3 million empty chunks",
        Reason.BAD_IMAGE,
        lambda: _png(_chunk(b"IDAT", b"") * (BYTES // 12), _pixels()),
    ),
    Bomb(
        "PNG, EXIF of 65,535 tags",
        Reason.BAD_IMAGE,
        lambda: _png(_chunk(b"eXIf", _tiff([(1000 + n, 3, 1, 1) for n in range(60_000)])), _pixels()),
    ),
    Bomb("APNG, 100,000 frames", Reason.BAD_IMAGE, lambda: _png(*_frames(100_000))),
]

# GIF.


def _gif(before: bytes = b"", *, width: int = 32, height: int = 24, frame: Sequence[int] = (0, 0, 32, 24)) -> bytes:
    plain = _picture("GIF")
    at = 13 + (6 << (plain[10] & 7))
    start = plain.index(b"\x2c", at)
    header = plain[:6] + struct.pack("<HH", width, height) + plain[10:start]
    return header + before + b"\x2c" + struct.pack("<4H", *frame) + plain[start + 9 :]


GIFS = [
    Bomb("GIF, screen of 65,535 × 65,535", Reason.TOO_MANY_PIXELS, lambda: _gif(width=HUGE, height=HUGE)),
    Bomb("GIF, picture of 65,535 × 65,535", Reason.TOO_MANY_PIXELS, lambda: _gif(frame=(0, 0, HUGE, HUGE))),
    Bomb(
        "GIF, the same, and it disposes of it",
        Reason.TOO_MANY_PIXELS,
        lambda: _gif(b"\x21\xf9\x04\x08\0\0\0\0", frame=(0, 0, HUGE, HUGE)),
    ),
    Bomb("GIF, picture beyond its screen", Reason.TOO_MANY_PIXELS, lambda: _gif(frame=(HUGE, HUGE, 1, 1))),
    Bomb(
        "GIF, 8 million blocks of a comment",
        Reason.BAD_IMAGE,
        lambda: _gif(b"\x21\xfe" + b"\1x" * (BYTES // 2) + b"\0"),
    ),
    Bomb(
        "GIF, 62,000 large blocks of a comment",
        Reason.BAD_IMAGE,
        lambda: _gif(b"\x21\xfe" + (b"\xff" + bytes(255)) * (BYTES // 256) + b"\0"),
    ),
    Bomb("GIF, 5 million extensions", Reason.BAD_IMAGE, lambda: _gif(b"\x21\x01\0" * (BYTES // 3))),
    Bomb("GIF, 16 MB between header and picture", Reason.BAD_IMAGE, lambda: _gif(bytes(BYTES))),
]

# WebP.


def _riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _riff_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) & 1)


def _vp8x(width: int, height: int, flags: int = 0x02) -> bytes:
    return _riff_chunk(
        b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )


def _webp_pixels(**options: object) -> bytes:
    return _picture("WEBP", method=0, **options)[12:]


def _anmf(pixels: bytes) -> bytes:
    where = bytes(6) + (31).to_bytes(3, "little") + (23).to_bytes(3, "little") + bytes(4)
    return _riff_chunk(b"ANMF", where + pixels)


_TINY_LOSSLESS = b"\x2f" + struct.pack("<I", 31 | 23 << 14) + bytes(3)

WEBPS = [
    Bomb(
        "WebP, canvas of 65,535 × 65,535",
        Reason.TOO_MANY_PIXELS,
        lambda: _riff(_vp8x(HUGE, HUGE), _riff_chunk(b"ANIM", bytes(6)), _anmf(_webp_pixels())),
    ),
    Bomb(
        "WebP, lossy, 16,383 × 16,383",
        Reason.TOO_MANY_PIXELS,
        lambda: _replaced(_picture("WEBP", method=0), 26, struct.pack("<HH", 16_383, 16_383)),
    ),
    Bomb(
        "WebP, lossless, 16,384 × 16,384",
        Reason.TOO_MANY_PIXELS,
        lambda: _replaced(_picture("WEBP", lossless=True), 21, struct.pack("<I", 16_383 | 16_383 << 14)),
    ),
    Bomb(
        "WebP, animated, 400,000 frames",
        Reason.BAD_IMAGE,
        lambda: _riff(
            _vp8x(32, 24), _riff_chunk(b"ANIM", bytes(6)), _anmf(_riff_chunk(b"VP8L", _TINY_LOSSLESS)) * (BYTES // 40)
        ),
    ),
    Bomb(
        "WebP, 2 million unknown chunks",
        Reason.BAD_IMAGE,
        lambda: _riff(_vp8x(32, 24, 0), _webp_pixels(), b"abcd\0\0\0\0" * (BYTES // 8)),
    ),
]

# BMP.


def _bmp(width: int, height: int, *, compression: int = 0, bits: int = 24, data: bytes = b"") -> bytes:
    palette = bytes(4 * 256) if bits == 8 else b""
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 256 if bits == 8 else 0, 0
    )
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette + data


BMPS = [
    Bomb("BMP, 2³¹−1 × 2³¹−1", Reason.TOO_MANY_PIXELS, lambda: _bmp(2**31 - 1, 2**31 - 1)),
    Bomb(
        "BMP, run lengths, ends of lines of 25 million pixels",
        Reason.TOO_MANY_PIXELS,
        lambda: _bmp(25_000_000, 2, compression=1, bits=8, data=b"\1\0\0\0" * 2),
    ),
    Bomb(
        "BMP, run lengths, skips of 50 million pixels",
        Reason.TOO_MANY_PIXELS,
        lambda: _bmp(50_000_000, 1, compression=1, bits=8, data=b"\0\2\xff\xff" * 10),
    ),
    Bomb(
        "BMP, 5 million empty run lengths",
        Reason.BAD_IMAGE,
        lambda: _bmp(32, 24, compression=1, bits=8, data=b"\0\0" * (BYTES // 2)),
    ),
    Bomb(
        "BMP, run lengths of one pixel each",
        Reason.TOO_MANY_PIXELS,
        lambda: _bmp(7_000, 1_100, compression=1, bits=8, data=b"\1\7" * (BYTES // 2)),
    ),
]

# TIFF.

Tag = tuple[int, int, int, int]


def _tiff(tags: Sequence[Tag], *, after: bytes = b"", following: int = 0) -> bytes:
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", following) + after


def _after(tags: int) -> int:
    """Return where what follows a directory of so many tags is."""
    return 8 + 2 + 12 * tags + 4


def _grey(width: int, height: int, *more: Tag, compression: int = 1) -> Sequence[Tag]:
    plain = {256: (256, 4, 1, width), 257: (257, 4, 1, height), 258: (258, 3, 1, 8), 259: (259, 3, 1, compression)}
    plain |= {262: (262, 3, 1, 1), 277: (277, 3, 1, 1)} | {tag[0]: tag for tag in more}
    return [plain[tag] for tag in sorted(plain)]


def _tiff_of_strips(count: int) -> bytes:
    where = _after(9)
    tags = _grey(32, 24, (273, 4, count, where), (278, 4, 1, 1), (279, 4, count, where))
    return _tiff(tags, after=struct.pack("<I", 8) * count)


def _tiff_of_one_tile(side: int) -> bytes:
    data = _zeros(side * side)
    where = _after(10)
    tags = _grey(
        32, 24, (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, where), (325, 4, 1, len(data)), compression=8
    )
    return _tiff(tags, after=data)


def _tiff_in_a_loop() -> bytes:
    tags = _grey(32, 24, (273, 4, 1, _after(9)), (278, 4, 1, 24), (279, 4, 1, 768))
    return _tiff(tags, after=bytes(768), following=8)


def _tiff_of_many_pages() -> bytes:
    tags = _grey(32, 24, (273, 4, 1, _after(9)), (278, 4, 1, 24), (279, 4, 1, 768))
    at = _after(9) + 768
    pages = b"".join(struct.pack("<HI", 0, at + 6 * (page + 1)) for page in range(BYTES // 6))
    return _tiff(tags, after=bytes(768) + pages, following=at)


TIFFS = [
    Bomb(
        "TIFF, 2³²−1 × 2³²−1",
        Reason.TOO_MANY_PIXELS,
        lambda: _tiff(_grey(2**32 - 1, 2**32 - 1, (273, 4, 1, 8), (278, 4, 1, 24))),
    ),
    Bomb("TIFF, 65,535 tags", Reason.BAD_IMAGE, lambda: _tiff([(1000 + n, 3, 1, 1) for n in range(60_000)])),
    Bomb(
        "TIFF, 900 tags that share 16 MB",
        Reason.BAD_IMAGE,
        lambda: _tiff([(1000 + n, 1, BYTES - 20_000, 20_000) for n in range(900)], after=bytes(BYTES)),
    ),
    Bomb("TIFF, 4 million strips", Reason.BAD_IMAGE, lambda: _tiff_of_strips(BYTES // 4)),
    Bomb(
        "TIFF, a resolution of 4 million values",
        Reason.BAD_IMAGE,
        lambda: _tiff(_grey(32, 24, (273, 4, 1, 8), (282, 4, BYTES // 4, 200)), after=bytes(BYTES)),
    ),
    Bomb("TIFF, 32 × 24, a tile of 60,000 × 60,000", Reason.TOO_MANY_PIXELS, lambda: _tiff_of_one_tile(60_000)),
    Bomb(
        "TIFF, a strip that claims 4 GB",
        Reason.BAD_IMAGE,
        lambda: _tiff(_grey(32, 24, (273, 4, 1, 8), (278, 4, 1, 2**32 - 1), (279, 4, 1, 2**32 - 1), compression=5)),
    ),
    Bomb("TIFF, a directory that is its own next", None, _tiff_in_a_loop),
    Bomb("TIFF, 2.6 million pages", None, _tiff_of_many_pages),
]

# AVIF.


@cache
def _avif() -> bytes:
    return _picture("AVIF", speed=10)


def _avif_claims(width: int, height: int) -> bytes:
    file = _avif()
    return _replaced(file, file.index(b"ispe") + 8, struct.pack(">II", width, height))


@cache
def _avif_sequence() -> bytes:
    frames = [Image.new("RGB", (32, 24), (n, 0, 0)) for n in range(2)]
    return encode(frames[0], "AVIF", save_all=True, append_images=frames[1:], duration=100, speed=10)


def _avif_of_frames(count: int) -> bytes:
    file = _avif_sequence()
    at = file.index(b"stsz") + 8
    return _replaced(file, at, struct.pack(">II", 1, count)) + bytes(count)


AVIFS = [
    Bomb("AVIF, 65,535 × 65,535", Reason.TOO_MANY_PIXELS, lambda: _avif_claims(HUGE, HUGE)),
    Bomb("AVIF, 10,000 × 10,000 claimed", Reason.TOO_MANY_PIXELS, lambda: _avif_claims(10_000, 10_000)),
    Bomb("AVIF, 2 million frames", Reason.BAD_IMAGE, lambda: _avif_of_frames(2_000_000)),
    Bomb("AVIF, 2 million boxes", Reason.BAD_IMAGE, lambda: _avif() + b"\0\0\0\x08free" * (BYTES // 8)),
]

# msgpack.


def _packed(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def _fields(**packed: bytes) -> bytes:
    """Return a document's map of values that are packed already."""
    fields = {"id": _packed("bomb")} | packed
    return bytes([0x80 | len(fields)]) + b"".join(_packed(name) + value for name, value in fields.items())


def _nested(depth: int) -> bytes:
    return b"\x81\xa6chunks\x91" * depth + b"\x80"


RECORDS = [
    Bomb("msgpack, a map of 2³²−1", Reason.NOT_MSGPACK, lambda: b"\xdf\xff\xff\xff\xff", is_picture=False),
    Bomb(
        "msgpack, an array of 2³²−1",
        Reason.NOT_MSGPACK,
        lambda: _fields(chunks=b"\xdd\xff\xff\xff\xff"),
        is_picture=False,
    ),
    Bomb("msgpack, a str of 2³²−1", Reason.NOT_MSGPACK, lambda: _fields(id=b"\xdb\xff\xff\xff\xff"), is_picture=False),
    Bomb(
        "msgpack, a bin of 2³²−1", Reason.NOT_MSGPACK, lambda: _fields(blob=b"\xc6\xff\xff\xff\xff"), is_picture=False
    ),
    Bomb(
        "msgpack, 5 million arrays of 2³²−1",
        Reason.TOO_DEEP,
        lambda: b"\xdd\xff\xff\xff\xff" * (BYTES // 5),
        is_picture=False,
    ),
    Bomb("arrays nested 16 million deep", Reason.TOO_DEEP, lambda: b"\x91" * BYTES, is_picture=False),
    Bomb(
        "tags nested 10,000 deep",
        Reason.TOO_DEEP,
        lambda: _fields(tags=b"\x81\xa1k" * 10_000 + b"\xc0"),
        is_picture=False,
    ),
    Bomb(
        "chunks nested 10,000 deep",
        Reason.TOO_DEEP,
        lambda: _fields(chunks=b"\x91" + _nested(10_000)),
        is_picture=False,
    ),
    Bomb(
        "a million unknown fields",
        Reason.TOO_LARGE,
        lambda: b"\xdf\0\x0f\x42\x40" + b"\xa1k\xc0" * 1_000_000,
        is_picture=False,
    ),
    Bomb(
        "5 million unknown fields of two bytes",
        Reason.TOO_LARGE,
        lambda: b"\xdf\0\x4c\x4b\x40" + b"\xc0\xc0" * 5_000_000,
        is_picture=False,
    ),
    Bomb(
        "an array's map of a million fields",
        Reason.TOO_LARGE,
        lambda: _fields(blob=b"\xdf\0\x0f\x42\x40" + b"\xa1k\xc0" * 1_000_000),
        is_picture=False,
    ),
    Bomb(
        "a million empty chunks",
        Reason.BAD_CHUNKS,
        lambda: _fields(chunks=b"\xdd\0\x0f\x42\x40" + b"\x80" * 1_000_000),
        is_picture=False,
    ),
    Bomb(
        "10 million empty chunks",
        Reason.BAD_CHUNKS,
        lambda: _fields(chunks=b"\xdd\0\x98\x96\x80" + b"\x80" * 10_000_000),
        is_picture=False,
    ),
    Bomb(
        "a million chunks with an image each",
        Reason.BAD_CHUNKS,
        lambda: _fields(chunks=b"\xdd\0\x0f\x42\x40" + _packed({"blob": b"x"}) * 1_000_000),
        is_picture=False,
    ),
    Bomb(
        "10,000 chunks with an image each",
        Reason.TOO_MANY_IMAGES,
        lambda: _fields(chunks=b"\xdd\0\0\x27\x10" + _packed({"blob": b"x"}) * 10_000),
        is_picture=False,
    ),
    Bomb("an id of 10 MB", Reason.BAD_ID, lambda: _packed({"id": "i" * 10_000_000}), is_picture=False),
    Bomb(
        "a shape of 1,000,000 dimensions",
        Reason.BAD_BLOB,
        lambda: _fields(blob=_packed({"dtype": "uint8", "shape": [1] * 1_000_000, "data": b"x"})),
        is_picture=False,
    ),
    Bomb(
        "a shape of 2⁶⁴−1 each",
        Reason.BAD_BLOB,
        lambda: _fields(blob=_packed({"dtype": "uint8", "shape": [2**64 - 1] * 8, "data": b"x"})),
        is_picture=False,
    ),
    Bomb(
        "a dtype of 10 MB",
        Reason.BAD_BLOB,
        lambda: _fields(blob=_packed({"dtype": "u" * 10_000_000, "shape": [1], "data": b"x"})),
        is_picture=False,
    ),
    Bomb(
        "an ext of 16 MB as the blob",
        Reason.BAD_BLOB,
        lambda: _fields(blob=b"\xc9" + struct.pack(">IB", BYTES, 7) + bytes(BYTES)),
        is_picture=False,
    ),
    Bomb("an image of 16 MiB and a byte", Reason.TOO_LARGE, lambda: bytes(2**24 + 1)),
    Bomb(
        "a header traversal of 10 MB", Reason.BAD_TRAVERSAL, lambda: b"x", headers=(("traversal", b"r," * 5_000_000),)
    ),
    Bomb("a traversal path of 10 MB", Reason.BAD_TRAVERSAL, lambda: b"x", headers=(("traversal", b"c" * 10_000_000),)),
]

BOMBS: Mapping[str, Bomb] = {
    bomb.name: bomb for bomb in [*JPEGS, *PNGS, *GIFS, *WEBPS, *BMPS, *TIFFS, *AVIFS, *RECORDS]
}
