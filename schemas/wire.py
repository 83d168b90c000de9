"""Walk through msgpack bytes one value at a time, without unpacking what nobody asked for.

A document record is mostly one image and some tags that are carried over untouched, so the reader
hands out spans of the record's own bytes and unpacks only names and numbers.
"""

from collections.abc import Iterator

import msgpack

from schemas.dead_letter import Reason, Rejection

# https://github.com/msgpack/msgpack/blob/master/spec.md#formats: the type by the first byte.
_KINDS = (
    ("int",) * 0x80
    + ("map",) * 0x10
    + ("array",) * 0x10
    + ("str",) * 0x20
    + ("nil", "unused", "bool", "bool", "bin", "bin", "bin", "ext", "ext", "ext", "float", "float")
    + ("int",) * 8
    + ("ext",) * 5
    + ("str", "str", "str", "array", "array", "map", "map")
    + ("int",) * 0x20
)
_BIN8, _STR8 = 0xC4, 0xD9
_HEADER_BYTES = (2, 3, 5)  # of an 8, 16 and 32 bit length, the type byte included

# Of all maps of one record that are looked at; 10,000 documents with four fields each are 40,000.
MAX_FIELDS = 100_000

FILE_SIGNATURES = {b"\xff\xd8\xff": "a JPEG", b"\x89PNG": "a PNG", b"GIF8": "a GIF", b"RIFF": "a WebP"}


class Reader:
    """Read one msgpack value from start to end, in the order in which it was written.

    Errors: every method raises `Rejection` with `not-msgpack` where the bytes end early.
    """

    def __init__(self, data: bytes) -> None:
        """Check that `data` is exactly one well-formed msgpack value, then stand at its start.

        Raises: `Rejection` with `not-msgpack` (empty, truncated, followed by more bytes) or
        `too-deep` (nested deeper than the 1,024 levels that msgpack's C decoder keeps on its stack).
        """
        whole = self._unpacker(data)
        try:
            whole.skip()
        except msgpack.StackError as error:
            raise Rejection(Reason.TOO_DEEP, "msgpack nested deeper than 1024 levels") from error
        except (msgpack.OutOfData, msgpack.FormatError) as error:
            raise Rejection(Reason.NOT_MSGPACK, _say_what_it_is(data)) from error
        if whole.tell() != len(data):
            raise Rejection(Reason.NOT_MSGPACK, _say_what_it_is(data))
        del whole  # it has a copy of the record, and so has the next
        self._data = data
        self._values = self._unpacker(data)
        self._fields = 0

    @staticmethod
    def _unpacker(data: bytes) -> "msgpack.Unpacker":
        unpacker = msgpack.Unpacker(None, max_buffer_size=len(data) or 1, strict_map_key=False)
        unpacker.feed(data)
        return unpacker

    @property
    def kind(self) -> str:
        """Name the type of the next value: map, array, str, bin, nil, bool, int, float or ext."""
        return _KINDS[self._data[self._values.tell()]]

    def skip(self) -> memoryview:
        """Step over the next value and return its bytes as they stand in the record."""
        start = self._values.tell()
        self._values.skip()
        return memoryview(self._data)[start : self._values.tell()]

    def read_payload(self) -> memoryview:
        """Step over a str or a bin and return its content, without a copy."""
        span = self.skip()
        first = span[0]
        if first < _BIN8:  # a short str: its length is in the type byte
            return span[1:]
        return span[_HEADER_BYTES[first - (_STR8 if first >= _STR8 else _BIN8)] :]

    def read_int(self) -> int:
        """Unpack an int."""
        return int(self._values.unpack())

    def read_array_size(self) -> int:
        """Enter an array and return the number of its elements."""
        return int(self._values.read_array_header())

    def read_fields(self) -> Iterator[bytes]:
        """Enter a map and yield its keys that are a str or a bin, as bytes; step over the others.

        The caller reads or skips the value of each key that it is given.
        Raises: `Rejection` with `too-large` where the maps entered have more than 100,000 fields in all.
        """
        size = self._values.read_map_header()
        self._fields += size
        if self._fields > MAX_FIELDS:
            raise Rejection(Reason.TOO_LARGE, f"{self._fields} fields in the maps of one record exceed {MAX_FIELDS}")
        for _ in range(size):
            if self.kind in ("str", "bin"):
                yield bytes(self.read_payload())
            else:
                self.skip()
                self.skip()


def _say_what_it_is(data: bytes) -> str:
    if not data:
        return "the value is empty"
    for signature, name in FILE_SIGNATURES.items():
        if data.startswith(signature):
            return f"{len(data)} bytes that look like {name} file, not like a msgpack map around one"
    return f"{len(data)} bytes are not one msgpack value"
