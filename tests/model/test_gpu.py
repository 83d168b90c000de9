"""On a GPU, with `-m gpu`: every precision against fp32 on the CPU, whatever the batch."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from tests.model import families
from tests.model.oracles import Embeddings, centred_cosine
from tests.model.photographs import pictures
from worker.encoder import Encoder
from worker.images import Reference
from worker.weights import load_model

pytestmark = pytest.mark.gpu

COUNT = 64
MODELS = ("ViT-B/32", families.VIT_336, families.RESNET, families.SIGLIP, families.MOBILECLIP)
# Of the centred cosine. fp16 has 3 bits more than bf16: an error of an eighth, and of the square of it here.
LIMITS = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.98}


def _encoder(model: str, device: str, precision: str) -> Encoder:
    loaded = load_model(model, "random")
    families.liven(loaded.tower)
    return Encoder(loaded, device, precision, normalized=False)


def _pixels(encoder: Encoder) -> npt.NDArray[np.uint8]:
    reference = Reference(encoder.model_input, encoder.geometry, max_pixels=50_000_000)
    return np.stack([reference(np.asarray(picture)) for picture in pictures(COUNT)])


def _embed(encoder: Encoder, pixels: npt.NDArray[np.uint8], batch: int) -> Embeddings:
    none = np.empty((0, *pixels.shape[1:]), np.float32)
    return np.concatenate([encoder.encode(pixels[begin : begin + batch], none) for begin in range(0, COUNT, batch)])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_gpu_gives_what_the_cpu_does(
    model: str, precision: str, batch: int, record_property: Callable[[str, object], None]
) -> None:
    on_cpu = _encoder(model, "cpu", "fp32")
    pixels = _pixels(on_cpu)
    on_gpu = _encoder(model, "cuda", precision)

    on_gpu.warm_up(batch)
    cosines = centred_cosine(_embed(on_gpu, pixels, batch), _embed(on_cpu, pixels, 8))

    record_property("least centred cosine", float(cosines.min()))
    print(f"{model} in {precision}, batches of {batch}: least centred cosine {cosines.min():.6f}")  # noqa: T201
    assert cosines.min() > LIMITS[precision]
