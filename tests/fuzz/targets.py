"""What is fuzzed: each target takes any bytes, and raises where something other than an outcome comes of them."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from schemas.dead_letter import MAX_DETAIL_BYTES, DeadLetter, Rejection, read_dead_letter, read_omitted_sha256
from schemas.document import DocumentLimits, pack_document, parse_traversal, read_document
from schemas.embedding import Origin, pack_embedding, read_embedding
from tests.fuzz.seeds import documents, embedding, mutated, pictures
from worker.images import Fast, Reference
from worker.prepare import Preparer
from worker.records import Deleted, ModelInput, Prepared, Record, Rejected, Skipped

CORPUS = Path(__file__).parent / "corpus"
SIZE = 32  # of the model's input: small, so that more time goes into what is read
MAX_PIXELS = 1_000_000

_LIMITS = DocumentLimits(max_image_bytes=2**20, max_images=8)
_PATHS = parse_traversal("r,c,cc")
_MODEL_INPUT = ModelInput(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest")


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


_GEOMETRY = Compose([Resize(SIZE, InterpolationMode.BICUBIC), CenterCrop(SIZE), _to_rgb])


def preparer(kind: type[Fast] | type[Reference]) -> Preparer:
    return Preparer(kind(_MODEL_INPUT, _GEOMETRY, MAX_PIXELS), SIZE, _PATHS, _LIMITS)


_PREPARERS = {kind: preparer(kind) for kind in (Fast, Reference)}


def run(data: bytes) -> None:
    """Run the target that the first byte names on the rest."""
    if data:
        names = list(TARGETS)
        TARGETS[names[data[0] % len(names)]](data[1:])


def _document(data: bytes) -> None:
    try:
        document = read_document(data, _PATHS, _LIMITS)
    except Rejection as rejection:
        _check_detail(rejection.detail)
        return
    images = len(list(document.images()))
    packed = pack_embedding(document, np.zeros((images, 4), np.float32), Origin("m", "fast", normalized=False))
    assert read_embedding(packed).id == document.id


def _embedding(data: bytes) -> None:
    try:
        read_embedding(data)
    except Rejection as rejection:
        _check_detail(rejection.detail)


def _dead_letter(data: bytes) -> None:
    parts = data.split(b"\n")
    headers = tuple((f"dlq.{name}", part) for name, part in zip(_HEADERS, parts, strict=False))
    read_omitted_sha256(headers)
    letter = read_dead_letter(headers)
    if letter is not None:
        written = letter.headers(headers)
        assert len(dict(written)["dlq.detail"] or b"") <= MAX_DETAIL_BYTES
        again = read_dead_letter(written)
        assert again is not None
        assert (again.reason, again.offset, again.timestamp_ms) == (letter.reason, letter.offset, letter.timestamp_ms)


_HEADERS = ("reason", "detail", "topic", "partition", "offset", "timestamp", "group", "worker", "value-omitted")


def _traversal(data: bytes) -> None:
    try:
        depths = parse_traversal(data.decode(errors="replace"))
    except ValueError:
        return
    assert depths <= frozenset(range(65))


def _record(data: bytes) -> None:
    for kind in (Fast, Reference):
        _prepare(kind, data)


def _picture(data: bytes) -> None:
    _record(pack_document("a", data))


def _prepare(kind: type[Fast] | type[Reference], value: bytes) -> None:
    record = Record("documents", 0, 0, None, value, None, ())
    match _PREPARERS[kind].prepare(record):
        case Prepared(same, _, images):
            assert same is record
            assert {image.shape for image in images} == {(SIZE, SIZE, 3)}
        case Rejected(same, reason, detail):
            assert same is record
            _check_detail(detail)
            DeadLetter(reason, detail, "documents", 0, 0, None, "group", "worker").headers(())
        case Skipped(same) | Deleted(same):
            assert same is record


def _check_detail(detail: str) -> None:
    assert 0 < len(detail) <= MAX_DETAIL_BYTES, detail


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "document": _document,
    "embedding": _embedding,
    "dead-letter": _dead_letter,
    "traversal": _traversal,
    "record": _record,
    "picture": _picture,
}


def seeds() -> Mapping[str, bytes]:
    """Return inputs to begin with, by a name for each."""
    made = {f"picture-{form}": picture for form, picture in pictures().items()}
    records = documents(pictures()["jpeg-420"])
    made |= {f"record-{number}": record for number, record in enumerate(records)}
    made |= {f"document-{number}": record for number, record in enumerate(records)}
    made["embedding-0"] = embedding()
    made["dead-letter-0"] = b"bad-image\nbroken\ndocuments\n3\n17\n1700000000000\ngroup\nworker"
    made["traversal-0"] = b"r, c,cc"
    names = list(TARGETS)
    return {name: bytes([names.index(_target(name))]) + data for name, data in made.items()}


def _target(name: str) -> str:
    return next(target for target in TARGETS if name.startswith(f"{target}-"))


def write_corpus(folder: Path, chance: random.Random, mutants: int = 1) -> Sequence[Path]:
    """Write the seeds, and mutants of each, where they are small."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, data in seeds().items():
        files = {name: data} | {f"{name}-mutant-{n}": data[:1] + mutated(chance, data[1:]) for n in range(mutants)}
        for file, content in files.items():
            (folder / file).write_bytes(content)
            written.append(folder / file)
    return written
