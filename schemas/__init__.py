"""The records on the topics: document records in, embedding records and dead letters out.

Needs msgpack and numpy only, so a producer or a consumer can use it without torch or Kafka.
"""

from schemas.dead_letter import DeadLetter, Reason, Rejection
from schemas.document import Document, DocumentLimits, pack_document, parse_traversal, read_document
from schemas.embedding import EmbeddingRecord, Origin, pack_embedding, read_embedding
from schemas.ndarray import pack_ndarray

__all__ = [
    "DeadLetter",
    "Document",
    "DocumentLimits",
    "EmbeddingRecord",
    "Origin",
    "Reason",
    "Rejection",
    "pack_document",
    "pack_embedding",
    "pack_ndarray",
    "parse_traversal",
    "read_document",
    "read_embedding",
]
