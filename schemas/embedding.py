"""The embedding record: a document's id with its embedding, shaped like the document that it came from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import msgpack
import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason, Rejection
from schemas.document import MAX_DOCUMENTS, MAX_TRAVERSAL_DEPTH, Document
from schemas.ndarray import Array, pack_ndarray, read_ndarray
from schemas.wire import Reader

Embedding = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where embeddings come from: what makes two of them comparable.

    `model` is architecture, weights and fingerprint (`ViT-B/32:openai:3f2a9c01d2e4`).
    """

    model: str
    preprocessing: str
    normalized: bool


@dataclass(frozen=True, slots=True)
class EmbeddingRecord:
    """An embedding record as a consumer reads it. `embedding` is float32 [D]; `origin` is on the root only.

    `tags` are unpacked: text that is not UTF-8 has � in it, a key that is an array or a map is its text; what
    can't be unpacked at all, such as a timestamp of a wrong length, is its msgpack bytes.
    """

    id: str | None
    embedding: Embedding | None
    chunks: tuple["EmbeddingRecord", ...]
    tags: object
    origin: Origin | None


def pack_embedding(document: Document, embeddings: npt.NDArray[np.float32], origin: Origin) -> bytes:
    """Pack the embedding record of `document`; `embeddings` is float32 [N, D] in the order of its images."""
    return b"".join(_pack(document, iter(embeddings), origin))


def _pack(document: Document, embeddings: Iterator[Embedding], origin: Origin | None) -> Iterator[bytes]:
    fields: list[bytes] = []
    if document.id is not None:
        fields += [_KEYS["id"], _packb(document.id)]
    if document.image is not None:
        fields += [_KEYS["embedding"], pack_ndarray(next(embeddings))]
    if document.chunks is not None:
        packed = b"".join(part for chunk in document.chunks for part in _pack(chunk, embeddings, None))
        fields += [_KEYS["chunks"], _array_header(len(document.chunks)) + packed]
    if document.tags is not None:
        fields += [_KEYS["tags"], bytes(document.tags)]
    if origin is not None:
        fields += _pack_origin(origin)
    yield _map_header(len(fields) // 2)
    yield from fields


@cache
def _pack_origin(origin: Origin) -> Sequence[bytes]:
    """Return the fields that say it, packed once: they are the same for all records of a worker."""
    fields = (("model", origin.model), ("preprocessing", origin.preprocessing), ("normalized", origin.normalized))
    return [part for name, value in fields for part in (_KEYS[name], _packb(value))]


def read_embedding(value: bytes) -> EmbeddingRecord:
    """Read an embedding record; its vectors are read-only views of `value`.

    Raises: `Rejection` where `value` is not an embedding record.
    """
    reader = Reader(value)
    if reader.kind != "map":
        raise Rejection(Reason.NOT_A_MAP, f"the record is a {reader.kind}, not a map")
    return _EmbeddingReader(reader).read(depth=0)


@dataclass(slots=True)
class _EmbeddingReader:
    """One record's reader, with what has been counted so far."""

    reader: Reader
    chunks: int = 0

    def read(self, depth: int) -> EmbeddingRecord:
        """Read the map that the reader stands at."""
        embedding: Embedding | None = None
        chunks: tuple[EmbeddingRecord, ...] = ()
        plain: dict[bytes, object] = {}
        for name in self.reader.read_fields():
            match name, self.reader.kind:
                case b"embedding", "map":
                    embedding = _check_embedding(read_ndarray(self.reader, max_bytes=None))
                case b"chunks", "array":
                    chunks = self._read_chunks(depth + 1)
                case ((b"id" | b"tags" | b"model" | b"preprocessing" | b"normalized"), _):
                    plain[name] = _unpackb(self.reader.skip())
                case _:
                    self.reader.skip()
        document_id = plain.get(b"id")
        return EmbeddingRecord(
            id=None if document_id is None else str(document_id),
            embedding=embedding,
            chunks=chunks,
            tags=plain.get(b"tags"),
            origin=_read_origin(plain),
        )

    def _read_chunks(self, depth: int) -> tuple[EmbeddingRecord, ...]:
        size = self.reader.read_array_size()
        self.chunks += size
        if self.chunks > MAX_DOCUMENTS:
            raise Rejection(Reason.BAD_CHUNKS, f"{self.chunks} nested documents exceed {MAX_DOCUMENTS}")
        if depth > MAX_TRAVERSAL_DEPTH:
            raise Rejection(Reason.TOO_DEEP, f"chunks nested deeper than {MAX_TRAVERSAL_DEPTH}")
        return tuple(self._read_chunk(depth) for _ in range(size))

    def _read_chunk(self, depth: int) -> EmbeddingRecord:
        if self.reader.kind != "map":
            raise Rejection(Reason.BAD_CHUNKS, f"a chunk is a {self.reader.kind}, not a map")
        return self.read(depth)


def _check_embedding(array: Array) -> Embedding:
    if array.dtype != np.float32 or array.ndim != 1:
        raise Rejection(Reason.BAD_BLOB, f"an embedding of {array.dtype} {list(array.shape)}, not float32 [D]")
    return array.astype(np.float32, copy=False)


def _read_origin(plain: Mapping[bytes, object]) -> Origin | None:
    if b"model" not in plain:
        return None
    return Origin(str(plain[b"model"]), str(plain.get(b"preprocessing", "")), bool(plain.get(b"normalized", False)))


def _packb(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def _unpackb(data: memoryview) -> object:
    """Unpack what a stranger may have packed; what Python has no value for stays as it is packed."""
    try:
        unpacked: object = msgpack.unpackb(
            data, strict_map_key=False, unicode_errors="replace", object_pairs_hook=_as_dict
        )
    except (ValueError, RecursionError):  # a timestamp of a wrong length or date, a key as deep as Python's stack
        return bytes(data)
    return unpacked


def _as_dict(pairs: Iterable[tuple[object, object]]) -> dict[object, object]:
    """Make a dict; an array or a map as a key, which Python can't hash, is there by its text."""
    return {repr(key) if isinstance(key, list | dict) else key: value for key, value in pairs}


@cache
def _array_header(size: int) -> bytes:
    return bytes(msgpack.Packer().pack_array_header(size))


@cache
def _map_header(size: int) -> bytes:
    return bytes(msgpack.Packer().pack_map_header(size))


_KEYS = {name: _packb(name) for name in ("id", "embedding", "chunks", "tags", "model", "preprocessing", "normalized")}
