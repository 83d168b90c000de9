import pickle
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path

import msgpack
import msgpack_numpy  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dead_letter import Reason, Rejection
from schemas.ndarray import Array, pack_ndarray, read_ndarray
from schemas.wire import Reader

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
FLOATS = np.array([[[0.1, -2.5, 3e8]]], np.float32)


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def _read(value: bytes, max_bytes: int | None = None) -> Array:
    return read_ndarray(Reader(value), max_bytes)


def _refusal(value: bytes, max_bytes: int | None = None) -> tuple[Reason, str]:
    with pytest.raises(Rejection) as raised:
        _read(value, max_bytes)
    return raised.value.reason, raised.value.detail


def _form(**changed: object) -> bytes:
    """Pack the ndarray form of PIXELS with some of its fields changed."""
    return _pack({"dtype": "uint8", "shape": [2, 3, 3], "data": PIXELS.tobytes(), **changed})


def _form_without(name: str) -> bytes:
    form = {"dtype": "uint8", "shape": [2, 3, 3], "data": PIXELS.tobytes()}
    return _pack({other: value for other, value in form.items() if other != name})


def _as_msgpack_numpy_writes(array: npt.NDArray[np.generic], *, use_bin_type: bool = True) -> bytes:
    """Pack with the package itself; older msgpack had no type for bytes, so all were str."""
    return bytes(msgpack.packb(array, default=msgpack_numpy.encode, use_bin_type=use_bin_type))


# The form.


def test_an_array_of_bytes_is_read() -> None:
    array = _read(_form())

    assert (array.dtype, array.tolist()) == (np.dtype(np.uint8), PIXELS.tolist())


def test_an_array_of_floats_is_little_endian() -> None:
    array = _read(_form(dtype="float32", shape=[1, 1, 3], data=struct.pack("<3f", *FLOATS.ravel())))

    assert (array.dtype, array.tolist()) == (np.dtype(np.float32), FLOATS.tolist())


def test_the_last_dimension_varies_first() -> None:
    array = _read(_form(shape=[2, 2], data=b"\1\2\3\4"))

    assert array.tolist() == [[1, 2], [3, 4]]


def test_an_array_is_a_view_that_can_not_be_written() -> None:
    value = _form()

    array = _read(value)

    assert np.shares_memory(array, np.frombuffer(value, np.uint8))
    assert not array.flags.writeable


def test_fields_may_come_in_any_order() -> None:
    value = _pack({"data": PIXELS.tobytes(), "shape": [2, 3, 3], "dtype": "uint8"})

    assert _read(value).tolist() == PIXELS.tolist()


def test_other_fields_are_ignored() -> None:
    assert _read(_form(order="C", strides=[9, 3, 1], nested={"dtype": 7})).tolist() == PIXELS.tolist()


def test_dimensions_may_be_written_with_more_bytes_than_they_need() -> None:
    shape = b"\xdc\x00\x03" + b"\xcc\x02" + b"\xcd\x00\x03" + b"\xd3\x00\x00\x00\x00\x00\x00\x00\x03"
    value = b"\x83" + _pack("dtype") + _pack("uint8") + _pack("shape") + shape + _pack("data") + _pack(bytes(18))

    assert _read(value).shape == (2, 3, 3)


# Other languages' plain maps.

# The same number as each of msgpack's integers that can hold it.
INTEGERS = st.sampled_from(
    [
        lambda number: struct.pack(">B", number),
        lambda number: struct.pack(">BB", 0xCC, number),
        lambda number: struct.pack(">BH", 0xCD, number),
        lambda number: struct.pack(">BI", 0xCE, number),
        lambda number: struct.pack(">BQ", 0xCF, number),
        lambda number: struct.pack(">Bb", 0xD0, number),
        lambda number: struct.pack(">Bh", 0xD1, number),
        lambda number: struct.pack(">Bi", 0xD2, number),
        lambda number: struct.pack(">Bq", 0xD3, number),
    ]
)
ARRAYS = st.sampled_from([b"\x93", b"\xdc\0\3", b"\xdd\0\0\0\3"])
BINS = st.sampled_from([b"\xc4\x12", b"\xc5\0\x12", b"\xc6\0\0\0\x12", b"\xd9\x12", b"\xda\0\x12", b"\xdb\0\0\0\x12"])
EXTRA = [b"", _pack("strides") + _pack([9, 3, 1]), _pack(7) + _pack(None), _pack([1]) + _pack({"shape": [1]})]


