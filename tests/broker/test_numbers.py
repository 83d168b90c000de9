"""The embeddings that come out of Kafka are those of open_clip's own path: the real `run`, the real model."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from PIL import Image
from skimage import data

from schemas import pack_document, read_embedding
from tests.broker.kafka import Kafka, Sent, Topics, end_offsets, produce, read_all
from tests.broker.processes import REAL, running_worker

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "camera", "hubble_deep_field")
SHAPES = ((128, 64, 3), (1, 1, 3), (3, 700, 3), (700, 3, 3), (224, 224, 3), (1, 300, 3))
TOLERANCE = 1e-5
LEAST_COSINE = 0.9999
WORK_TIMEOUT_S = 120

Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """A blob as it is sent, and the image tensor that open_clip's own preprocessing makes of it."""

    blob: bytes | npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    tensor: torch.Tensor


@pytest.fixture(scope="module")
def clip() -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = open_clip.create_model("ViT-B-32-quickgelu").eval()
    return model


@pytest.fixture(scope="module")
def examples() -> Mapping[str, Example]:
    _, _, preprocess = open_clip.create_model_and_transforms("ViT-S-32-alt")  # all of CLIP's have one transform
    noise = np.random.default_rng(3)
    found = {}
    for name in PHOTOGRAPHS:
        file = io.BytesIO()
        Image.fromarray(getattr(data, name)()).save(file, "JPEG", quality=92)
        found[name] = Example(file.getvalue(), preprocess(Image.open(file)))
    for shape in SHAPES:
        array = noise.integers(0, 256, shape, np.uint8)
        found[f"array {shape}"] = Example(array, preprocess(Image.fromarray(array)))
    for number in range(3):
        values = noise.standard_normal((224, 224, 3)).astype(np.float32)
        found[f"preprocessed {number}"] = Example(values, torch.from_numpy(values).permute(2, 0, 1))
    return found


@pytest.fixture(scope="module")
def expected(clip: torch.nn.Module, examples: Mapping[str, Example]) -> Embeddings:
    with torch.no_grad():
        embeddings = clip.encode_image(torch.stack([example.tensor for example in examples.values()]))  # type: ignore[operator]
    found: Embeddings = embeddings.numpy()
    return found


def _embed(kafka: Kafka, topics: Topics, examples: Mapping[str, Example], *flags: str) -> Embeddings:
    """Send the examples through the worker and return their embeddings in their order."""
    sent = [Sent(name.encode(), pack_document(name, example.blob)) for name, example in examples.items()]
    produce(kafka.bootstrap_servers, topics.input, sent)

    def all_are_there() -> bool:
        return sum(end_offsets(kafka.bootstrap_servers, topics.output).values()) == len(examples)

    with running_worker(kafka, topics, "--weights", "random", *flags, module=REAL) as worker:
        worker.wait_until(all_are_there, WORK_TIMEOUT_S, "an embedding of every example")
        assert worker.stop() == 0
    found = {}
    for message in read_all(kafka.bootstrap_servers, topics.output):
        record = read_embedding(message.value() or b"")
        assert record.id is not None
        assert record.embedding is not None
        found[record.id] = record.embedding
    return np.stack([found[name] for name in examples])


def _centred_cosine(found: Embeddings, expected: Embeddings) -> Embeddings:
    """Return cosines after subtracting the mean of the set: plain ones hide mistakes under random weights."""
    centre = expected.mean(axis=0)
    a, b = found - centre, expected - centre
    cosines: Embeddings = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines


@pytest.mark.parametrize("max_batch", [1, 7, 32])
def test_reference_embeddings_equal_open_clips_whatever_the_batch(
    max_batch: int, kafka: Kafka, topics: Topics, examples: Mapping[str, Example], expected: Embeddings
) -> None:
    found = _embed(kafka, topics, examples, "--preprocessing", "reference", "--max-batch", str(max_batch))

    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_fast_embeddings_point_where_open_clips_do(
    kafka: Kafka, topics: Topics, examples: Mapping[str, Example], expected: Embeddings
) -> None:
    found = _embed(kafka, topics, examples, "--preprocessing", "fast", "--max-batch", "7")

    cosines = dict(zip(examples, _centred_cosine(found, expected).tolist(), strict=True))
    assert {name: cosine for name, cosine in cosines.items() if cosine < LEAST_COSINE} == {}
