"""The worker's embeddings against two second opinions, for each family of architectures; and that mistakes show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torch import nn

from tests.model import families
from tests.model.oracles import (
    Embeddings,
    Oracle,
    assert_equal,
    centred_cosine,
    open_clips,
    transformers_clip,
    transformers_siglip,
)
from tests.model.photographs import pictures
from worker.encoder import Encoder
from worker.images import Reference
from worker.tower import Tower
from worker.weights import Model, load_model

COUNT = 8
MAX_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture with its oracles, and the limit of its centred cosine in bf16; beside it the least measured."""

    architecture: str
    oracles: tuple[Callable[[], Oracle], ...]
    bf16_limit: float

    def __str__(self) -> str:
        return self.architecture


FAMILIES = (
    Family(
        families.VIT,
        (lambda: open_clips(families.VIT), lambda: transformers_clip(families.VIT, heads=12)),
        bf16_limit=0.998,  # 0.99893
    ),
    Family(
        families.VIT_QUICK,
        (lambda: open_clips(families.VIT_QUICK), lambda: transformers_clip(families.VIT_QUICK, heads=12)),
        bf16_limit=0.998,  # 0.99893
    ),
    Family(
        families.VIT_336,
        (lambda: open_clips(families.VIT_336), lambda: transformers_clip(families.VIT_336, heads=4)),
        bf16_limit=0.998,  # 0.99893
    ),
    Family(families.RESNET, (lambda: open_clips(families.RESNET),), bf16_limit=0.98),  # 0.99262
    Family(
        families.SIGLIP,
        (
            lambda: open_clips(families.SIGLIP, "webli"),
            lambda: transformers_siglip(families.SIGLIP, "webli", heads=12, hidden_act="gelu"),
        ),
        bf16_limit=0.9998,  # 0.99994
    ),
    Family(families.MOBILECLIP, (lambda: open_clips(families.MOBILECLIP, "dfndr2b"),), bf16_limit=0.98),  # 0.98950
)
QUICK = FAMILIES[1]


@cache
def _pictures() -> tuple[Image.Image, ...]:
    return tuple(pictures(COUNT))


@cache
def _expected(family: Family, which: int) -> Embeddings:
    return family.oracles[which]()(_pictures())


def _load(family: Family) -> Model:
    model = load_model(family.architecture, "random")
    families.liven(model.tower)
    return model


def _prepare(model: Model, images: Sequence[Image.Image]) -> npt.NDArray[np.uint8]:
    reference = Reference(model.input, model.geometry, MAX_PIXELS)
    return np.stack([reference(np.asarray(image)) for image in images])


def _nothing(encoder: Encoder) -> npt.NDArray[np.float32]:
    side = encoder.model_input.size
    return np.empty((0, side, side, 3), np.float32)


def _embed(model: Model, precision: str = "fp32") -> Embeddings:
    pixels = _prepare(model, _pictures())
    encoder = Encoder(model, "cpu", precision, normalized=False)
    return encoder.encode(pixels, _nothing(encoder))


def _assert_faithful(model: Model, family: Family) -> None:
    """Compare with every oracle of the family: what the mutants below have to fail."""
    embeddings = _embed(model)
    for which in range(len(family.oracles)):
        assert_equal(embeddings, _expected(family, which))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_embeddings_in_fp32_are_those_of_open_clip_and_of_transformers(family: Family) -> None:
    _assert_faithful(_load(family), family)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_embeddings_in_bf16_point_where_those_in_fp32_do(
    family: Family, record_property: Callable[[str, object], None]
) -> None:
    expected = _expected(family, 0)

    cosines = centred_cosine(_embed(_load(family), "bf16"), expected)

    record_property("least centred cosine", float(cosines.min()))
    print(f"{family}: least centred cosine in bf16 {cosines.min():.6f}")  # noqa: T201 - pytest shows it where it fails
    assert cosines.min() > family.bf16_limit


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_picture_has_the_same_embedding_alone_among_others_and_behind_padding(family: Family) -> None:
    model = _load(family)
    one, *others = _prepare(model, _pictures())
    encoder = Encoder(model, "cpu", "fp32", normalized=False)
    padding = np.full((5, *one.shape), 255, np.uint8)
    beside = np.stack([*others, one, *others, others[0]])  # 32 of them

    alone = encoder.encode(one[None], _nothing(encoder))[0]
    in_the_middle = encoder.encode(beside, _nothing(encoder))[len(others)]
    last_before_padding = encoder.encode(np.stack([*others[:2], one, *padding]), _nothing(encoder))[2]

    assert_equal(np.stack([in_the_middle, last_before_padding]), np.stack([alone, alone]))


def _with_gelu(model: Model) -> Model:
    for module in list(model.tower.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "QuickGELU":
                setattr(module, name, nn.GELU())
    return model


def _with_mean_and_deviation_swapped(model: Model) -> Model:
    return replace(model, input=replace(model.input, mean=model.input.std, std=model.input.mean))


def _with_channels_of_the_mean_reversed(model: Model) -> Model:
    red, green, blue = model.input.mean
    return replace(model, input=replace(model.input, mean=(blue, green, red)))


def _with_deviation_of_another_model(model: Model) -> Model:
    return replace(model, input=replace(model.input, std=(0.5, 0.5, 0.5)))


def _with_bgr(model: Model) -> Model:
    """Swap red and blue in front of the tower, as an encoder that takes RGB for BGR does."""
    model.tower.register_forward_pre_hook(lambda _, images: (images[0].flip(1),))
    return model


MUTANTS = [
    _with_gelu,
    _with_mean_and_deviation_swapped,
    _with_channels_of_the_mean_reversed,
    _with_deviation_of_another_model,
    _with_bgr,
]


@pytest.mark.parametrize("mutate", MUTANTS)
def test_a_mistake_in_the_model_or_its_normalisation_is_seen_in_fp32(mutate: Callable[[Model], Model]) -> None:
    mutant = mutate(_load(QUICK))

    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        _assert_faithful(mutant, QUICK)


def test_red_taken_for_blue_by_the_encoder_itself_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    normalise = Tower._normalise
    monkeypatch.setattr(Tower, "_normalise", lambda tower, pixels: normalise(tower, pixels.flip(3)))

    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        _assert_faithful(_load(QUICK), QUICK)