@given(
    integers=st.tuples(INTEGERS, INTEGERS, INTEGERS),
    array=ARRAYS,
    bin_=BINS,
    order=st.permutations(range(3)),
    extra=st.sampled_from(EXTRA),
)
def test_an_array_is_read_however_msgpack_is_written(
    integers: tuple[Callable[[int], bytes], ...], array: bytes, bin_: bytes, order: list[int], extra: bytes
) -> None:
    shape = b"".join(write(side) for write, side in zip(integers, PIXELS.shape, strict=True))
    fields = [
        _pack("dtype") + _pack("uint8"),
        _pack("shape") + array + shape,
        _pack("data") + bin_ + PIXELS.tobytes(),
    ]
    size = 3 + bool(extra)

    value = bytes([0x80 | size]) + b"".join(fields[at] for at in order) + extra

    assert _read(value).tolist() == PIXELS.tolist()


SIDES = st.one_of(st.integers(-3, 20), st.integers(-(2**63), 2**64 - 1))


@given(shape=st.lists(SIDES, max_size=10), dtype=st.sampled_from(["uint8", "float32"]), data=st.binary(max_size=80))
def test_a_shape_fits_its_bytes_or_is_rejected(shape: list[int], dtype: str, data: bytes) -> None:
    value = _form(shape=shape, dtype=dtype, data=data)
    size = prod(shape) * np.dtype(dtype).itemsize

    if min(shape, default=1) >= 1 and len(shape) <= 8 and size == len(data):
        assert (_read(value).shape, _read(value).tobytes()) == (tuple(shape), data)
    else:
        assert _refusal(value)[0] is Reason.BAD_BLOB


def test_a_size_that_overflows_64_bits_is_not_taken_for_what_is_left_of_it() -> None:
    """2**32 × 2**32 is 0 in 64 bits, and so is its product with 18."""
    assert _refusal(_form(shape=[2**32, 2**32, 18]))[0] is Reason.BAD_BLOB


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float16", "int8", "uint16", "bool", "object", "O", ">f4", "=f4", "<f8", "f4", "UINT8", "", " uint8"],
)
def test_every_other_dtype_is_rejected(dtype: str) -> None:
    detail = f"dtype {dtype!r} is neither uint8 nor float32, little-endian"

    assert _refusal(_form(dtype=dtype)) == (Reason.BAD_BLOB, detail)


def test_a_dtype_is_told_by_its_first_40_bytes() -> None:
    reason, detail = _refusal(_form(dtype="x" * 1_000))

    assert (reason, detail) == (Reason.BAD_BLOB, f"dtype '{'x' * 40}' is neither uint8 nor float32, little-endian")


