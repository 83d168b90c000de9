"""The document record: an id, perhaps an image, perhaps nested documents, perhaps tags."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Reason, Rejection
from schemas.ndarray import Array, pack_ndarray, read_ndarray
from schemas.wire import Reader

MAX_ID_BYTES = 512
MAX_TRAVERSAL_DEPTH = 64
MAX_TRAVERSAL_LENGTH = 4096  # characters; all 65 paths together are 2,209
MAX_DOCUMENTS = 10_000  # nested documents of one record, with or without an image

TraversalPaths = frozenset[int]

_PATH = re.compile(r"r|c+")
# What most records are, as `pack_document` writes them: a map of two, an id of up to 255 bytes and an image file.
# https://github.com/msgpack/msgpack/blob/master/spec.md#formats
_PLAIN = re.compile(rb"\x82\xa2id([\xa1-\xbf]|\xd9.)(.{1,255}?)\xa4blob(\xc4.|\xc5..|\xc6....)", re.DOTALL)
_SHORT = 0x1F  # the bits of a short str's type byte that are its length


@dataclass(frozen=True, slots=True)
class Document:
    """A document as far as its traversal paths look at it.

    `image` is an encoded image file or a uint8 or float32 array; None where there is none or no path
    leads there. `chunks` is None where there are none or no path leads below. `tags` are msgpack
    bytes as sent. Images and tags are views of the record's own bytes.
    """

    id: str | None
    image: memoryview | Array | None = None
    chunks: tuple["Document", ...] | None = None
    tags: memoryview | None = None

    def images(self) -> Iterator[memoryview | Array]:
        """Yield the images to embed: a document's own before its chunks'."""
        if self.image is not None:
            yield self.image
        for chunk in self.chunks or ():
            yield from chunk.images()


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    """What a record may bring."""

    max_image_bytes: int
    max_images: int


def parse_traversal(text: str) -> TraversalPaths:
    """Turn paths such as `r`, `c` or `r,cc` into the depths that they lead to: 0, 1 or {0, 2}.

    Raises: `ValueError` where a path is not `r` or a row of at most 64 `c`s, or the text has over 4,096 characters.
    """
    if len(text) > MAX_TRAVERSAL_LENGTH:
        raise ValueError(f"traversal paths of {len(text)} characters exceed {MAX_TRAVERSAL_LENGTH}")
    depths = set()
    for path in text.split(","):
        name = path.strip()
        if not _PATH.fullmatch(name) or len(name) > MAX_TRAVERSAL_DEPTH:
            raise ValueError(f"{name[:80]!r} is not a traversal path: r, c, cc, … (at most {MAX_TRAVERSAL_DEPTH} deep)")
        depths.add(0 if name == "r" else len(name))
    return frozenset(depths)


def pack_document(
    document_id: str,
    blob: bytes | npt.NDArray[np.generic] | None = None,
    *,
    chunks: Sequence[bytes] = (),
    tags: Mapping[str, object] | None = None,
) -> bytes:
    """Pack a document record. `chunks` are packed documents themselves.

    Raises: `ValueError` where the id has not 1 to 512 bytes or the array is neither uint8 nor float32.
    """
    if not 1 <= len(document_id.encode()) <= MAX_ID_BYTES:
        raise ValueError(f"an id of {len(document_id.encode())} bytes; 1 to {MAX_ID_BYTES} are allowed")
    packer = msgpack.Packer()
    fields = [packer.pack("id") + packer.pack(document_id)]
    if isinstance(blob, np.ndarray):
        fields.append(packer.pack("blob") + pack_ndarray(blob))
    elif blob is not None:
        fields.append(packer.pack("blob") + packer.pack(blob))
    if chunks:
        fields.append(packer.pack("chunks") + packer.pack_array_header(len(chunks)) + b"".join(chunks))
    if tags is not None:
        fields.append(packer.pack("tags") + packer.pack(tags))
    return bytes(packer.pack_map_header(len(fields)) + b"".join(fields))


def read_document(value: bytes, paths: TraversalPaths, limits: DocumentLimits) -> Document:
    """Read the record's document as far as `paths` look at it.

    Raises: `Rejection` with the reason where anything that is looked at isn't as the contract says.
    """
    if 0 in paths and (plain := _read_plain(value, limits)) is not None:
        return plain
    reader = Reader(value)
    if reader.kind != "map":
        raise Rejection(Reason.NOT_A_MAP, f"the record is a {reader.kind}, not a map")
    document = _DocumentReader(reader, paths, limits).read(depth=0)
    if document.id is None:
        raise Rejection(Reason.NO_ID, "the document has no id")
    return document


def _read_plain(value: bytes, limits: DocumentLimits) -> Document | None:
    """Read a record of an id and an image file, at a fifth of the price; None of any other, and of what is wrong."""
    found = _PLAIN.match(value)
    if found is None:
        return None
    id_header, encoded, blob_header = found.groups()
    blob_bytes = len(value) - found.end()
    is_whole = (
        len(encoded) == (id_header[0] & _SHORT if len(id_header) == 1 else id_header[1])
        and blob_bytes == int.from_bytes(blob_header[1:])
        and 0 < blob_bytes <= limits.max_image_bytes
    )
    if not is_whole:
        return None
    try:
        return Document(str(encoded, "utf-8"), memoryview(value)[found.end() :])
    except UnicodeDecodeError:
        return None


@dataclass(slots=True)
class _DocumentReader:
    """One record's reader, with what has been counted so far."""

    reader: Reader
    paths: TraversalPaths
    limits: DocumentLimits
    images: int = 0
    documents: int = 0

    def read(self, depth: int) -> Document:
        """Read the map that the reader stands at. A null field is a missing one; of equal names the last counts."""
        document_id: str | None = None
        image: memoryview | Array | None = None
        chunks: tuple[Document, ...] | None = None
        tags: memoryview | None = None
        for name in self.reader.read_fields():
            match name:
                case b"tags":
                    tags = self.reader.skip()
                case b"id" if self.reader.kind != "nil":
                    document_id = self._read_id()
                case b"blob" if self.reader.kind != "nil" and depth in self.paths:
                    image = self._read_image()
                case b"chunks" if self.reader.kind != "nil" and depth < max(self.paths):
                    chunks = self._read_chunks(depth + 1)
                case _:
                    self.reader.skip()
        self._count_image(image)
        return Document(document_id, image, chunks, tags)

    def _read_id(self) -> str:
        if self.reader.kind != "str":
            raise Rejection(Reason.BAD_ID, f"the id is a {self.reader.kind}, not a str")
        encoded = self.reader.read_payload()
        if not 1 <= len(encoded) <= MAX_ID_BYTES:
            raise Rejection(Reason.BAD_ID, f"an id of {len(encoded)} bytes; 1 to {MAX_ID_BYTES} are allowed")
        try:
            return str(encoded, "utf-8")
        except UnicodeDecodeError as error:
            raise Rejection(Reason.BAD_ID, "the id is not UTF-8") from error

    def _read_image(self) -> memoryview | Array:
        if self.reader.kind == "map":
            return read_ndarray(self.reader, self.limits.max_image_bytes)
        if self.reader.kind != "bin":
            raise Rejection(Reason.BAD_BLOB, f"the blob is a {self.reader.kind}, neither a bin nor an array's map")
        blob = self.reader.read_payload()
        if not blob:
            raise Rejection(Reason.BAD_BLOB, "the blob is empty")
        if len(blob) > self.limits.max_image_bytes:
            raise Rejection(Reason.TOO_LARGE, f"an image of {len(blob)} bytes exceeds {self.limits.max_image_bytes}")
        return blob

    def _read_chunks(self, depth: int) -> tuple[Document, ...]:
        if self.reader.kind != "array":
            raise Rejection(Reason.BAD_CHUNKS, f"the chunks are a {self.reader.kind}, not an array")
        size = self.reader.read_array_size()
        self.documents += size
        if self.documents > MAX_DOCUMENTS:
            raise Rejection(Reason.BAD_CHUNKS, f"{self.documents} nested documents exceed {MAX_DOCUMENTS}")
        chunks = []
        for _ in range(size):
            if self.reader.kind != "map":
                raise Rejection(Reason.BAD_CHUNKS, f"a chunk is a {self.reader.kind}, not a map")
            chunks.append(self.read(depth))
        return tuple(chunks)

    def _count_image(self, image: memoryview | Array | None) -> None:
        self.images += image is not None
        if self.images > self.limits.max_images:
            raise Rejection(Reason.TOO_MANY_IMAGES, f"more than {self.limits.max_images} images in one record")
