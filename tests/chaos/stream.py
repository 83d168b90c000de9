"""The input of a chaos run: a stream of numbered records of every kind, each saying what has to become of it.

What a record has to become travels with it in its headers, so that an outcome can be judged by itself:
`expected` is `image 17`, `null`, `nothing`, or the reason of a dead letter.
"""

import io
import random
import threading
import time
from collections.abc import Callable, Mapping
from zlib import crc32

import msgpack
import numpy as np
from confluent_kafka import KafkaError, Message, Producer
from PIL import Image

from tests.broker.kafka import REQUEST_TIMEOUT_S, Brokers
from tests.unit.encoders import Encodes
from worker.fit import Geometry
from worker.images import Fast
from worker.records import ModelInput

KEYS = 500
POISON_EVERY = 20
IMAGES = 48
TOLERANCE = 1e-4  # the encoder's sums differ in their last digits with the size of the batch


def _picture(number: int) -> bytes:
    corners = np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(corners).resize((16, 16), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


_PICTURES = [_picture(number) for number in range(IMAGES)]
_POISON: Mapping[str, Callable[[str], bytes]] = {
    "not-msgpack": lambda _: b"\xc1",
    "not-a-map": lambda id_: bytes(msgpack.packb([id_])),
    "no-id": lambda _: bytes(msgpack.packb({"blob": _PICTURES[0]})),
    "bad-blob": lambda id_: bytes(msgpack.packb({"id": id_, "blob": 7})),
    "bad-image": lambda id_: bytes(msgpack.packb({"id": id_, "blob": _PICTURES[0][:40]})),
}


def record(number: int) -> tuple[bytes, bytes | None, str]:
    """Return the key, the value and the expectation of the record of that number."""
    key, id_ = f"key-{number % KEYS}".encode(), str(number)
    if number % POISON_EVERY == 13:
        reason = list(_POISON)[number // POISON_EVERY % len(_POISON)]
        return key, _POISON[reason](id_), reason
    if number % 50 == 7:
        return key, None, "null"
    if number % 100 == 9:
        return key, bytes(msgpack.packb({"id": id_})), "nothing"
    image = number % IMAGES
    return key, bytes(msgpack.packb({"id": id_, "blob": _PICTURES[image]})), f"image {image}"


class Stream:
    """Produces the records 0, 1, 2, … of a run, at a pace."""

    def __init__(self, brokers: Brokers, topic: str, seed: int) -> None:
        self.sent = 0
        self._topic = topic
        self._random = random.Random(seed)  # noqa: S311 - a schedule, no secret
        self._failure: KafkaError | None = None
        self._waiting = threading.Event()  # never set: a wait that ends by its time
        self._producer = Producer(
            {
                "bootstrap.servers": brokers.bootstrap_servers,
                "enable.idempotence": True,
                "linger.ms": 5,
                "log_level": 0,
                "partitioner": "murmur2_random",
            }
        )

    def send(self, count: int, over_s: float) -> None:
        """Produce the next `count` records, spread over that time."""
        begun_s = time.monotonic()
        for index in range(count):
            self._send_one()
            ahead_s = index / count * over_s - (time.monotonic() - begun_s)
            if ahead_s > 0.01:
                self._producer.poll(0)
                self._waiting.wait(ahead_s)

    def finish(self) -> None:
        """Wait until the brokers have all of it."""
        unanswered = self._producer.flush(2 * REQUEST_TIMEOUT_S)
        assert self._failure is None, f"the stream's producer: {self._failure}"
        assert unanswered == 0, f"{unanswered} records were not acknowledged"

    def _send_one(self) -> None:
        key, value, expected = record(self.sent)
        headers: list[tuple[str, str | bytes | None]] = [("number", str(self.sent)), ("expected", expected)]
        while True:
            try:
                self._producer.produce(
                    self._topic, key=key, value=value, headers=headers, on_delivery=self._keep_failure
                )
            except BufferError:
                self._producer.poll(1)
            else:
                self.sent += 1
                return

    def _keep_failure(self, error: KafkaError | None, _: Message) -> None:
        self._failure = self._failure or error


Embeddings = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
"""float32 [IMAGES, D]: what a model makes of each picture."""


def embeddings(encoder: Encodes, model_input: ModelInput, geometry: Geometry) -> Embeddings:
    """Return what this model makes of each picture."""
    fast = Fast(model_input, geometry, max_pixels=1_000_000)
    none = np.empty((0, model_input.size, model_input.size, 3), np.float32)
    return np.concatenate([encoder.encode(np.asarray(fast(picture))[None], none) for picture in _PICTURES])


def headers_of(message: Message) -> dict[str, bytes]:
    """Return the headers by name, null ones empty."""
    return {name: value or b"" for name, value in message.headers() or []}  # type: ignore[misc,str-unpack]


def expectation(message: Message) -> str:
    """Return what an input record has to become, in the words of `Judge`."""
    headers = headers_of(message)
    expected = headers["expected"].decode()
    value = f" of {crc32(message.value() or b''):08x}" if expected in _POISON else ""
    return f"{headers['number'].decode()}: {expected}{value}"


class Judge:
    """Says what an outcome is: `1234: image 17`, `1234: null`, `1234: bad-image of <the value's checksum>`."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings = embeddings

    def said(self, message: Message) -> str:
        """Return it; what fits nothing is described."""
        headers = headers_of(message)
        return f"{headers['number'].decode()}: {self._content(message, headers)}"

    def _content(self, message: Message, headers: Mapping[str, bytes]) -> str:
        value = message.value()
        if "dlq.reason" in headers:
            return f"{headers['dlq.reason'].decode()} of {crc32(value or b''):08x}"
        if value is None:
            return "null"
        embedding = msgpack.unpackb(value)
        if embedding["id"] != headers["number"].decode():
            return f"the embedding of {embedding['id']}"
        vector = np.frombuffer(embedding["embedding"]["data"], "<f4")
        [fitting] = np.nonzero(np.abs(self._embeddings - vector).max(axis=1) < TOLERANCE)
        return f"image {fitting[0]}" if len(fitting) == 1 else f"an embedding that fits {len(fitting)} pictures"
