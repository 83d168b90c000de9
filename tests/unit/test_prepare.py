from collections import Counter

import msgpack
import numpy as np
import pytest

from schemas.dead_letter import Headers, Reason
from schemas.document import Document, DocumentLimits, pack_document, parse_traversal
from tests.unit.pictures_for_tests import (
    FORMS,
    MAX_PIXELS,
    PHOTOGRAPHS,
    SIZE,
    TURNABLE,
    encode,
    file_of,
    geometry,
    model_input,
    photograph,
    turned,
)
from worker.images import Fast, Reference
from worker.prepare import Preparer
from worker.records import Deleted, ImageFile, Pixels, Prepared, Preprocessed, Record, Rejected, Skipped

LIMITS = DocumentLimits(max_image_bytes=16 * 2**20, max_images=4)
# Pillow warns of what is odd about a picture; the worker leaves that unsaid, see worker.logs.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BOTH = pytest.mark.parametrize("kind", [Fast, Reference], ids=["fast", "reference"])
SMALL_JPEG = encode(photograph("rocket").resize((32, 24)), "JPEG")
PREPROCESSED = np.random.default_rng(0).standard_normal((SIZE, SIZE, 3), np.float32)


def _preparer(
    kind: type[Fast] | type[Reference] = Fast, *, paths: str = "r", limits: DocumentLimits = LIMITS
) -> Preparer:
    preprocess = kind(model_input(), geometry(), MAX_PIXELS)
    return Preparer(preprocess, SIZE, parse_traversal(paths), limits)


def _record(value: bytes | None, key: bytes | None = b"key", headers: Headers = ()) -> Record:
    return Record("documents", 0, 0, key, value, 1_700_000_000_000, headers)


def _plain_image(image: Pixels | Preprocessed) -> tuple[str, tuple[int, ...]]:
    return str(image.dtype), image.shape


def _prepared(outcome: Prepared | Rejected | Deleted | Skipped) -> Prepared:
    assert isinstance(outcome, Prepared)
    return outcome


def _why(outcome: Prepared | Rejected | Deleted | Skipped) -> tuple[Reason, str]:
    assert isinstance(outcome, Rejected)
    return outcome.reason, outcome.detail


def _image_count(preparer: Preparer, value: bytes, *headers: tuple[str, bytes | None]) -> int:
    return len(_prepared(preparer.prepare(_record(value, headers=headers))).images)


# Images.


@BOTH
@pytest.mark.parametrize("form", FORMS)
def test_an_image_file_of_every_form_is_prepared(form: str, kind: type[Fast] | type[Reference]) -> None:
    file = file_of(form, "coffee")
    record = _record(pack_document("a", file))

    prepared = _prepared(_preparer(kind).prepare(record))

    assert (prepared.record, prepared.document) == (record, Document("a", memoryview(file)))
    assert [_plain_image(image) for image in prepared.images] == [("uint8", (224, 224, 3))]


def test_an_image_file_is_not_copied_out_of_its_record() -> None:
    seen: list[ImageFile | Pixels] = []

    def note(image: ImageFile | Pixels) -> Pixels:
        seen.append(image)
        return np.zeros((SIZE, SIZE, 3), np.uint8)

    record = _record(pack_document("a", file_of("jpeg-420", "coffee")))
    Preparer(note, SIZE, parse_traversal("r"), LIMITS).prepare(record)

    [image] = seen
    assert isinstance(image, memoryview)
    assert image.obj is record.value


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind_of_file", TURNABLE)
def test_an_image_file_is_prepared_whatever_way_it_is_to_be_turned(kind_of_file: str, orientation: int) -> None:
    picture = photograph("chelsea").resize((60, 40))
    file = encode(picture, kind_of_file, exif=turned(orientation), **TURNABLE[kind_of_file])

    prepared = _prepared(_preparer().prepare(_record(pack_document("a", file))))

    assert [_plain_image(image) for image in prepared.images] == [("uint8", (224, 224, 3))]


