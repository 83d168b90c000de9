"""Why a record was rejected, and the headers that say so on its dead letter."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

MAX_DETAIL_BYTES = 1024
HEADER_PREFIX = "dlq."
_MAX_DETAIL_READ = 4 * MAX_DETAIL_BYTES  # characters; an error's text may be of any length

Headers = tuple[tuple[str, bytes | None], ...]

_WORD = re.compile(r"[a-zA-Z0-9._-]{1,249}")  # a topic's name, and every reason
_COUNT = re.compile(r"[0-9]{1,18}")  # fits the 64 bits of Kafka's fields
_TIMESTAMP = re.compile(r"(-?[0-9]{1,18})?")


class Reason(StrEnum):
    """Every reason for which a record becomes a dead letter."""

    NOT_MSGPACK = "not-msgpack"
    NOT_A_MAP = "not-a-map"
    NO_ID = "no-id"
    BAD_ID = "bad-id"
    BAD_BLOB = "bad-blob"
    BAD_CHUNKS = "bad-chunks"
    BAD_TRAVERSAL = "bad-traversal"
    BAD_IMAGE = "bad-image"
    TOO_LARGE = "too-large"
    TOO_MANY_PIXELS = "too-many-pixels"
    TOO_MANY_IMAGES = "too-many-images"
    TOO_DEEP = "too-deep"
    NO_KEY = "no-key"
    MODEL_ERROR = "model-error"
    NOT_FINITE = "not-finite"
    OUTPUT_TOO_LARGE = "output-too-large"
    BAD_TIMESTAMP = "bad-timestamp"


class Rejection(Exception):
    """A record is at fault; carries what its dead letter will say."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Keep the reason and one line for a person."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What the `dlq.*` headers of a dead letter say. Offsets count records, `timestamp_ms` Unix milliseconds.

    `reason` is a `Reason`, or one that only another version knows.
    """

    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None
    group: str
    worker: str

    def headers(self, carried: Headers) -> Headers:
        """Return the headers of the dead letter: `carried` less older `dlq.*` ones, then these."""
        own = {
            "reason": str(self.reason),
            "detail": _one_line(self.detail),
            "topic": self.topic,
            "partition": str(self.partition),
            "offset": str(self.offset),
            "timestamp": "" if self.timestamp_ms is None else str(self.timestamp_ms),
            "group": self.group,
            "worker": self.worker,
        }
        return without_dlq(carried) + tuple((HEADER_PREFIX + name, text.encode()) for name, text in own.items())


def read_dead_letter(headers: Headers) -> DeadLetter | None:
    """Return what the headers say, None where they are not those of a dead letter."""
    told = _told(headers)
    try:
        return DeadLetter(
            reason=_read(told, "reason", _WORD),
            detail=told.get("detail", b"").decode(errors="replace"),
            topic=_read(told, "topic", _WORD),
            partition=int(_read(told, "partition", _COUNT)),
            offset=int(_read(told, "offset", _COUNT)),
            timestamp_ms=int(stamp) if (stamp := _read(told, "timestamp", _TIMESTAMP)) else None,
            group=told.get("group", b"").decode(errors="replace"),
            worker=told.get("worker", b"").decode(errors="replace"),
        )
    except (KeyError, ValueError):
        return None


def read_omitted_sha256(headers: Headers) -> str | None:
    """Return the SHA-256 of the value that the dead letter was too large with, None where it has its value."""
    told = _told(headers)
    return told.get("value-sha256", b"").decode(errors="replace") if "value-omitted" in told else None


def _told(headers: Headers) -> Mapping[str, bytes]:
    return {
        name.removeprefix(HEADER_PREFIX): value
        for name, value in headers
        if name.startswith(HEADER_PREFIX) and value is not None
    }


def _read(told: Mapping[str, bytes], name: str, shape: re.Pattern[str]) -> str:
    text = told[name].decode()
    if not shape.fullmatch(text):
        raise ValueError(f"{HEADER_PREFIX}{name} is {text!r}")
    return text


def without_dlq(headers: Headers) -> Headers:
    """Return the headers in their order, less those that an earlier dead letter brought."""
    return tuple([header for header in headers if not header[0].startswith(HEADER_PREFIX)])


def _one_line(text: str) -> str:
    """Put `text` on one printable line of at most 1,024 bytes of UTF-8."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:_MAX_DETAIL_READ]).split())
    return line.encode(errors="replace")[:MAX_DETAIL_BYTES].decode(errors="ignore")
