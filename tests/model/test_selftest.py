"""The self-test at the start: what it lets through, and what it stops."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.model import families
from worker.encoder import Encoder
from worker.errors import DeviceError
from worker.selftest import LIMITS, SelfTest, make_pictures
from worker.weights import load_model

Embeddings = npt.NDArray[np.float32]


@pytest.mark.parametrize("architecture", [families.VIT_SMALL, families.RESNET, families.SIGLIP, families.MOBILECLIP])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("change", [lambda _: None, families.liven], ids=["untrained", "livened"])
def test_every_family_passes_on_the_cpu(
    architecture: str, precision: str, change: Callable[[torch.nn.Module], None]
) -> None:
    model = load_model(architecture, "random")
    change(model.tower)

    Encoder(model, "cpu", precision, normalized=False).warm_up(2)


def test_normalized_embeddings_pass_too() -> None:
    Encoder(load_model(families.VIT_SMALL, "random"), "cpu", "fp32", normalized=True).warm_up(1)


@pytest.mark.parametrize(
    ("spoil", "cosine"),
    [
        pytest.param(lambda output: output.roll(1, dims=0), r"0\.\d+", id="mixes up the batch"),
        pytest.param(lambda output: output[:1].expand_as(output), r"0\.\d+", id="sees nothing"),
        pytest.param(lambda output: -output, r"-0\.9999\d+", id="wrong sign"),
        pytest.param(lambda output: output * torch.nan, "nan", id="not a number"),
        pytest.param(lambda output: output * 0, "nan", id="nothing at all"),
    ],
)
def test_a_device_that_gives_other_numbers_stops_the_start(
    spoil: Callable[[torch.Tensor], torch.Tensor], cosine: str
) -> None:
    model = load_model(families.VIT_SMALL, "random")
    encoder = Encoder(model, "cpu", "bf16", normalized=False)
    model.tower.register_forward_hook(lambda _, __, output: spoil(output))

    said = rf"cpu in bf16 gives embeddings of {families.VIT_SMALL}:random:\w+ with a cosine of {cosine} .*under 0\.995"
    with pytest.raises(DeviceError, match=said):
        encoder.warm_up(2)


def test_the_pictures_are_so_different_that_one_answer_to_both_fails() -> None:
    model = load_model(families.VIT, "random")
    selftest = SelfTest(model.tower, model.input)
    whole = selftest._expected / np.linalg.norm(selftest._expected, axis=1, keepdims=True)

    cosine = selftest.cosine(lambda pictures: np.repeat(whole.mean(axis=0, keepdims=True), len(pictures), axis=0))

    assert cosine < min(LIMITS.values())


def test_the_pictures_have_no_symmetry_and_no_two_channels_alike() -> None:
    for picture in make_pictures(64):
        seen = [picture, picture[::-1], picture[:, ::-1], picture.transpose(1, 0, 2), picture[..., ::-1]]

        assert len({np.ascontiguousarray(view).tobytes() for view in seen}) == len(seen)
