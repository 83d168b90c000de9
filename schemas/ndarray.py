"""The ndarray form: `{"dtype": "uint8", "shape": [128, 64, 3], "data": <bin>}`, C order, little-endian.

What the msgpack-numpy package writes (`nd`, `type`, `kind`, `shape`, `data`) is read as well. Only
bytes and a shape travel: no pickles, no object arrays, no strides.
"""

from functools import lru_cache
from math import prod

import msgpack
import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason, Rejection
from schemas.wire import Reader

DType = np.dtype[np.uint8] | np.dtype[np.float32]

_DTYPES: dict[bytes, DType] = {
    b"uint8": np.dtype(np.uint8),
    b"float32": np.dtype(np.float32).newbyteorder("<"),
    b"|u1": np.dtype(np.uint8),
    b"<f4": np.dtype(np.float32).newbyteorder("<"),
}
_NAMES = {"|u1": "uint8", "<f4": "float32", ">f4": "float32"}
_MAX_DIMENSIONS = 8

Array = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


def pack_ndarray(array: npt.NDArray[np.generic]) -> bytes:
    """Pack a uint8 or float32 array of any shape; copies where it isn't contiguous or little-endian.

    Raises: `ValueError` for another dtype.
    """
    dtype = _NAMES.get(array.dtype.str)
    if dtype is None:
        raise ValueError(f"dtype {array.dtype} is neither uint8 nor float32")
    data = array.byteswap() if array.dtype.str.startswith(">") else array
    return _pack_form(dtype, array.shape, array.nbytes) + data.tobytes()


@lru_cache(maxsize=64)
def _pack_form(dtype: str, shape: tuple[int, ...], data_bytes: int) -> bytes:
    """Return all that stands before the data; a worker packs many arrays of few shapes."""
    form = bytes(msgpack.packb({"dtype": dtype, "shape": list(shape), "data": bytes(data_bytes)}))
    return form[: len(form) - data_bytes]


def read_ndarray(reader: Reader, max_bytes: int | None) -> Array:
    """Read the array that `reader` stands at, as a read-only view of the record's bytes.

    Raises: `Rejection` with `bad-blob` where dtype, shape or length are off, and with `too-large`
    where the data exceeds `max_bytes`.
    """
    dtype: DType | None = None
    shape: tuple[int, ...] | None = None
    data: memoryview | None = None
    for name in reader.read_fields():
        match name, reader.kind:
            case ((b"dtype" | b"type"), ("str" | "bin")):
                dtype = _read_dtype(reader)
            case b"shape", "array":
                shape = _read_shape(reader)
            case b"data", ("str" | "bin"):
                data = reader.read_payload()
            case b"kind", ("str" | "bin"):
                if reader.read_payload():
                    raise Rejection(Reason.BAD_BLOB, "structured and object arrays are not read")
            case _:
                reader.skip()
    if dtype is None or shape is None or data is None:
        raise Rejection(Reason.BAD_BLOB, "an array needs dtype, shape and data, each of its type")
    expected = prod(shape) * dtype.itemsize
    if len(data) != expected or not expected:
        raise Rejection(
            Reason.BAD_BLOB, f"shape {list(shape)} of {dtype.name} is {expected} bytes, the data has {len(data)}"
        )
    if max_bytes is not None and len(data) > max_bytes:
        raise Rejection(Reason.TOO_LARGE, f"an array of {len(data)} bytes exceeds {max_bytes}")
    array: Array = np.frombuffer(data, dtype).reshape(shape)  # type: ignore[assignment]  # a DType's
    return array


def _read_dtype(reader: Reader) -> DType:
    name = bytes(reader.read_payload())
    if name not in _DTYPES:
        said = name[:40].decode(errors="replace")
        raise Rejection(Reason.BAD_BLOB, f"dtype {said!r} is neither uint8 nor float32, little-endian")
    return _DTYPES[name]


def _read_shape(reader: Reader) -> tuple[int, ...]:
    size = reader.read_array_size()
    if size > _MAX_DIMENSIONS:
        raise Rejection(Reason.BAD_BLOB, f"a shape of {size} dimensions")
    shape = []
    for _ in range(size):
        if reader.kind != "int":
            raise Rejection(Reason.BAD_BLOB, f"a dimension that is a {reader.kind}, not an int")
        shape.append(reader.read_int())
    if min(shape, default=1) < 1:
        raise Rejection(Reason.BAD_BLOB, f"shape {shape} has a dimension under 1")
    return tuple(shape)
