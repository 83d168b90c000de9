import os

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.dead_letter import Reason, Rejection
from schemas.document import Document, DocumentLimits, pack_document, parse_traversal, read_document

IMAGE = b"\xff\xd8\xff an image file"
LIMITS = DocumentLimits(max_image_bytes=64, max_images=4)


def _read(value: bytes, paths: str = "r", limits: DocumentLimits = LIMITS) -> Document:
    return read_document(value, parse_traversal(paths), limits)


def _refusal(value: bytes, paths: str = "r", limits: DocumentLimits = LIMITS) -> tuple[Reason, str]:
    with pytest.raises(Rejection) as raised:
        _read(value, paths, limits)
    return raised.value.reason, raised.value.detail


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def _map(*fields: tuple[bytes, bytes]) -> bytes:
    """Return a map of packed keys and packed values, written as they are."""
    return bytes([0x80 | len(fields)]) + b"".join(key + value for key, value in fields)


# The record.


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        pytest.param(b"", "the value is empty", id="empty"),
        pytest.param(_pack({"id": "a"})[:-1], "5 bytes are not one msgpack value", id="truncated"),
        pytest.param(_pack({"id": "a"}) + b"\xc0", "7 bytes are not one msgpack value", id="trailing byte"),
        pytest.param(_pack({"id": "a"}) * 2, "12 bytes are not one msgpack value", id="two records"),
        pytest.param(b"\xc1", "1 bytes are not one msgpack value", id="a byte that is never used"),
        pytest.param(b"\x81\xa2id\xc1", "5 bytes are not one msgpack value", id="a value that is never used"),
        pytest.param(b"\xc6\xff\xff\xff\xff", "5 bytes are not one msgpack value", id="a bin that claims 4 GB"),
        pytest.param(b"\xdf\xff\xff\xff\xff", "5 bytes are not one msgpack value", id="a map that claims 4 billion"),
        pytest.param(b"\xdd\xff\xff\xff\xff", "5 bytes are not one msgpack value", id="an array that claims 4 billion"),
        pytest.param(b'{"id": "a"}', "11 bytes are not one msgpack value", id="json"),
        pytest.param(
            b"\xff\xd8\xff\xe0", "4 bytes that look like a JPEG file, not like a msgpack map around one", id="jpeg"
        ),
        pytest.param(b"\x89PNG\r\n", "6 bytes that look like a PNG file, not like a msgpack map around one", id="png"),
    ],
)
def test_what_is_not_exactly_one_msgpack_value_is_rejected(value: bytes, detail: str) -> None:
    assert _refusal(value) == (Reason.NOT_MSGPACK, detail)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        pytest.param(b"\xc0", "nil", id="nil"),
        pytest.param(b"\x07", "int", id="positive fixint"),
        pytest.param(b"\xff", "int", id="negative fixint"),
        pytest.param(b"\xcf" + bytes(8), "int", id="uint64"),
        pytest.param(b"\xca" + bytes(4), "float", id="float32"),
        pytest.param(b"\xc3", "bool", id="bool"),
        pytest.param(b"\xa1a", "str", id="fixstr"),
        pytest.param(b"\xd9\x01a", "str", id="str8"),
        pytest.param(b"\xc4\x01a", "bin", id="bin8"),
        pytest.param(b"\x90", "array", id="fixarray"),
        pytest.param(b"\xdc\x00\x00", "array", id="array16"),
        pytest.param(b"\xd4\x01a", "ext", id="fixext"),
        pytest.param(b"\xc7\x00\x01", "ext", id="ext8"),
    ],
)
def test_a_value_that_is_not_a_map_is_rejected(value: bytes, kind: str) -> None:
    assert _refusal(value) == (Reason.NOT_A_MAP, f"the record is a {kind}, not a map")


@pytest.mark.parametrize(
    "header", [b"\x81", b"\xde\x00\x01", b"\xdf\x00\x00\x00\x01"], ids=["fixmap", "map16", "map32"]
)
def test_a_map_may_have_any_header(header: bytes) -> None:
    assert _read(header + _pack("id") + _pack("a")) == Document("a")


