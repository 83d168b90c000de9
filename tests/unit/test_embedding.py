import struct

import msgpack
import numpy as np
import pytest

from schemas.dead_letter import Reason, Rejection
from schemas.document import Document, DocumentLimits, parse_traversal, read_document
from schemas.embedding import EmbeddingRecord, Origin, pack_embedding, read_embedding
from schemas.ndarray import pack_ndarray
from worker.outbound import Outbox
from worker.records import Deleted, Embedded, Outbound, Record, Skipped

IMAGE = b"\xff\xd8\xff an image file"
ORIGIN = Origin(model="ViT-B/32:openai:3f2a9c01d2e4", preprocessing="fast", normalized=False)
OUTBOX = Outbox("embeddings", "dead-letters", ORIGIN, group="clip-worker", worker="host-1")
ABOUT = {"model": "ViT-B/32:openai:3f2a9c01d2e4", "preprocessing": "fast", "normalized": False}


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def _document(value: bytes, paths: str) -> Document:
    return read_document(value, parse_traversal(paths), DocumentLimits(max_image_bytes=1024, max_images=64))


def _embeddings(count: int, length: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Return 0, 1, 2, … in rows."""
    return np.arange(count * length, dtype=np.float32).reshape(count, length)


def _form(*values: float) -> dict[str, object]:
    return {"dtype": "float32", "shape": [len(values)], "data": struct.pack(f"<{len(values)}f", *values)}


def _written(document: object, paths: str) -> object:
    """Pack the embedding record of a document, and unpack it as a consumer in another language would."""
    read = _document(_pack(document), paths)
    value = pack_embedding(read, _embeddings(len(list(read.images()))), ORIGIN)
    return msgpack.unpackb(value)


def _plain(record: EmbeddingRecord) -> dict[str, object]:
    embedding = None if record.embedding is None else (str(record.embedding.dtype), record.embedding.tolist())
    chunks = [_plain(chunk) for chunk in record.chunks]
    return {"id": record.id, "embedding": embedding, "chunks": chunks, "tags": record.tags, "origin": record.origin}


def _refusal(value: bytes) -> tuple[Reason, str]:
    with pytest.raises(Rejection) as raised:
        read_embedding(value)
    return raised.value.reason, raised.value.detail


# The record.


def test_an_embedding_of_512_floats_is_2048_bytes_little_endian() -> None:
    vector = np.random.default_rng(0).standard_normal(512, np.float32)

    value = pack_embedding(Document("a", memoryview(IMAGE)), vector[None], ORIGIN)

    assert msgpack.unpackb(value) == {
        "id": "a",
        "embedding": {"dtype": "float32", "shape": [512], "data": struct.pack("<512f", *vector.tolist())},
        **ABOUT,
    }


def test_the_embedding_of_another_model_has_another_length() -> None:
    value = pack_embedding(Document("a", memoryview(IMAGE)), np.ones((1, 1024), np.float32), ORIGIN)

    embedding = msgpack.unpackb(value)["embedding"]

    assert (embedding["shape"], len(embedding["data"])) == ([1024], 4096)


def test_the_origin_is_said_on_the_root_only() -> None:
    origin = Origin("RN50:weights.pt:000000000000", "reference", normalized=True)
    document = Document("a", memoryview(IMAGE), (Document("b", memoryview(IMAGE)),))

    value = pack_embedding(document, _embeddings(2), origin)

    assert msgpack.unpackb(value) == {
        "id": "a",
        "embedding": _form(0, 1),
        "chunks": [{"id": "b", "embedding": _form(2, 3)}],
        "model": "RN50:weights.pt:000000000000",
        "preprocessing": "reference",
        "normalized": True,
    }


TREE = {
    "id": "a",
    "blob": IMAGE,
    "chunks": [
        {"id": "b", "blob": IMAGE, "tags": {"n": 1}, "chunks": [{"blob": IMAGE}]},
        {"tags": {}},
        {"id": "c", "blob": IMAGE, "chunks": []},
    ],
    "tags": {"k": "v"},
    "mime": "image/jpeg",
}


@pytest.mark.parametrize(
    ("paths", "record"),
    [
        pytest.param("r", {"id": "a", "embedding": _form(0, 1), "tags": {"k": "v"}}, id="r"),
        pytest.param(
            "c",
            {
                "id": "a",
                "chunks": [
                    {"id": "b", "embedding": _form(0, 1), "tags": {"n": 1}},
                    {"tags": {}},
                    {"id": "c", "embedding": _form(2, 3)},
                ],
                "tags": {"k": "v"},
            },
            id="c",
        ),
        pytest.param(
            "r,c",
            {
                "id": "a",
                "embedding": _form(0, 1),
                "chunks": [
                    {"id": "b", "embedding": _form(2, 3), "tags": {"n": 1}},
                    {"tags": {}},
                    {"id": "c", "embedding": _form(4, 5)},
                ],
                "tags": {"k": "v"},
            },
            id="r,c",
        ),
        pytest.param(
            "r,cc",
            {
                "id": "a",
                "embedding": _form(0, 1),
                "chunks": [
                    {"id": "b", "chunks": [{"embedding": _form(2, 3)}], "tags": {"n": 1}},
                    {"tags": {}},
                    {"id": "c", "chunks": []},
                ],
                "tags": {"k": "v"},
            },
            id="r,cc",
        ),
    ],
)
def test_the_record_has_the_shape_of_the_document_as_far_as_it_was_traversed(
    paths: str, record: dict[str, object]
) -> None:
    assert _written(TREE, paths) == {**record, **ABOUT}


def test_a_document_without_chunks_has_none_where_they_were_traversed() -> None:
    assert _written({"id": "a", "blob": IMAGE}, "r,c") == {"id": "a", "embedding": _form(0, 1), **ABOUT}


def test_tags_are_written_byte_for_byte() -> None:
    tags = (
        b"\x84\xa1n\xcf\x00\x00\x00\x00\x00\x00\x00\x07"  # 7 in nine bytes instead of one
        b"\xdb\x00\x00\x00\x01s\xa2\xff\xfe"  # text that is not UTF-8, under a key with a long header
        b"\x81\xc0\xc0\xc7\x03\x2aext"  # a map as the key of an extension
        b"\xc0\xd7\xff" + b"\xff" * 8  # a timestamp that no decoder takes
    )
    chunk = b"\x82\xa4blob" + _pack(IMAGE) + b"\xa4tags" + tags
    document = _document(b"\x83\xa2id\xa1a\xa4tags" + tags + b"\xa6chunks\x91" + chunk, "c")

    value = pack_embedding(document, _embeddings(1), ORIGIN)

    assert value == b"".join(
        [
            b"\x86\xa2id\xa1a",
            b"\xa6chunks\x91\x82\xa9embedding" + pack_ndarray(np.array([0, 1], np.float32)) + b"\xa4tags" + tags,
            b"\xa4tags" + tags,
            b"\xa5model" + _pack(ORIGIN.model) + b"\xadpreprocessing\xa4fast\xaanormalized\xc2",
        ]
    )


def test_a_record_of_many_chunks_has_their_number_in_its_header() -> None:
    document = Document("a", chunks=tuple(Document(str(n), memoryview(IMAGE)) for n in range(300)))

    record = msgpack.unpackb(pack_embedding(document, _embeddings(300), ORIGIN))

    assert [chunk["id"] for chunk in record["chunks"]] == [str(n) for n in range(300)]


# Reading.


def test_a_written_record_is_read_back() -> None:
    document = _document(_pack(TREE), "r,cc")

    record = read_embedding(pack_embedding(document, _embeddings(2), ORIGIN))

    nothing: dict[str, object] = {"id": None, "embedding": None, "chunks": [], "tags": None, "origin": None}
    assert _plain(record) == {
        "id": "a",
        "embedding": ("float32", [0, 1]),
        "chunks": [
            {**nothing, "id": "b", "chunks": [{**nothing, "embedding": ("float32", [2, 3])}], "tags": {"n": 1}},
            {**nothing, "tags": {}},
            {**nothing, "id": "c"},
        ],
        "tags": {"k": "v"},
        "origin": ORIGIN,
    }


def test_a_vector_is_a_view_of_the_record() -> None:
    value = pack_embedding(Document("a", memoryview(IMAGE)), _embeddings(1, 512), ORIGIN)

    embedding = read_embedding(value).embedding

    assert embedding is not None
    assert np.shares_memory(embedding, np.frombuffer(value, np.uint8))


def test_64_levels_of_chunks_are_read_back() -> None:
    document = Document("64", memoryview(IMAGE))
    for level in reversed(range(64)):
        document = Document(str(level), chunks=(document,))

    record = read_embedding(pack_embedding(document, _embeddings(1), ORIGIN))

    for _ in range(64):
        (record,) = record.chunks
    assert _plain(record)["embedding"] == ("float32", [0, 1])


@pytest.mark.parametrize(
    "field",
    [b"\xa3new\xd7\xff" + b"\xff" * 8, b"\xa3new\xa1\xff", b"\xa3new\x81\x80\x80", b"\x80\xc0", b"\xa1\xff\xc0"],
    ids=["broken timestamp", "not UTF-8", "a map as a key", "under a map", "under a key that is not UTF-8"],
)
def test_fields_that_a_later_version_may_write_are_stepped_over(field: bytes) -> None:
    record = read_embedding(b"\x82\xa2id\xa1a" + field)

    assert _plain(record) == {"id": "a", "embedding": None, "chunks": [], "tags": None, "origin": None}


NOT_UTF8 = b"\xa1\xff"
BROKEN_TIMESTAMP = b"\xd4\xff\x00"  # an ext of type -1 with one byte


@pytest.mark.parametrize(
    ("packed", "tags"),
    [
        pytest.param(_pack({b"a": 1}), {b"a": 1}, id="bin as a key"),
        pytest.param(b"\x81\x91\x01\x02", {"[1]": 2}, id="array as a key"),
        pytest.param(b"\x81\x81\x01\x02\x03", {"{1: 2}": 3}, id="map as a key"),
        pytest.param(b"\x81\xc0\x01", {None: 1}, id="nil as a key"),
        pytest.param(b"\x81" + NOT_UTF8 * 2, {"\ufffd": "\ufffd"}, id="not UTF-8"),
        pytest.param(b"\xc7\x01\x05\x07", msgpack.ExtType(5, b"\x07"), id="ext"),
        pytest.param(b"\xd6\xff\x00\x00\x00\x01", msgpack.Timestamp(1), id="timestamp"),
        pytest.param(b"\x91" + BROKEN_TIMESTAMP, b"\x91" + BROKEN_TIMESTAMP, id="broken timestamp: as packed"),
        pytest.param(
            b"\x81" + b"\x91" * 1_010 + b"\x01\x02", b"\x81" + b"\x91" * 1_010 + b"\x01\x02", id="deep key: as packed"
        ),
    ],
)
def test_whatever_tags_a_document_may_have_are_read(packed: bytes, tags: object) -> None:
    value = pack_embedding(Document("a", memoryview(IMAGE), tags=memoryview(packed)), _embeddings(1), ORIGIN)

    assert read_embedding(value).tags == tags


def test_deep_tags_are_read() -> None:
    value = pack_embedding(Document("a", tags=memoryview(b"\x91" * 1_000 + b"\x01")), _embeddings(0), ORIGIN)

    tags = read_embedding(value).tags

    for _ in range(1_000):
        assert isinstance(tags, list)
        (tags,) = tags
    assert tags == 1


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        pytest.param(b"", (Reason.NOT_MSGPACK, "the value is empty"), id="empty"),
        pytest.param(b"\x80\xc0", (Reason.NOT_MSGPACK, "2 bytes are not one msgpack value"), id="trailing byte"),
        pytest.param(b"\x90", (Reason.NOT_A_MAP, "the record is a array, not a map"), id="array"),
        pytest.param(
            _pack({"id": "a", "chunks": [{"id": "b"}, 7]}),
            (Reason.BAD_CHUNKS, "a chunk is a int, not a map"),
            id="a chunk that is no map",
        ),
        pytest.param(
            _pack({"id": "a", "embedding": {"dtype": "float64", "shape": [1], "data": bytes(8)}}),
            (Reason.BAD_BLOB, "dtype 'float64' is neither uint8 nor float32, little-endian"),
            id="another dtype",
        ),
        pytest.param(
            _pack({"id": "a", "embedding": {"dtype": "float32", "shape": [2], "data": bytes(4)}}),
            (Reason.BAD_BLOB, "shape [2] of float32 is 8 bytes, the data has 4"),
            id="another length",
        ),
        pytest.param(
            _pack({"id": "a", "embedding": {"dtype": "float32", "shape": [2, 1], "data": bytes(8)}}),
            (Reason.BAD_BLOB, "an embedding of float32 [2, 1], not float32 [D]"),
            id="another shape",
        ),
        pytest.param(
            _pack({"id": "a", "embedding": {"dtype": "uint8", "shape": [8], "data": bytes(8)}}),
            (Reason.BAD_BLOB, "an embedding of uint8 [8], not float32 [D]"),
            id="bytes",
        ),
        pytest.param(
            b"\x81\xa6chunks\x91" * 65 + b"\x80", (Reason.TOO_DEEP, "chunks nested deeper than 64"), id="65 levels"
        ),
        pytest.param(
            b"\x81\xa6chunks\x91" * 500 + b"\x80", (Reason.TOO_DEEP, "chunks nested deeper than 64"), id="500 levels"
        ),
    ],
)
def test_what_is_no_embedding_record_is_rejected(value: bytes, refusal: tuple[Reason, str]) -> None:
    assert _refusal(value) == refusal


# The record on its topic.


def _record(key: bytes | None = b"key", **changed: object) -> Record:
    values: dict[str, object] = {"value": b"value", "timestamp_ms": 1_700_000_000_000, "headers": (), **changed}
    return Record("documents", 3, 42, key, **values)  # type: ignore[arg-type]  # of the names of a record


SOURCE = (("source.topic", b"documents"), ("source.partition", b"3"), ("source.offset", b"42"))


@pytest.mark.parametrize(
    ("key", "written"),
    [(b"key", b"key"), (b"", b""), (b"\xff\x00", b"\xff\x00"), (None, "größe".encode())],
    ids=["as it was", "empty is not none", "not text", "none is the document's id"],
)
def test_an_embedding_has_the_key_of_its_document(key: bytes | None, written: bytes) -> None:
    document, record = Document("größe", memoryview(IMAGE)), _record(key)

    outbound = OUTBOX.outbound(Embedded(record, document, _embeddings(1)))

    value = pack_embedding(document, _embeddings(1), ORIGIN)
    assert outbound == Outbound("embeddings", written, value, 1_700_000_000_000, SOURCE)


HEADERS = (
    ("traversal", b"r"),
    ("dlq.reason", b"bad-image"),
    ("note", b"1"),
    ("note", None),
    ("empty", b""),
    ("note", b"1"),
    ("dlq.", b"x"),
    ("dlqx", b"\xff"),
    ("DLQ.reason", b"stays"),
)
KEPT = (
    ("traversal", b"r"),
    ("note", b"1"),
    ("note", None),
    ("empty", b""),
    ("note", b"1"),
    ("dlqx", b"\xff"),
    ("DLQ.reason", b"stays"),
)


def test_an_embedding_keeps_the_headers_less_those_of_a_dead_letter() -> None:
    record = _record(headers=HEADERS)

    outbound = OUTBOX.outbound(Embedded(record, Document("a", memoryview(IMAGE)), _embeddings(1)))

    assert outbound is not None
    assert outbound.headers == KEPT + SOURCE


def test_a_deleted_document_is_a_null_value_with_the_same_key() -> None:
    record = _record(b"", value=None, headers=HEADERS)

    assert OUTBOX.outbound(Deleted(record)) == Outbound("embeddings", b"", None, 1_700_000_000_000, KEPT + SOURCE)


def test_a_record_without_a_timestamp_gives_one_without() -> None:
    outbound = OUTBOX.outbound(Deleted(_record(value=None, timestamp_ms=None)))

    assert outbound == Outbound("embeddings", b"key", None, None, SOURCE)


def test_a_skipped_record_gives_none() -> None:
    assert OUTBOX.outbound(Skipped(_record())) is None


def test_an_embedding_record_has_at_most_10000_chunks() -> None:
    def value(chunks: int) -> bytes:
        return b"\x81\xa6chunks\xdd" + chunks.to_bytes(4) + b"\x80" * chunks

    assert len(read_embedding(value(10_000)).chunks) == 10_000
    with pytest.raises(Rejection) as raised:
        read_embedding(value(10_001))
    assert (raised.value.reason, raised.value.detail) == (Reason.BAD_CHUNKS, "10001 nested documents exceed 10000")