@BOTH
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_an_array_is_prepared_like_a_lossless_file_of_it(name: str, kind: type[Fast] | type[Reference]) -> None:
    preparer = _preparer(kind)
    array = np.asarray(photograph(name))

    of_array = _prepared(preparer.prepare(_record(pack_document("a", array)))).images
    of_file = _prepared(preparer.prepare(_record(pack_document("a", file_of("png-rgb", name))))).images

    assert np.array_equal(of_array, of_file)


@BOTH
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (300, 1, 3), (128, 64, 3)])
def test_an_array_of_any_height_and_width_is_prepared(
    shape: tuple[int, ...], kind: type[Fast] | type[Reference]
) -> None:
    value = pack_document("a", np.full(shape, 7, np.uint8))

    (image,) = _prepared(_preparer(kind).prepare(_record(value))).images

    assert np.array_equal(image, np.full((224, 224, 3), 7, np.uint8))


@BOTH
def test_a_preprocessed_array_is_taken_as_it_is(kind: type[Fast] | type[Reference]) -> None:
    value = pack_document("a", PREPROCESSED)

    (image,) = _prepared(_preparer(kind).prepare(_record(value))).images

    assert (image.dtype, np.array_equal(image, PREPROCESSED)) == (np.dtype(np.float32), True)


def test_what_msgpack_numpy_writes_is_prepared() -> None:
    form = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": PREPROCESSED.shape, b"data": PREPROCESSED.tobytes()}
    value = bytes(msgpack.packb({"id": "a", "blob": form}))

    (image,) = _prepared(_preparer().prepare(_record(value))).images

    assert np.array_equal(image, PREPROCESSED)


def test_files_and_arrays_may_be_mixed_in_one_record() -> None:
    chunks = [pack_document("b", PREPROCESSED), pack_document("c"), pack_document("d", np.zeros((9, 9, 3), np.uint8))]
    value = pack_document("a", SMALL_JPEG, chunks=chunks)

    images = _prepared(_preparer(paths="r,c").prepare(_record(value))).images

    assert [_plain_image(image) for image in images] == [
        ("uint8", (224, 224, 3)),
        ("float32", (224, 224, 3)),
        ("uint8", (224, 224, 3)),
    ]


@pytest.mark.parametrize(
    ("array", "detail"),
    [
        pytest.param(np.zeros((3,), np.uint8), "an array of shape [3] is not height × width × 3", id="1 dimension"),
        pytest.param(np.zeros((4, 4), np.uint8), "an array of shape [4, 4] is not height × width × 3", id="grey"),
        pytest.param(
            np.zeros((4, 4, 1), np.uint8), "an array of shape [4, 4, 1] is not height × width × 3", id="one channel"
        ),
        pytest.param(np.zeros((4, 4, 4), np.uint8), "an array of shape [4, 4, 4] is not height × width × 3", id="RGBA"),
        pytest.param(
            np.zeros((3, 4, 5), np.uint8), "an array of shape [3, 4, 5] is not height × width × 3", id="channels first"
        ),
        pytest.param(
            np.zeros((1, 4, 4, 3), np.uint8), "an array of shape [1, 4, 4, 3] is not height × width × 3", id="batch"
        ),
        pytest.param(
            np.zeros((3, 224, 224), np.float32),
            "an array of shape [3, 224, 224] is not height × width × 3",
            id="float32, channels first",
        ),
        pytest.param(
            np.zeros((223, 224, 3), np.float32),
            "a float32 array of shape [223, 224, 3]; preprocessed is [224, 224, 3]",
            id="float32 of 223 rows",
        ),
        pytest.param(
            np.zeros((336, 336, 3), np.float32),
            "a float32 array of shape [336, 336, 3]; preprocessed is [224, 224, 3]",
            id="float32 for another model",
        ),
    ],
)
def test_an_array_of_another_shape_is_rejected(array: Pixels | Preprocessed, detail: str) -> None:
    record = _record(pack_document("a", array))

    assert _preparer().prepare(record) == Rejected(record, Reason.BAD_BLOB, detail)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf], ids=str)