@pytest.mark.parametrize(
    ("shape", "detail"),
    [
        pytest.param([0, 3, 3], "shape [0, 3, 3] has a dimension under 1", id="0"),
        pytest.param([-2, -3, 3], "shape [-2, -3, 3] has a dimension under 1", id="negative"),
        pytest.param([2.0, 3, 3], "a dimension that is a float, not an int", id="float"),
        pytest.param(["2", 3, 3], "a dimension that is a str, not an int", id="str"),
        pytest.param([True, 3, 3], "a dimension that is a bool, not an int", id="bool"),
        pytest.param([None, 3, 3], "a dimension that is a nil, not an int", id="nil"),
        pytest.param([[2], 3, 3], "a dimension that is a array, not an int", id="array"),
        pytest.param([1] * 9, "a shape of 9 dimensions", id="9 dimensions"),
        pytest.param([2, 3, 4], "shape [2, 3, 4] of uint8 is 24 bytes, the data has 18", id="data too short"),
        pytest.param([2, 3], "shape [2, 3] of uint8 is 6 bytes, the data has 18", id="data too long"),
        pytest.param([], "shape [] of uint8 is 1 bytes, the data has 18", id="no dimension"),
        pytest.param(
            [2**63, 2**63, 3],
            f"shape [{2**63}, {2**63}, 3] of uint8 is {2**126 * 3} bytes, the data has 18",
            id="huge",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_rejected(shape: object, detail: str) -> None:
    assert _refusal(_form(shape=shape)) == (Reason.BAD_BLOB, detail)


def test_floats_are_counted_by_four_bytes() -> None:
    reason, detail = _refusal(_form(dtype="float32"))

    assert (reason, detail) == (Reason.BAD_BLOB, "shape [2, 3, 3] of float32 is 72 bytes, the data has 18")


def test_empty_data_is_rejected() -> None:
    reason, detail = _refusal(_form(data=b""))

    assert (reason, detail) == (Reason.BAD_BLOB, "shape [2, 3, 3] of uint8 is 18 bytes, the data has 0")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(_pack({}), id="nothing"),
        pytest.param(_form_without("dtype"), id="no dtype"),
        pytest.param(_form_without("shape"), id="no shape"),
        pytest.param(_form_without("data"), id="no data"),
        pytest.param(_form(dtype=None), id="dtype nil"),
        pytest.param(_form(dtype=7), id="dtype int"),
        pytest.param(_form(dtype=[["x", "<f4"]]), id="dtype of fields"),
        pytest.param(_form(shape=18), id="shape int"),
        pytest.param(_form(shape=b"\2\3\3"), id="shape bin"),
        pytest.param(_form(shape=None), id="shape nil"),
        pytest.param(_form(data=None), id="data nil"),
        pytest.param(_form(data=[0] * 18), id="data array"),
        pytest.param(_form(data={"data": b""}), id="data map"),
        pytest.param(_pack({"nd": False, "type": "<f4", "data": bytes(4)}), id="msgpack-numpy's scalar"),
        pytest.param(_pack({"complex": True, "data": "1+2j"}), id="msgpack-numpy's complex number"),
    ],
)
def test_an_array_that_lacks_a_field_or_has_it_of_another_type_is_rejected(value: bytes) -> None:
    assert _refusal(value) == (Reason.BAD_BLOB, "an array needs dtype, shape and data, each of its type")


def test_an_array_of_the_largest_size_is_read() -> None:
    assert _read(_form(), max_bytes=18).tolist() == PIXELS.tolist()


def test_an_array_over_the_largest_size_is_rejected() -> None:
    assert _refusal(_form(), max_bytes=17) == (Reason.TOO_LARGE, "an array of 18 bytes exceeds 17")


# What msgpack-numpy writes.


@pytest.mark.parametrize("use_bin_type", [True, False], ids=["keys as bin", "keys as str"])
@pytest.mark.parametrize("array", [PIXELS, FLOATS], ids=["uint8", "float32"])
def test_what_msgpack_numpy_writes_is_read(array: npt.NDArray[np.generic], use_bin_type: bool) -> None:  # noqa: FBT001
    read = _read(_as_msgpack_numpy_writes(array, use_bin_type=use_bin_type))

    assert (read.dtype, read.tolist()) == (array.dtype, array.tolist())


WIDE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
VIEWS = [
    pytest.param(WIDE[1:3, 2:5], id="a part"),
    pytest.param(WIDE[:, :, 1:2], id="one channel"),
    pytest.param(WIDE[::-1, ::-1], id="backwards"),
    pytest.param(WIDE[..., ::-1], id="BGR"),
    pytest.param(WIDE[::2, ::3], id="with steps"),
    pytest.param(WIDE.transpose(1, 0, 2), id="turned"),
    pytest.param(np.asfortranarray(WIDE), id="Fortran order"),
    pytest.param(np.broadcast_to(WIDE[:1], WIDE.shape), id="one row again and again"),
    pytest.param(np.asfortranarray(WIDE.astype(np.float32)), id="Fortran order, float32"),
    pytest.param(WIDE.astype(np.float32)[::-1, ::-2], id="backwards, float32"),
]


@pytest.mark.parametrize("array", VIEWS)
@pytest.mark.parametrize("write", [_as_msgpack_numpy_writes, pack_ndarray], ids=["msgpack-numpy", "schemas"])
def test_a_view_is_written_as_what_it_shows(
    write: Callable[[npt.NDArray[np.generic]], bytes], array: npt.NDArray[np.generic]
) -> None:
    read = _read(write(array))

    assert (read.dtype, read.tolist()) == (array.dtype, array.tolist())


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    order=st.permutations(range(3)),
    steps=st.tuples(*[st.sampled_from([-3, -2, -1, 1, 2, 3])] * 3),
    dtype=st.sampled_from(["|u1", "<f4", ">f4"]),
)
def test_what_msgpack_numpy_writes_is_read_right_or_not_at_all(
    shape: tuple[int, int, int], order: list[int], steps: tuple[int, int, int], dtype: str
) -> None:
    whole = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    view = whole.transpose(order)[:: steps[0], :: steps[1], :: steps[2]]
    value = _as_msgpack_numpy_writes(view)

    if dtype == ">f4":
        assert _refusal(value)[0] is Reason.BAD_BLOB
    else:
        assert _read(value).tolist() == view.tolist()