@pytest.mark.parametrize(
    "deep", [b"\x91" * 1100 + b"\xc0", b"\x81\x01" * 1100 + b"\xc0"], ids=["nested arrays", "nested maps"]
)
def test_a_record_nested_deeper_than_can_be_walked_is_rejected_wherever_the_depth_is(deep: bytes) -> None:
    value = _map((_pack("id"), _pack("a")), (_pack("unknown"), deep))

    assert _refusal(value) == (Reason.TOO_DEEP, "msgpack nested deeper than 1024 levels")


def test_a_record_nested_1000_levels_deep_is_read() -> None:
    deep = b"\x91" * 1000 + b"\xc0"

    assert _read(_map((_pack("id"), _pack("a")), (_pack("tags"), deep))) == Document("a", tags=memoryview(deep))


# The id.


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({}, id="no field at all"),
        pytest.param({"id": None}, id="null"),
        pytest.param({"ID": "a"}, id="another case"),
        pytest.param({1: "a"}, id="another key"),
        pytest.param({"chunks": [{"id": "a"}]}, id="only a chunk's"),
        pytest.param({"tags": {"id": "a"}}, id="only in the tags"),
    ],
)
def test_a_document_without_an_id_is_rejected(value: object) -> None:
    assert _refusal(_pack(value), "r,c") == (Reason.NO_ID, "the document has no id")


@pytest.mark.parametrize(
    ("packed_id", "detail"),
    [
        pytest.param(_pack(7), "the id is a int, not a str", id="int"),
        pytest.param(_pack(1.5), "the id is a float, not a str", id="float"),
        pytest.param(_pack(b"a"), "the id is a bin, not a str", id="bin"),
        pytest.param(_pack(["a"]), "the id is a array, not a str", id="array"),
        pytest.param(_pack({"a": 1}), "the id is a map, not a str", id="map"),
        pytest.param(_pack(""), "an id of 0 bytes; 1 to 512 are allowed", id="empty"),
        pytest.param(_pack("a" * 513), "an id of 513 bytes; 1 to 512 are allowed", id="513 bytes"),
        pytest.param(_pack("é" * 257), "an id of 514 bytes; 1 to 512 are allowed", id="257 letters of two bytes"),
        pytest.param(b"\xa2\xff\xfe", "the id is not UTF-8", id="not UTF-8"),
        pytest.param(b"\xa3\xed\xa0\x80", "the id is not UTF-8", id="a surrogate"),
    ],
)
@pytest.mark.parametrize("place", ["root", "chunk"])
def test_an_id_that_is_not_1_to_512_bytes_of_text_is_rejected(packed_id: bytes, detail: str, place: str) -> None:
    broken = _map((_pack("id"), packed_id))
    value = broken if place == "root" else _map((_pack("id"), _pack("a")), (_pack("chunks"), b"\x91" + broken))

    assert _refusal(value, "r,c") == (Reason.BAD_ID, detail)


@pytest.mark.parametrize(
    "packed_id",
    [b"\xa1a", b"\xd9\x01a", b"\xda\x00\x01a", b"\xdb\x00\x00\x00\x01a"],
    ids=["fixstr", "str8", "str16", "str32"],
)
def test_an_id_may_have_any_header(packed_id: bytes) -> None:
    assert _read(_map((_pack("id"), packed_id))) == Document("a")


@pytest.mark.parametrize(
    "document_id", ["a", "a" * 512, "é" * 256, "\0", "😀"], ids=["1 byte", "512 bytes", "512 as UTF-8", "nul", "emoji"]
)
def test_an_id_of_1_to_512_bytes_is_kept_as_it_is(document_id: str) -> None:
    assert _read(_pack({"id": document_id})) == Document(document_id)


# The fields.


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(_pack({"id": "b"}), id="map"),
        pytest.param(_pack(["id"]), id="array"),
        pytest.param(_pack(0), id="int"),
        pytest.param(_pack(-(2**63)), id="int64"),
        pytest.param(_pack(None), id="nil"),
        pytest.param(_pack(1.5), id="float"),
        pytest.param(_pack(True), id="bool"),
        pytest.param(b"\xd6\xff" + bytes(4), id="timestamp"),
        pytest.param(b"\xa2\xff\xfe", id="invalid UTF-8"),
        pytest.param(b"\xa0", id="empty str"),
        pytest.param(_pack(b"\x00\x01"), id="bin"),
        pytest.param(_pack("x" * 70_000), id="long str"),
    ],
)
@pytest.mark.parametrize("value", [_pack("b"), _pack({"id": "b", "blob": 7})], ids=["str", "map"])
def test_keys_of_any_type_are_stepped_over_with_their_values(key: bytes, value: bytes) -> None:
    fields = (_pack("id"), _pack("a")), (key, value), (_pack("blob"), _pack(IMAGE))

    assert _read(_map(*fields)) == Document("a", memoryview(IMAGE))