def test_a_preprocessed_array_that_is_not_finite_is_rejected(wrong: float) -> None:
    array = PREPROCESSED.copy()
    array[223, 223, 2] = wrong
    record = _record(pack_document("a", array))

    outcome = _preparer().prepare(record)

    assert outcome == Rejected(record, Reason.BAD_BLOB, "the float32 array has values that are not finite")


@BOTH
@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file_of("jpeg-420", "rocket")[:5_000], id="truncated JPEG"),
        pytest.param(file_of("png-rgb", "rocket")[:5_000], id="truncated PNG"),
        pytest.param(np.random.default_rng(0).bytes(5_000), id="noise"),
        pytest.param(b"\xff\xd8\xff" + np.random.default_rng(1).bytes(5_000), id="noise that begins as a JPEG"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", id="EPS"),
        pytest.param(b"%PDF-1.7\n", id="PDF"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', id="SVG"),
    ],
)
def test_a_file_that_can_not_be_decoded_is_rejected(file: bytes, kind: type[Fast] | type[Reference]) -> None:
    reason, _ = _why(_preparer(kind).prepare(_record(pack_document("a", file))))

    assert reason is Reason.BAD_IMAGE


@BOTH
def test_a_file_whose_header_claims_too_many_pixels_is_rejected(kind: type[Fast] | type[Reference]) -> None:
    file = bytearray(SMALL_JPEG)
    height_at = file.index(b"\xff\xc0") + 5
    file[height_at : height_at + 4] = (65_500).to_bytes(2) * 2
    record = _record(pack_document("a", bytes(file)))

    outcome = _preparer(kind).prepare(record)

    detail = "65500×65500 is 4290250000 pixels, which exceeds 50000000"
    assert outcome == Rejected(record, Reason.TOO_MANY_PIXELS, detail)


def test_an_array_of_too_many_pixels_is_rejected() -> None:
    preparer = Preparer(Fast(model_input(), geometry(), 99), SIZE, parse_traversal("r"), LIMITS)
    record = _record(pack_document("a", np.zeros((10, 10, 3), np.uint8)))

    outcome = preparer.prepare(record)

    assert outcome == Rejected(record, Reason.TOO_MANY_PIXELS, "10×10 is 100 pixels, which exceeds 99")


def test_one_bad_image_rejects_the_whole_record() -> None:
    chunks = [pack_document("b", SMALL_JPEG), pack_document("c", b"not an image"), pack_document("d", SMALL_JPEG)]
    value = pack_document("a", SMALL_JPEG, chunks=chunks)

    reason, _ = _why(_preparer(paths="r,c").prepare(_record(value)))

    assert reason is Reason.BAD_IMAGE


# Records.


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        pytest.param(b"", Reason.NOT_MSGPACK, "the value is empty", id="empty value"),
        pytest.param(b"\x90", Reason.NOT_A_MAP, "the record is a array, not a map", id="array"),
        pytest.param(b"\x80", Reason.NO_ID, "the document has no id", id="no id"),
        pytest.param(b"\x81\xa2id\x07", Reason.BAD_ID, "the id is a int, not a str", id="id"),
        pytest.param(b"\x82\xa2id\xa1a\xa4blob\xc4\x00", Reason.BAD_BLOB, "the blob is empty", id="blob"),
        pytest.param(
            b"\x82\xa2id\xa1a\xa6chunks\x07", Reason.BAD_CHUNKS, "the chunks are a int, not an array", id="chunks"
        ),
        pytest.param(
            pack_document("a", bytes(16 * 2**20 + 1)),
            Reason.TOO_LARGE,
            "an image of 16777217 bytes exceeds 16777216",
            id="too large",
        ),
        pytest.param(
            pack_document("a", chunks=[pack_document("b", SMALL_JPEG)] * 5),
            Reason.TOO_MANY_IMAGES,
            "more than 4 images in one record",
            id="too many images",
        ),
        pytest.param(b"\x91" * 2_000, Reason.TOO_DEEP, "msgpack nested deeper than 1024 levels", id="too deep"),
    ],
)
def test_a_record_that_is_at_fault_is_rejected(value: bytes, reason: Reason, detail: str) -> None:
    record = _record(value)

    assert _preparer(paths="r,c").prepare(record) == Rejected(record, reason, detail)


