"""What mutations begin with: small pictures in every form, and records of every shape around them."""

import io
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import msgpack
import numpy as np
from PIL import Image

from schemas.document import Document, pack_document
from schemas.embedding import Origin, pack_embedding
from tests.unit.pictures_for_tests import FORMS, encode, photograph, turned

SIDES = (16, 33, 64)

Mutation = Callable[[random.Random, bytearray], bytearray]


@cache
def pictures() -> Mapping[str, bytes]:
    """Return a small picture in each form that the tests know."""
    made = {}
    for number, (form, make) in enumerate(FORMS.items()):
        side = SIDES[number % len(SIDES)]
        made[form] = make(photograph("chelsea").resize((side, side * 3 // 4)))
    small = photograph("coffee").resize((24, 16))
    made["jpeg-turned"] = encode(small, "JPEG", exif=turned(6))
    made["jpeg-with-profile"] = encode(small, "JPEG", icc_profile=bytes(200))
    made["png-turned"] = encode(small, "PNG", exif=turned(3))
    made["png-animated"] = encode(small, "PNG", save_all=True, append_images=[small.rotate(90)])
    made["webp-turned"] = encode(small, "WEBP", exif=turned(8), lossless=True)
    made["avif-animated"] = encode(small, "AVIF", save_all=True, append_images=[small.rotate(90)], speed=10)
    for compression in ("tiff_deflate", "packbits", "jpeg", "group4"):
        plain = small.convert("1") if compression == "group4" else small
        made[f"tiff-{compression}"] = encode(plain, "TIFF", compression=compression)
    pages = io.BytesIO()
    small.save(pages, "TIFF", save_all=True, append_images=[Image.new("L", (8, 8))])
    made["tiff-pages"] = pages.getvalue()
    return made


def documents(picture: bytes) -> Sequence[bytes]:
    """Return records of every shape around a picture."""
    array = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    tags = {"colour": "red", "sizes": [1, 2.5, None], "when": msgpack.Timestamp(1)}
    packed_tags = bytes(msgpack.packb(tags))
    form = {b"nd": True, b"type": "|u1", b"kind": b"", b"shape": [4, 5, 3], b"data": array.tobytes()}
    chunks = [pack_document("b", picture), pack_document("c", array, chunks=[pack_document("d", picture)])]
    return [
        pack_document("a", picture),
        pack_document("a", array),
        pack_document("a", np.zeros((32, 32, 3), np.float32)),
        pack_document("a", picture, chunks=chunks),
        bytes(msgpack.packb({"id": "a", "blob": form, "unknown": {1: [2]}})),
        bytes(msgpack.packb({"id": "a", "blob": picture}))[:-1].replace(b"\x82", b"\x83", 1)
        + b"\0\xa4tags"
        + packed_tags,
    ]


def embedding() -> bytes:
    document = Document(
        "a", memoryview(b"x"), (Document("b", memoryview(b"x")), Document(None)), memoryview(b"\x81\xa1k\x01")
    )
    return pack_embedding(document, np.zeros((2, 4), np.float32), Origin("ViT-B/32:random:e5831423c781", "fast", False))


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Return the bytes with one to four mutations."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if changed:
            changed = chance.choice(_MUTATIONS)(chance, changed)
    return bytes(changed)


_INTERESTING = (b"\0", b"\x7f", b"\x80", b"\xff", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")


def _overwrite(chance: random.Random, data: bytearray) -> bytearray:
    at = chance.randrange(len(data))
    data[at] = chance.randrange(256)
    return data


def _flip(chance: random.Random, data: bytearray) -> bytearray:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def _write_what_is_odd(chance: random.Random, data: bytearray) -> bytearray:
    new = chance.choice(_INTERESTING)
    at = chance.randrange(len(data))
    data[at : at + len(new)] = new
    return data


def _write_in_the_header(chance: random.Random, data: bytearray) -> bytearray:
    data[chance.randrange(min(64, len(data)))] = chance.randrange(256)
    return data


def _truncate(chance: random.Random, data: bytearray) -> bytearray:
    return data[: chance.randrange(len(data))]


def _remove(chance: random.Random, data: bytearray) -> bytearray:
    at = chance.randrange(len(data))
    del data[at : at + chance.randrange(1, 17)]
    return data


def _repeat(chance: random.Random, data: bytearray) -> bytearray:
    at = chance.randrange(len(data))
    span = data[at : at + chance.randrange(1, 65)]
    return data[:at] + span * chance.randrange(1, 9) + data[at:]


def _insert(chance: random.Random, data: bytearray) -> bytearray:
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(chance.randrange(1, 17)) + data[at:]


_MUTATIONS: Sequence[Mutation] = (
    _overwrite,
    _flip,
    _write_what_is_odd,
    _write_in_the_header,
    _write_in_the_header,
    _truncate,
    _remove,
    _repeat,
    _insert,
)
