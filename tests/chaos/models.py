"""What the workers of a chaos run embed with: mostly a model that takes no time, once the real one."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.broker import processes
from tests.broker.instant_worker import GEOMETRY, MODEL_INPUT, InstantEncoder
from tests.chaos.stream import Embeddings, embeddings
from worker.encoder import Encoder
from worker.weights import RANDOM, load_model


@dataclass(frozen=True, slots=True)
class Model:
    """How its workers are started, and what they make of the pictures of the stream."""

    name: str
    module: tuple[str, ...]
    flags: tuple[str, ...]
    embeddings: Callable[[], Embeddings]


def _of_instant() -> Embeddings:
    return embeddings(InstantEncoder(), MODEL_INPUT, GEOMETRY)


def _of_real() -> Embeddings:
    model = load_model("ViT-B/32", RANDOM)
    return embeddings(Encoder(model, "cpu", "fp32", normalized=False), model.input, model.geometry)


INSTANT = Model("instant", processes.INSTANT, (), _of_instant)
REAL = Model("real", processes.REAL, ("--weights", RANDOM, "--device", "cpu"), _of_real)
