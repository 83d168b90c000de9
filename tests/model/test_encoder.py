"""The encoder's numbers against open_clip's own preprocessing and encode_image."""

import re
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from PIL import Image
from skimage import data

from worker.encoder import Encoder, find_device
from worker.errors import DeviceError, OutOfMemory
from worker.images import Reference
from worker.weights import load_model

NO_PIXELS = np.empty((0, 224, 224, 3), np.uint8)
NONE_PREPROCESSED = np.empty((0, 224, 224, 3), np.float32)
TOLERANCE = 1e-5

Embeddings = npt.NDArray[np.float32]


def _photographs() -> list[Image.Image]:
    names = ("astronaut", "coffee", "chelsea", "rocket", "camera")
    return [Image.fromarray(getattr(data, name)()) for name in names]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load_model("ViT-B/32", "random"), "cpu", "fp32", normalized=False)


@pytest.fixture(scope="module")
def pixels(encoder: Encoder) -> npt.NDArray[np.uint8]:
    reference = Reference(encoder.model_input, encoder.geometry, max_pixels=50_000_000)
    return np.stack([reference(np.asarray(photograph.convert("RGB"))) for photograph in _photographs()])


@pytest.fixture(scope="module")
def expected() -> Embeddings:
    torch.manual_seed(0)
    clip, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32-quickgelu")
    images = torch.stack([preprocess(photograph.convert("RGB")) for photograph in _photographs()])
    with torch.no_grad():
        embeddings: Embeddings = clip.eval().encode_image(images).numpy()
    return embeddings


def _assert_equal(found: Embeddings, expected: Embeddings) -> None:
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_embeddings_are_those_of_open_clips_own_path(
    encoder: Encoder, pixels: npt.NDArray[np.uint8], expected: Embeddings
) -> None:
    embeddings = encoder.encode(pixels, NONE_PREPROCESSED)

    assert embeddings.dtype == np.float32
    assert embeddings.shape == (5, 512)
    _assert_equal(embeddings, expected)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_size_of_the_batch_does_not_matter(
    size: int, encoder: Encoder, pixels: npt.NDArray[np.uint8], expected: Embeddings
) -> None:
    batches = [pixels[begin : begin + size] for begin in range(0, len(pixels), size)]

    embeddings = np.concatenate([encoder.encode(batch, NONE_PREPROCESSED) for batch in batches])

    _assert_equal(embeddings, expected)


def test_preprocessed_images_are_taken_as_they_are_and_come_after_the_others(
    encoder: Encoder, pixels: npt.NDArray[np.uint8], expected: Embeddings
) -> None:
    scaled = pixels.astype(np.float32) / 255
    preprocessed = ((scaled - encoder.model_input.mean) / encoder.model_input.std).astype(np.float32)

    embeddings = encoder.encode(pixels[:2], preprocessed[2:])

    _assert_equal(embeddings, expected)


def test_preprocessed_images_alone_are_a_batch_too(
    encoder: Encoder, pixels: npt.NDArray[np.uint8], expected: Embeddings
) -> None:
    scaled = pixels.astype(np.float32) / 255
    preprocessed = ((scaled - encoder.model_input.mean) / encoder.model_input.std).astype(np.float32)

    _assert_equal(encoder.encode(NO_PIXELS, preprocessed), expected)


def test_normalized_embeddings_have_norm_1_and_the_same_direction(
    pixels: npt.NDArray[np.uint8], expected: Embeddings
) -> None:
    encoder = Encoder(load_model("ViT-B/32", "random"), "cpu", "fp32", normalized=True)

    embeddings = encoder.encode(pixels, NONE_PREPROCESSED)

    _assert_equal(embeddings, expected / np.linalg.norm(expected, axis=1, keepdims=True))


def test_bf16_points_where_fp32_does(pixels: npt.NDArray[np.uint8], expected: Embeddings) -> None:
    encoder = Encoder(load_model("ViT-B/32", "random"), "cpu", "bf16", normalized=False)

    embeddings = encoder.encode(pixels, NONE_PREPROCESSED)

    assert centred_cosine(embeddings, expected).min() > 0.999