def test_unknown_fields_are_ignored_at_every_depth() -> None:
    more = {"mime": "image/jpeg", "embedding": {"dtype": "broken"}, "dtype": 7}
    value = _pack({"id": "a", "blob": IMAGE, "chunks": [{"id": "b", **more}], **more})

    assert _read(value, "r,c") == Document("a", memoryview(IMAGE), (Document("b"),))


def test_null_fields_are_missing_ones() -> None:
    value = _pack({"id": "a", "blob": None, "chunks": [{"id": None, "blob": None, "chunks": None}]})

    assert _read(value, "r,c,cc") == Document("a", chunks=(Document(None),))


def test_of_equal_names_the_last_counts() -> None:
    fields = [(_pack(name), _pack(value)) for name, value in (("id", "a"), ("blob", b"1"), ("id", "b"), ("blob", b"2"))]

    assert _read(_map(*fields)) == Document("b", memoryview(b"2"))


def test_tags_are_carried_byte_for_byte() -> None:
    tags = _map(
        (b"\xa1n", b"\xcf\x00\x00\x00\x00\x00\x00\x00\x07"),  # 7 in nine bytes instead of one
        (b"\xdb\x00\x00\x00\x01s", b"\xda\x00\x01x"),  # text of one letter with long headers
        (b"\xa1s", b"\xa2\xff\xfe"),  # the same key again, and text that is not UTF-8
        (b"\x81\xc0\xc0", b"\xc7\x03\x2aext"),  # a map as the key of an extension
        (b"\xc0", b"\xd7\xff" + b"\xff" * 8),  # a timestamp that no decoder takes
        (b"\xa1a", b"\xdd\x00\x00\x00\x00"),  # an empty array in five bytes
    )

    document = _read(_map((_pack("tags"), tags), (_pack("id"), _pack("a")), (_pack("blob"), _pack(IMAGE))))

    assert document == Document("a", memoryview(IMAGE), tags=memoryview(tags))


def test_tags_of_chunks_are_carried_where_the_paths_lead() -> None:
    nested = {"id": "b", "tags": {"n": 2}, "chunks": [{"id": "c", "tags": {"n": 3}}]}
    value = _pack({"id": "a", "tags": {"n": 1}, "chunks": [nested]})

    chunk = Document("b", tags=memoryview(_pack({"n": 2})))
    assert _read(value, "c") == Document("a", chunks=(chunk,), tags=memoryview(_pack({"n": 1})))


# The blob.


@pytest.mark.parametrize(
    "header",
    [b"\xc4\x01", b"\xc5\x00\x01", b"\xc6\x00\x00\x00\x01"],
    ids=["bin8", "bin16", "bin32"],
)
def test_a_blob_may_have_any_header(header: bytes) -> None:
    assert _read(_map((_pack("id"), _pack("a")), (_pack("blob"), header + b"x"))) == Document("a", memoryview(b"x"))


@pytest.mark.parametrize(
    ("blob", "detail"),
    [
        pytest.param(_pack("text"), "the blob is a str, neither a bin nor an array's map", id="str"),
        pytest.param(_pack(7), "the blob is a int, neither a bin nor an array's map", id="int"),
        pytest.param(_pack(1.5), "the blob is a float, neither a bin nor an array's map", id="float"),
        pytest.param(_pack(False), "the blob is a bool, neither a bin nor an array's map", id="bool"),
        pytest.param(_pack([b"x"]), "the blob is a array, neither a bin nor an array's map", id="array"),
        pytest.param(b"\xd4\x01x", "the blob is a ext, neither a bin nor an array's map", id="ext"),
        pytest.param(_pack(b""), "the blob is empty", id="empty"),
        pytest.param(_pack({}), "an array needs dtype, shape and data, each of its type", id="empty map"),
    ],
)
@pytest.mark.parametrize("place", ["root", "chunk"])
def test_a_blob_that_is_neither_a_file_nor_an_array_is_rejected(blob: bytes, detail: str, place: str) -> None:
    broken = _map((_pack("id"), _pack("a")), (_pack("blob"), blob))
    value = broken if place == "root" else _map((_pack("id"), _pack("a")), (_pack("chunks"), b"\x91" + broken))

    assert _refusal(value, "r,c") == (Reason.BAD_BLOB, detail)


