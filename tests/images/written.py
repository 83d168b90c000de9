"""PNG, BMP and TIFF files of kinds that Pillow doesn't write, with every stored value known."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import tifffile

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # PNG's colour types, https://www.w3.org/TR/png-3/#6Colour-values

Samples = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

# https://www.w3.org/TR/png-3/#8InterlaceMethods: first row, first column, step of rows, step of columns.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(
    samples: Samples,
    depth: int,
    colour: int,
    *,
    interlaced: bool = False,
    palette: bytes = b"",
    transparent: bytes = b"",
) -> bytes:
    """Write samples [H, W] or [H, W, channels], each below 2**depth, as a PNG; `transparent` is its tRNS chunk."""
    height, width = samples.shape[:2]
    passes = [samples[top::down, left::across] for top, left, down, across in _ADAM7] if interlaced else [samples]
    rows = b"".join(b"\0" + row for part in passes if part.size for row in _packed_rows(part, depth))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows, 1))]
    written = b"".join(_chunk(kind, data) for kind, data in chunks if data)
    return b"\x89PNG\r\n\x1a\n" + written + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _packed_rows(samples: Samples, depth: int) -> Iterator[bytes]:
    """Yield each row's bytes: samples of less than 8 bits side by side, from the highest bit on."""
    rows = samples.reshape(samples.shape[0], -1)
    if depth == 16:
        yield from (row.astype(">u2").tobytes() for row in rows)
    elif depth == 8:
        yield from (row.astype(np.uint8).tobytes() for row in rows)
    else:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        yield from (np.packbits(row).tobytes() for row in bits.reshape(rows.shape[0], -1))


def bmp(rows: Samples, depth: int, *, palette: npt.NDArray[np.uint8] | None = None, top_down: bool = False) -> bytes:
    """Write indices [H, W] of 1, 4 or 8 bits, or BGR or BGRA bytes [H, W, 3 or 4], as a BMP with an INFO header."""
    packed = [row + bytes(-len(row) % 4) for row in _packed_rows(rows, min(depth, 8))]
    return _bmp(rows.shape, depth, 0, b"".join(packed if top_down else packed[::-1]), palette, top_down=top_down)


def bmp_of_16_bits(rgb: npt.NDArray[np.uint8]) -> bytes:
    """Write RGB bytes as a BMP of 5 bits a channel."""
    red, green, blue = (rgb[..., channel].astype(np.uint16) >> 3 for channel in range(3))
    values = (red << 10 | green << 5 | blue).astype("<u2")
    packed = [row.tobytes() + bytes(-2 * len(row) % 4) for row in values[::-1]]
    return _bmp(rgb.shape, 16, 0, b"".join(packed), None)


def bmp_run_length(indices: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> bytes:
    """Write indices as a BMP in RLE8, each pixel a run of its own."""
    ends = [b"\0\0"] * (len(indices) - 1) + [b"\0\1"]
    rows = [b"".join(bytes((1, index)) for index in row) for row in indices[::-1].tolist()]
    data = b"".join(row + end for row, end in zip(rows, ends, strict=True))
    return _bmp(indices.shape, 8, 1, data, palette)


def _bmp(
    shape: tuple[int, ...],
    depth: int,
    compression: int,
    data: bytes,
    palette: npt.NDArray[np.uint8] | None,
    *,
    top_down: bool = False,
) -> bytes:
    colours = b"" if palette is None else b"".join(bytes((b, g, r, 0)) for r, g, b in palette.tolist())
    height = -shape[0] if top_down else shape[0]
    info = struct.pack(
        "<IiiHHIIiiII", 40, shape[1], height, 1, depth, compression, len(data), 0, 0, len(colours) // 4, 0
    )
    begin = 14 + len(info) + len(colours)
    return struct.pack("<2sIHHI", b"BM", begin + len(data), 0, 0, begin) + info + colours + data


def tiff(samples: npt.NDArray[np.generic], **options: object) -> bytes:
    """Write samples of any dtype as a TIFF, with tifffile's options."""
    file = io.BytesIO()
    tifffile.imwrite(file, samples, metadata=None, **options)  # type: ignore[arg-type]
    return file.getvalue()