@pytest.mark.parametrize("key", [b"key", b""], ids=["key", "empty key"])
def test_a_null_value_deletes_its_key(key: bytes) -> None:
    record = _record(None, key)

    assert _preparer().prepare(record) == Deleted(record)


def test_a_null_value_without_a_key_is_rejected() -> None:
    record = _record(None, None)

    assert _preparer().prepare(record) == Rejected(record, Reason.NO_KEY, "a null value without a key deletes nothing")


def test_a_null_value_is_not_traversed() -> None:
    record = _record(None, headers=(("traversal", b"nonsense"),))

    assert _preparer().prepare(record) == Deleted(record)


def test_a_document_without_a_key_is_prepared() -> None:
    record = _record(pack_document("a", SMALL_JPEG), key=None)

    assert _prepared(_preparer().prepare(record)).record == record


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        pytest.param(pack_document("a"), "r", id="no blob"),
        pytest.param(b"\x82\xa2id\xa1a\xa4blob\xc0", "r", id="null blob"),
        pytest.param(pack_document("a", SMALL_JPEG), "c", id="only on the root"),
        pytest.param(pack_document("a", chunks=[pack_document("b", SMALL_JPEG)]), "r", id="only in a chunk"),
        pytest.param(pack_document("a", chunks=[pack_document("b")]), "r,c,cc", id="nowhere"),
        pytest.param(b"\x82\xa2id\xa1a\xa6chunks\x90", "c", id="no chunks"),
    ],
)
def test_a_document_without_an_image_on_the_paths_is_skipped(value: bytes, paths: str) -> None:
    record = _record(value)

    assert _preparer(paths=paths).prepare(record) == Skipped(record)


# The traversal header.

TREE = pack_document(
    "a",
    SMALL_JPEG,
    chunks=[pack_document("b", SMALL_JPEG, chunks=[pack_document("c")]), pack_document("d", SMALL_JPEG)],
)


@pytest.mark.parametrize(
    ("headers", "images"),
    [
        pytest.param((), 1, id="none"),
        pytest.param((("traversal", b"r"),), 1, id="the same"),
        pytest.param((("traversal", b"c"),), 2, id="other paths"),
        pytest.param((("traversal", b" r , c "),), 3, id="with spaces"),
        pytest.param((("traversal", b"r,r,r"),), 1, id="one path three times"),
        pytest.param((("Traversal", b"c"), ("traversal ", b"c"), ("x.traversal", b"c")), 1, id="other names"),
        pytest.param((("traversal", b"r,c"), ("other", b"x"), ("traversal", b"c")), 2, id="the last of several"),
        pytest.param((("traversal", b"nonsense"), ("traversal", b"c")), 2, id="the last of several, after a bad one"),
        pytest.param((("traversal", None), ("traversal", b"c")), 2, id="the last of several, after a null"),
    ],
)
def test_a_header_overrides_the_paths_for_its_record(headers: Headers, images: int) -> None:
    assert _image_count(_preparer(), TREE, *headers) == images