def test_an_image_file_of_the_largest_size_is_read() -> None:
    assert _read(_pack({"id": "a", "blob": bytes(64)})) == Document("a", memoryview(bytes(64)))


def test_an_image_file_over_the_largest_size_is_rejected() -> None:
    assert _refusal(_pack({"id": "a", "blob": bytes(65)})) == (Reason.TOO_LARGE, "an image of 65 bytes exceeds 64")


def test_an_array_over_the_largest_size_is_rejected() -> None:
    value = pack_document("a", np.zeros((5, 5, 3), np.uint8))

    assert _refusal(value) == (Reason.TOO_LARGE, "an array of 75 bytes exceeds 64")


def test_the_largest_size_is_of_one_image_and_not_of_all() -> None:
    value = _pack({"id": "a", "blob": bytes(64), "chunks": [{"blob": bytes(64)}], "tags": {"t": "x" * 100}})

    assert list(_read(value, "r,c").images()) == [bytes(64), bytes(64)]


def test_an_array_is_a_view_of_the_record() -> None:
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    value = pack_document("a", pixels)

    (image,) = _read(value).images()

    assert isinstance(image, np.ndarray)
    assert image.tolist() == pixels.tolist()
    assert np.shares_memory(image, np.frombuffer(value, np.uint8))


def test_an_image_file_is_a_view_of_the_record() -> None:
    value = pack_document("a", IMAGE)

    (image,) = _read(value).images()

    assert isinstance(image, memoryview)
    assert image.obj is value


# The chunks and the paths.

TREE = {
    "id": "a",
    "blob": b"root",
    "chunks": [
        {"id": "b", "blob": b"first", "chunks": [{"blob": b"first of first"}]},
        {"blob": b"second", "chunks": [{"id": "d"}, {"blob": b"second of second"}]},
        {},
    ],
}
ROOT, FIRST, SECOND = memoryview(b"root"), memoryview(b"first"), memoryview(b"second")
FIRST_OF_FIRST, SECOND_OF_SECOND = memoryview(b"first of first"), memoryview(b"second of second")


@pytest.mark.parametrize(
    ("paths", "document"),
    [
        pytest.param("r", Document("a", ROOT), id="r"),
        pytest.param("c", Document("a", None, (Document("b", FIRST), Document(None, SECOND), Document(None))), id="c"),
        pytest.param(
            "r,c", Document("a", ROOT, (Document("b", FIRST), Document(None, SECOND), Document(None))), id="r,c"
        ),
        pytest.param(
            "cc",
            Document(
                "a",
                None,
                (
                    Document("b", None, (Document(None, FIRST_OF_FIRST),)),
                    Document(None, None, (Document("d"), Document(None, SECOND_OF_SECOND))),
                    Document(None),
                ),
            ),
            id="cc",
        ),
        pytest.param(
            "cc,r",
            Document(
                "a",
                ROOT,
                (
                    Document("b", None, (Document(None, FIRST_OF_FIRST),)),
                    Document(None, None, (Document("d"), Document(None, SECOND_OF_SECOND))),
                    Document(None),
                ),
            ),
            id="cc,r",
        ),
        pytest.param("r, r", Document("a", ROOT), id="r, r"),
    ],
)
def test_only_what_the_paths_lead_to_is_read(paths: str, document: Document) -> None:
    assert _read(_pack(TREE), paths) == document


def test_images_come_with_a_documents_own_before_its_chunks() -> None:
    images = list(_read(_pack(TREE), "r,c,cc", DocumentLimits(64, 5)).images())

    assert images == [b"root", b"first", b"first of first", b"second", b"second of second"]