def test_a_number_alone_is_rejected() -> None:
    value = bytes(msgpack.packb(np.float32(1.5), default=msgpack_numpy.encode))

    assert _refusal(value) == (Reason.BAD_BLOB, "an array needs dtype, shape and data, each of its type")


def test_an_array_of_no_dimension_is_one_number_and_has_no_dimension() -> None:
    assert _read(_as_msgpack_numpy_writes(np.array(7, np.uint8))).shape == ()


@pytest.mark.parametrize("shape", [(0,), (0, 3, 3), (4, 0, 3), (4, 4, 0)], ids=str)
def test_an_array_of_nothing_is_rejected(shape: tuple[int, ...]) -> None:
    detail = f"shape {list(shape)} has a dimension under 1"

    assert _refusal(_as_msgpack_numpy_writes(np.zeros(shape, np.uint8))) == (Reason.BAD_BLOB, detail)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        pytest.param(FLOATS.astype(">f4"), ">f4", id="big-endian"),
        pytest.param(FLOATS.astype(np.float64), "<f8", id="float64"),
        pytest.param(PIXELS.astype(np.int8), "|i1", id="int8"),
        pytest.param(PIXELS.astype(np.bool_), "|b1", id="bool"),
    ],
)
def test_every_other_dtype_of_msgpack_numpy_is_rejected(array: npt.NDArray[np.generic], dtype: str) -> None:
    detail = f"dtype {dtype!r} is neither uint8 nor float32, little-endian"

    assert _refusal(_as_msgpack_numpy_writes(array)) == (Reason.BAD_BLOB, detail)


class _Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "claimed",
    [
        {b"type": "|O", b"kind": b"O"},
        {b"type": "|O", b"kind": b""},
        {b"type": "|u1", b"kind": b"O"},
        {b"type": b"O", b"kind": "O"},
        {b"type": [["f", "|O"]], b"kind": b"V"},
    ],
    ids=["as it writes", "without its kind", "as bytes", "bin and str swapped", "as a structure"],
)
def test_an_object_array_is_rejected_and_never_unpickled(claimed: dict[bytes, object], tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    data = pickle.dumps(np.array([_Trap(sprung)], object))
    value = _pack({b"nd": True, b"shape": [len(data)], b"data": data, **claimed})

    reason, _ = _refusal(value)

    assert (reason, sprung.exists()) == (Reason.BAD_BLOB, False)


def test_a_structured_array_is_rejected() -> None:
    value = _pack({b"nd": True, b"type": [["x", "<f4"]], b"kind": b"V", b"shape": [1], b"data": bytes(4)})

    assert _refusal(value) == (Reason.BAD_BLOB, "structured and object arrays are not read")


# Writing.


@pytest.mark.parametrize(
    ("array", "form"),
    [
        pytest.param(PIXELS, {"dtype": "uint8", "shape": [2, 3, 3], "data": bytes(range(18))}, id="uint8"),
        pytest.param(
            np.array([1, 2], np.float32),
            {"dtype": "float32", "shape": [2], "data": struct.pack("<2f", 1, 2)},
            id="float32",
        ),
        pytest.param(
            np.array([1, 2], ">f4"),
            {"dtype": "float32", "shape": [2], "data": struct.pack("<2f", 1, 2)},
            id="big-endian",
        ),
        pytest.param(
            np.array([[1, 2], [3, 4]], np.uint8, order="F"),
            {"dtype": "uint8", "shape": [2, 2], "data": b"\1\2\3\4"},
            id="Fortran order",
        ),
        pytest.param(
            np.arange(8, dtype=np.uint8)[::-2], {"dtype": "uint8", "shape": [4], "data": b"\7\5\3\1"}, id="with steps"
        ),
    ],
)
def test_a_packed_array_is_in_c_order_and_little_endian(
    array: npt.NDArray[np.generic], form: dict[str, object]
) -> None:
    assert msgpack.unpackb(pack_ndarray(array)) == form


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "uint16", "bool", "object"])
def test_an_array_of_another_dtype_is_not_packed(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"^dtype {dtype} is neither uint8 nor float32$"):
        pack_ndarray(np.zeros(1, dtype))


@pytest.mark.parametrize("array", [PIXELS, FLOATS, FLOATS[0, 0]], ids=["uint8", "float32", "a vector"])
def test_a_packed_array_is_read_back(array: npt.NDArray[np.generic]) -> None:
    read = _read(pack_ndarray(array))

    assert (read.dtype, read.tolist()) == (array.dtype, array.tolist())