def test_a_header_counts_for_its_record_only() -> None:
    preparer = _preparer(paths="c")

    counts = [_image_count(preparer, TREE, *headers) for headers in ((), [("traversal", b"r")], ())]

    assert counts == [2, 1, 2]


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        pytest.param((("traversal", None),), "the header traversal is null", id="null"),
        pytest.param((("traversal", b"r"), ("traversal", None)), "the header traversal is null", id="last is null"),
        pytest.param((("traversal", b""),), "'' is not a traversal path: r, c, cc, … (at most 64 deep)", id="empty"),
        pytest.param(
            (("traversal", b"r,x"),), "'x' is not a traversal path: r, c, cc, … (at most 64 deep)", id="unknown path"
        ),
        pytest.param(
            (("traversal", b"r"), ("traversal", b"@c")),
            "'@c' is not a traversal path: r, c, cc, … (at most 64 deep)",
            id="last is unknown",
        ),
        pytest.param(
            (("traversal", b"c" * 1_000_000),),
            "traversal paths of 1000000 characters exceed 4096",
            id="very long",
        ),
        pytest.param(
            (("traversal", b"\xff"),),
            "the header traversal is not UTF-8",
            id="not UTF-8",
        ),
    ],
)
def test_a_header_that_is_no_traversal_rejects_its_record(headers: Headers, detail: str) -> None:
    record = _record(TREE, headers=headers)

    assert _preparer().prepare(record) == Rejected(record, Reason.BAD_TRAVERSAL, detail)


# Whatever a record contains.


def _mutated(value: bytes, chance: np.random.Generator) -> bytes:
    """Change up to four bytes, most of them near the beginning, where the headers are; sometimes cut or double some."""
    changed = bytearray(value)
    for _ in range(chance.integers(1, 5)):
        reach = len(changed) if chance.random() < 0.4 else min(len(changed), 120)
        changed[chance.integers(reach)] = chance.integers(256)
    begin, end = sorted(chance.integers(len(changed), size=2))
    match chance.integers(8):
        case 0:
            return bytes(changed[:end])
        case 1:
            return bytes(changed[:begin] + changed[end:])
        case 2:
            return bytes(changed[:end] + changed[begin:])
    return bytes(changed)


@BOTH
def test_nothing_that_a_record_contains_raises(kind: type[Fast] | type[Reference]) -> None:
    chance = np.random.default_rng(0)
    preprocess = kind(model_input(), geometry(), 1_000_000)
    preparer = Preparer(preprocess, 8, parse_traversal("r,c"), DocumentLimits(20_000, 4))
    files = [form(photograph("chelsea").resize((24, 16))) for form in FORMS.values()]
    values = [pack_document("a", file) for file in files]
    values += [
        pack_document("a", np.zeros((5, 7, 3), np.uint8)),
        pack_document("a", np.zeros((8, 8, 3), np.float32), tags={"n": 1}),
        pack_document("a", chunks=[pack_document("b", file) for file in files[:3]]),
        bytes(msgpack.packb({"id": "a", "blob": {b"nd": True, b"type": "|u1", b"shape": [1, 1, 3], b"data": b"123"}})),
    ]
    outcomes: Counter[str] = Counter()

    for _ in range(2_000):
        value = _mutated(values[chance.integers(len(values))], chance)
        headers = (("traversal", _mutated(b"r,c", chance)),) if chance.random() < 0.05 else ()
        outcome = preparer.prepare(_record(value, headers=headers))
        outcomes[outcome.reason if isinstance(outcome, Rejected) else type(outcome).__name__] += 1

    usual = {"Prepared", "Skipped", Reason.NOT_MSGPACK, Reason.BAD_IMAGE, Reason.BAD_BLOB, Reason.BAD_TRAVERSAL}
    assert usual <= outcomes.keys()


@BOTH
def test_a_record_whose_headers_can_not_be_read_is_a_bad_traversal(kind: type[Fast] | type[Reference]) -> None:
    record = Record("documents", 0, 0, b"key", b"", None, (), headers_readable=False)

    reason, detail = _why(_preparer(kind).prepare(record))

    assert (reason, "not UTF-8" in detail) == (Reason.BAD_TRAVERSAL, True)