def test_the_order_of_the_fields_does_not_change_the_order_of_the_images() -> None:
    chunk = _map((_pack("chunks"), b"\x91" + _pack({"blob": b"3"})), (_pack("blob"), _pack(b"2")))
    value = _map((_pack("chunks"), b"\x91" + chunk), (_pack("blob"), _pack(b"1")), (_pack("id"), _pack("a")))

    assert list(_read(value, "r,c,cc").images()) == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        pytest.param({"id": "a", "blob": 7, "chunks": [{"blob": IMAGE}]}, "c", id="root's blob"),
        pytest.param({"id": "a", "blob": bytes(65), "chunks": [{"blob": IMAGE}]}, "c", id="root's large blob"),
        pytest.param({"id": "a", "blob": {"dtype": "x"}, "chunks": [{"blob": IMAGE}]}, "c", id="root's array"),
        pytest.param({"id": "a", "blob": IMAGE, "chunks": [{"blob": ""}]}, "r", id="chunk's blob"),
        pytest.param({"id": "a", "chunks": [{"blob": 1, "chunks": [{"blob": IMAGE}]}]}, "cc", id="blob in between"),
        pytest.param({"id": "a", "blob": IMAGE, "chunks": [{"chunks": [{"blob": 1}]}]}, "r,c", id="chunk's chunk's"),
    ],
)
def test_a_blob_off_the_paths_is_not_looked_at(value: object, paths: str) -> None:
    assert list(_read(_pack(value), paths).images()) == [IMAGE]


@pytest.mark.parametrize(
    "chunks",
    [7, "text", {"id": 7}, [7], [None], [{"id": 7}], [{"id": ""}], [{"blob": 1, "chunks": 2}]],
    ids=["int", "str", "map", "of ints", "of nils", "with a bad id", "with an empty id", "with bad chunks"],
)
def test_chunks_below_the_paths_are_not_looked_at(chunks: object) -> None:
    assert _read(_pack({"id": "a", "blob": IMAGE, "chunks": chunks}), "r") == Document("a", memoryview(IMAGE))


def test_too_many_chunks_off_the_paths_are_not_counted() -> None:
    value = _pack({"id": "a", "blob": IMAGE, "chunks": [{"blob": IMAGE}] * 20_000})

    assert _read(value, "r") == Document("a", memoryview(IMAGE))


@pytest.mark.parametrize(
    ("chunks", "detail"),
    [
        pytest.param({"id": "b"}, "the chunks are a map, not an array", id="map"),
        pytest.param("b", "the chunks are a str, not an array", id="str"),
        pytest.param(0, "the chunks are a int, not an array", id="int"),
        pytest.param(b"", "the chunks are a bin, not an array", id="bin"),
        pytest.param(False, "the chunks are a bool, not an array", id="bool"),
        pytest.param([{}, None], "a chunk is a nil, not a map", id="with nil"),
        pytest.param([[]], "a chunk is a array, not a map", id="with an array"),
        pytest.param([IMAGE], "a chunk is a bin, not a map", id="with a file"),
        pytest.param([{}] * 10_001, "10001 nested documents exceed 10000", id="10,001 of them"),
    ],
)
def test_chunks_on_the_paths_that_are_no_array_of_maps_are_rejected(chunks: object, detail: str) -> None:
    assert _refusal(_pack({"id": "a", "chunks": chunks}), "c") == (Reason.BAD_CHUNKS, detail)


def test_nested_documents_are_counted_at_all_depths_together() -> None:
    value = _pack({"id": "a", "chunks": [{"chunks": [{}] * 5_000}, {"chunks": [{}] * 5_000}]})

    assert _refusal(value, "cc") == (Reason.BAD_CHUNKS, "10002 nested documents exceed 10000")


