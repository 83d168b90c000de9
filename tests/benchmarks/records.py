"""The schemas: what packing and reading one record takes."""

from collections.abc import Callable, Iterator

import numpy as np

from schemas.document import DocumentLimits, pack_document, parse_traversal, read_document
from schemas.embedding import Origin, pack_embedding, read_embedding
from tests.benchmarks.report import Measurement, Result, Size
from tests.benchmarks.timing import interleave

PART = "parts"
BLOB_BYTES = 60_000
DIMENSIONS = 512
_ORIGIN = Origin("ViT-B/32:random:e5831423c781", "fast", normalized=False)


def records(size: Size, say: Callable[[str], None]) -> Iterator[Result]:
    """Yield microseconds a record, of a document of 60 KB and of its embedding."""
    say("schemas: pack and read")
    blob, tags = bytes(BLOB_BYTES), {"colour": "red"}
    value, paths = pack_document("a-document", blob, tags=tags), parse_traversal("r")
    plain = pack_document("a-document", blob)
    limits = DocumentLimits(max_image_bytes=2**24, max_images=64)
    document = read_document(value, paths, limits)
    embeddings = np.zeros((1, DIMENSIONS), np.float32)
    packed = pack_embedding(document, embeddings, _ORIGIN)
    calls = {
        "pack a document of 60 KB": lambda: pack_document("a-document", blob, tags=tags),
        "read a document of 60 KB": lambda: read_document(value, paths, limits),
        "read one that is an id and an image, by its header": lambda: read_document(plain, paths, limits),
        "pack its embedding": lambda: pack_embedding(document, embeddings, _ORIGIN),
        "read its embedding": lambda: read_embedding(packed),
    }
    for name, took_s in interleave(calls, size.rounds, round_s=0.05 * size.scale).items():
        yield Measurement(PART, name, "µs", [1e6 * one for one in took_s])
