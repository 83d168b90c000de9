"""Record -> Prepared, or at once its outcome: Rejected, Deleted or Skipped.

Pure; runs in the prepare threads. Never raises for what a record contains.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schemas.dead_letter import Reason, Rejection
from schemas.document import DocumentLimits, TraversalPaths, parse_traversal, read_document
from schemas.ndarray import Array
from worker.records import Deleted, ImageFile, Pixels, Prepared, Preprocessed, Record, Rejected, Skipped

TRAVERSAL_HEADER = "traversal"

Preprocess = Callable[[ImageFile | Pixels], Pixels]
"""An image file, or uint8 [H, W, 3] -> uint8 [R, R, 3]; raises `Rejection`."""

_DIMENSIONS = 3


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Preparer:
    """Unpack, check and preprocess one record. Has no state, so any number of threads may share it."""

    preprocess: Preprocess
    input_size: int
    default_paths: TraversalPaths
    limits: DocumentLimits

    def prepare(self, record: Record, beat: Callable[[], None] = _nothing) -> Prepared | Rejected | Deleted | Skipped:
        """Return the record with its images ready for the encoder, or its outcome; `beat` is called at each image."""
        try:
            if record.value is None:
                return self._delete(record)
            document = read_document(record.value, self._paths(record), self.limits)
            images: list[Pixels | Preprocessed] = []
            for image in document.images():
                beat()
                images.append(self._image(image))
        except Rejection as rejection:
            return Rejected(record, rejection.reason, rejection.detail)
        if not images:
            return Skipped(record)
        return Prepared(record, document, tuple(images))

    def _delete(self, record: Record) -> Deleted:
        if record.key is None:
            raise Rejection(Reason.NO_KEY, "a null value without a key deletes nothing")
        return Deleted(record)

    def _paths(self, record: Record) -> TraversalPaths:
        """Return the paths of the record's own header, of equal ones the last; else the worker's."""
        if not record.headers_readable:
            raise Rejection(Reason.BAD_TRAVERSAL, "the headers can't be read: a name among them is not UTF-8")
        named = [value for name, value in record.headers if name == TRAVERSAL_HEADER]
        if not named:
            return self.default_paths
        if named[-1] is None:
            raise Rejection(Reason.BAD_TRAVERSAL, "the header traversal is null")
        try:
            return parse_traversal(named[-1].decode())
        except UnicodeDecodeError as error:
            raise Rejection(Reason.BAD_TRAVERSAL, "the header traversal is not UTF-8") from error
        except ValueError as error:
            raise Rejection(Reason.BAD_TRAVERSAL, str(error)) from error

    def _image(self, image: memoryview | Array) -> Pixels | Preprocessed:
        if isinstance(image, memoryview):
            return self.preprocess(image)
        if image.ndim != _DIMENSIONS or image.shape[-1] != _DIMENSIONS:
            raise Rejection(Reason.BAD_BLOB, f"an array of shape {list(image.shape)} is not height × width × 3")
        if image.dtype == np.uint8:
            return self.preprocess(image.astype(np.uint8, copy=False))
        return self._check_preprocessed(image.astype(np.float32, copy=False))

    def _check_preprocessed(self, image: Preprocessed) -> Preprocessed:
        size = self.input_size
        if image.shape != (size, size, 3):
            raise Rejection(
                Reason.BAD_BLOB, f"a float32 array of shape {list(image.shape)}; preprocessed is [{size}, {size}, 3]"
            )
        if not np.isfinite(image).all():
            raise Rejection(Reason.BAD_BLOB, "the float32 array has values that are not finite")
        return image