@pytest.mark.parametrize("header", [b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"], ids=["array16", "array32"])
def test_chunks_may_have_any_header(header: bytes) -> None:
    value = _map((_pack("id"), _pack("a")), (_pack("chunks"), header + _pack({"id": "b"})))

    assert _read(value, "c") == Document("a", chunks=(Document("b"),))


def test_empty_chunks_are_not_none() -> None:
    assert _read(_pack({"id": "a", "chunks": []}), "c") == Document("a", chunks=())


def test_as_many_images_as_are_allowed_are_read() -> None:
    document = _read(_pack({"id": "a", "chunks": [{"blob": IMAGE}] * 4}), "r,c")

    assert document == Document("a", chunks=(Document(None, memoryview(IMAGE)),) * 4)


def test_more_images_than_are_allowed_are_rejected() -> None:
    value = _pack({"id": "a", "blob": IMAGE, "chunks": [{"blob": IMAGE}] * 4})

    assert _refusal(value, "r,c") == (Reason.TOO_MANY_IMAGES, "more than 4 images in one record")


def test_documents_without_an_image_count_as_no_image() -> None:
    document = _read(_pack({"id": "a", "chunks": [{}] * 100 + [{"blob": IMAGE}] * 4}), "r,c")

    assert len(list(document.images())) == 4


def test_images_off_the_paths_are_not_counted() -> None:
    value = _pack({"id": "a", "blob": IMAGE, "chunks": [{"blob": IMAGE}] * 4})

    assert len(list(_read(value, "c").images())) == 4


def test_64_levels_of_chunks_are_read() -> None:
    value: dict[str, object] = {"blob": IMAGE}
    for _ in range(64):
        value = {"chunks": [value]}

    document = _read(_pack({"id": "a", **value}), "c" * 64)

    assert list(document.images()) == [IMAGE]


# Traversal paths.


@pytest.mark.parametrize(
    ("text", "depths"),
    [
        ("r", {0}),
        ("c", {1}),
        ("r,c", {0, 1}),
        ("c,r", {0, 1}),
        ("cc", {2}),
        ("r,cc", {0, 2}),
        ("r, r", {0}),
        (" c , cc,c ", {1, 2}),
        ("c" * 64, {64}),
    ],
)
def test_traversal_paths_are_the_depths_that_they_lead_to(text: str, depths: set[int]) -> None:
    assert parse_traversal(text) == depths


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "r,", ",r", "r,,c", "x", "R", "C", "rr", "rc", "cr", "c c", "r;c", "c1", "@r", "ｃ", "c" * 65],
    ids=ascii,
)
def test_what_is_no_traversal_path_is_an_error_that_names_it(text: str) -> None:
    wrong = next(name for path in text.split(",") if (name := path.strip()) not in ("r", "c", "cc"))

    with pytest.raises(ValueError, match="is not a traversal path") as raised:
        parse_traversal(text)

    assert str(raised.value) == f"{wrong!r} is not a traversal path: r, c, cc, … (at most 64 deep)"


# Writing.


def test_a_packed_document_holds_what_was_given() -> None:
    chunk = pack_document("b", b"nested")
    value = pack_document("a", IMAGE, chunks=[chunk, chunk], tags={"n": 1})

    assert msgpack.unpackb(value) == {
        "id": "a",
        "blob": IMAGE,
        "chunks": [{"id": "b", "blob": b"nested"}] * 2,
        "tags": {"n": 1},
    }


def test_a_packed_document_has_no_field_that_was_not_given() -> None:
    assert msgpack.unpackb(pack_document("a")) == {"id": "a"}


def test_a_packed_array_is_the_ndarray_form() -> None:
    value = pack_document("a", np.array([[[1, 2, 3]]], np.uint8))

    assert msgpack.unpackb(value) == {"id": "a", "blob": {"dtype": "uint8", "shape": [1, 1, 3], "data": b"\1\2\3"}}


def test_a_packed_document_is_read_back() -> None:
    value = pack_document("a", IMAGE, chunks=[pack_document("b", b"nested", tags={})], tags={"n": 1})

    assert _read(value, "r,c") == Document(
        "a",
        memoryview(IMAGE),
        (Document("b", memoryview(b"nested"), tags=memoryview(_pack({}))),),
        memoryview(_pack({"n": 1})),
    )


@pytest.mark.parametrize("document_id", ["", "a" * 513, "é" * 257], ids=["empty", "513 bytes", "514 as UTF-8"])
def test_a_document_whose_id_would_be_rejected_is_not_packed(document_id: str) -> None:
    with pytest.raises(ValueError, match=f"an id of {len(document_id.encode())} bytes; 1 to 512 are allowed"):
        pack_document(document_id)


