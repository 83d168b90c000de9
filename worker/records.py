"""The values that flow: Record -> Prepared -> one outcome -> Outbound.

All are immutable; each belongs to whoever holds it.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from schemas.dead_letter import Headers, Reason
from schemas.document import Document


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the input topic, as it came. `timestamp_ms` is None where the record has none.

    `headers` are empty where they can't be read: a name among them isn't UTF-8.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None
    headers: Headers
    headers_readable: bool = True

    @property
    def size_bytes(self) -> int:
        """Return how many bytes key and value hold."""
        return len(self.key or b"") + len(self.value or b"")

    def __str__(self) -> str:
        """Name the record by its place."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


ImageFile = bytes | memoryview
"""An encoded image: its bytes, or a view of the record that has them."""

Pixels = npt.NDArray[np.uint8]
"""uint8 [R, R, 3], RGB: an image that the encoder still has to normalise."""

Preprocessed = npt.NDArray[np.float32]
"""float32 [R, R, 3]: an image that came preprocessed and is taken as it is."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record whose images are ready for the encoder, in the document's order."""

    record: Record
    document: Document
    images: tuple[Pixels | Preprocessed, ...]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The outcome of a document with images. `embeddings` is float32 [N, D], in the document's order."""

    record: Record
    document: Document
    embeddings: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The outcome of a record that is at fault: a dead letter."""

    record: Record
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """The outcome of a null value: a null value on the output topic."""

    record: Record


@dataclass(frozen=True, slots=True)
class Skipped:
    """The outcome of a document without an image at the traversal paths: nothing."""

    record: Record


Outcome = Embedded | Rejected | Deleted | Skipped


@dataclass(frozen=True, slots=True)
class Written:
    """What is left of an outcome that is durable: no bytes, so that a long transaction holds no pictures.

    `images` is how many embeddings it had, `reason` why it is a dead letter.
    """

    outcome: type[Outcome]
    images: int = 0
    reason: Reason | None = None


class SplitCause(StrEnum):
    """Why a batch was halved: the device had no memory for it, or the model failed at something in it."""

    OUT_OF_MEMORY = "out-of-memory"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Outbound:
    """A record to write. `timestamp_ms` None is the moment of writing."""

    topic: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What a model's own configuration says of its input.

    `size` is R, pixels of each side; `mean` and `std` are per channel, of values from 0 to 1.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str


@dataclass(frozen=True, slots=True)
class TimestampWindow:
    """How far from the broker's clock a record's timestamp may be: Kafka's own defaults, or the topic's settings."""

    before_ms: int = 2**63 - 1
    after_ms: int = 3_600_000

    def admits(self, timestamp_ms: int, now_ms: int, margin_ms: int) -> bool:
        """Return whether the timestamp is inside by a margin that covers clocks that differ."""
        return now_ms - self.before_ms + margin_ms <= timestamp_ms <= now_ms + self.after_ms - margin_ms


@dataclass(frozen=True, slots=True)
class TopicLimits:
    """What the broker takes on a topic: Kafka's own defaults, or the topic's settings."""

    max_message_bytes: int = 1_048_588
    window: TimestampWindow = TimestampWindow()