def centred_cosine(found: Embeddings, expected: Embeddings) -> Embeddings:
    """Cosine after subtracting the mean of the set: a plain one hides mistakes under random weights."""
    centre = expected.mean(axis=0)
    a, b = found - centre, expected - centre
    cosine: Embeddings = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosine


# Batches that are begun and waited for.


def test_a_batch_that_is_begun_has_the_embeddings_of_one_that_is_encoded(
    encoder: Encoder, pixels: npt.NDArray[np.uint8]
) -> None:
    batches = [pixels[:1], pixels[1:3]]

    waits = [encoder.begin(batch, NONE_PREPROCESSED) for batch in batches]

    for wait, batch in zip(waits, batches, strict=True):
        np.testing.assert_array_equal(wait(), encoder.encode(batch, NONE_PREPROCESSED))


def test_the_cpu_has_one_batch_under_way_and_takes_pixels_from_any_memory(
    encoder: Encoder, pixels: npt.NDArray[np.uint8], expected: Embeddings
) -> None:
    places = encoder.allocate(3)
    places[1:] = pixels[:2]

    assert encoder.depth == 1
    assert places.shape == (3, 224, 224, 3)
    _assert_equal(encoder.begin(places[1:], NONE_PREPROCESSED)(), expected[:2])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["the allocator's", "a graph's", "cuBLAS's", "the CPU's"],
)
def test_a_batch_that_the_device_has_no_memory_for_can_be_halved(error: Exception) -> None:
    def run_out_of_memory_over_one(_: object, inputs: tuple[torch.Tensor], __: object) -> None:
        if len(inputs[0]) > 1:
            raise error

    model = load_model("ViT-S-32-alt", "random")
    encoder = Encoder(model, "cpu", "fp32", normalized=False)
    model.tower.register_forward_hook(run_out_of_memory_over_one)
    images = np.zeros((2, 224, 224, 3), np.uint8)

    with pytest.raises(OutOfMemory, match=re.escape(f"cpu: {error}")):
        encoder.begin(images, NONE_PREPROCESSED)

    assert encoder.begin(images[:1], NONE_PREPROCESSED)().shape == (1, 256)


def test_fp16_on_the_cpu_is_an_error() -> None:
    with pytest.raises(DeviceError, match="PRECISION=fp16 needs CUDA"):
        Encoder(load_model("ViT-S-32-alt", "random"), "cpu", "fp16", normalized=False)


def test_a_device_that_has_no_room_for_the_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("ViT-S-32-alt", "random")
    monkeypatch.setattr(model.tower, "to", _find_no_room)

    with pytest.raises(DeviceError, match=r"cpu can't take ViT-S-32-alt.* in fp32: no room"):
        Encoder(model, "cpu", "fp32", normalized=False)


def _find_no_room(*_: object, **__: object) -> NoReturn:
    raise torch.OutOfMemoryError("no room")


@pytest.mark.parametrize("number", ["99", "099", "256", str(10**30)])
def test_a_device_that_is_not_there_is_named(number: str) -> None:
    with pytest.raises(DeviceError, match=rf"DEVICE=cuda:{number}, but this machine has \d+ CUDA devices"):
        find_device(f"cuda:{number}")


@pytest.mark.parametrize(
    ("model", "size"), [("ViT-S-32-alt", 256), ("RN50", 1024), ("ViT-B-16-SigLIP", 768), ("MobileCLIP2-S0", 512)]
)
def test_other_architectures_bring_their_own_input_and_length(model: str, size: int) -> None:
    encoder = Encoder(load_model(model, "random"), "cpu", "fp32", normalized=False)
    side = encoder.model_input.size
    images = np.zeros((1, side, side, 3), np.uint8)

    assert encoder.encode(images, np.empty((0, side, side, 3), np.float32)).shape == (1, size)