def test_a_document_whose_array_would_be_rejected_is_not_packed() -> None:
    with pytest.raises(ValueError, match="dtype float64 is neither uint8 nor float32"):
        pack_document("a", np.zeros((1, 1, 3)))


# Whatever bytes come.


def test_bytes_of_any_kind_are_read_or_rejected() -> None:
    chance = np.random.default_rng(0)
    pixels = np.zeros((2, 2, 3), np.uint8)
    nested = pack_document("b", pixels, chunks=[pack_document("c", IMAGE)], tags={"t": [1.5, None, "x"]})
    records = (pack_document("a", IMAGE, chunks=[nested] * 2, tags={"n": -1}), _pack(TREE), nested)
    outcomes = {Reason.NOT_MSGPACK: 0, None: 0}

    for _ in range(4_000):
        value = bytearray(records[chance.integers(len(records))])
        for place in chance.integers(len(value), size=chance.integers(1, 5)):
            value[place] = chance.integers(256)
        reason = None
        try:
            _read(bytes(value), "r,c,cc")
        except Rejection as rejection:
            reason = rejection.reason
        outcomes[reason] = outcomes.get(reason, 0) + 1

    assert min(outcomes[None], outcomes[Reason.NOT_MSGPACK]) > 100
    assert len(outcomes) > 5


def _as_read(value: bytes) -> Document | Reason:
    try:
        return _read(value)
    except Rejection as rejection:
        return rejection.reason


@settings(max_examples=1_000, deadline=None, derandomize="CI" in os.environ)
@given(
    document_id=st.text(max_size=300) | st.sampled_from(["a\xa4blob", "a" * 255, "é" * 256]),
    blob=st.binary(max_size=LIMITS.max_image_bytes + 1),
    wrong=st.none() | st.tuples(st.integers(min_value=1), st.integers(0, 255)),
    length=st.integers(-2, 2),
)
def test_the_short_way_of_most_records_leads_where_the_long_one_does(
    document_id: str, blob: bytes, wrong: tuple[int, int] | None, length: int
) -> None:
    fields = bytearray(_map((_pack("id"), _pack(document_id)), (_pack("blob"), _pack(blob)))[1:])
    if wrong is not None:
        at, byte = wrong
        fields[at % len(fields)] = byte
    fields = fields[: len(fields) + length] + bytes(max(0, length))

    assert _as_read(b"\x82" + fields) == _as_read(b"\xde\x00\x02" + fields)  # the same map, in a longer header


# What is made to hurt.


def test_maps_that_are_looked_at_have_at_most_100000_fields_in_all() -> None:
    def value(fields: int) -> bytes:
        return b"\xdf" + (fields + 1).to_bytes(4) + _pack("id") + _pack("a") + b"\xa1k\xc0" * fields

    assert _read(value(99_999)) == Document("a")
    detail = "100001 fields in the maps of one record exceed 100000"
    assert _refusal(value(100_000)) == (Reason.TOO_LARGE, detail)


def test_fields_of_chunks_and_of_arrays_count_as_well() -> None:
    many = b"\xde\xc3\x50" + b"\xa1k\xc0" * 50_000
    chunks = _map((_pack("id"), _pack("a")), (_pack("chunks"), b"\x92" + many + many))
    array = _map((_pack("id"), _pack("a")), (_pack("blob"), many), (_pack("chunks"), b"\x91" + many))

    for value in (chunks, array):
        assert _refusal(value, "r,c")[0] in (Reason.TOO_LARGE, Reason.BAD_BLOB)
    assert _refusal(chunks, "r,c") == (Reason.TOO_LARGE, "100002 fields in the maps of one record exceed 100000")


def test_fields_that_nobody_looks_at_do_not_count() -> None:
    tags = b"\xdf\x00\x0f\x42\x40" + b"\xa1k\xc0" * 1_000_000

    assert _read(_map((_pack("id"), _pack("a")), (_pack("tags"), tags))) == Document("a", tags=memoryview(tags))


def test_all_paths_there_are_can_be_named_and_a_text_that_is_longer_is_refused() -> None:
    every = ",".join(["r", *("c" * depth for depth in range(1, 65))])

    assert parse_traversal(every) == frozenset(range(65))
    with pytest.raises(ValueError, match="traversal paths of 4097 characters exceed 4096"):
        parse_traversal("r" + "," * 4096)
