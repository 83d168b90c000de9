"""The rewriting that a GPU's speed asks for: the same numbers, on the CPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU

from tests.model import families
from tests.model.photographs import pictures
from worker.quick_gelu import fold_quick_gelu
from worker.tower import normalise_in_one_pass
from worker.weights import load_model

MEAN, STD = (torch.tensor(channels).view(1, 3, 1, 1) for channels in ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)))


def _images(size: int) -> torch.Tensor:
    levels = np.stack([np.asarray(picture.resize((size, size))) for picture in pictures(4)])
    return torch.from_numpy(levels)


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_normalisation_in_one_pass_gives_what_torchvisions_four_do() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).reshape(1, 16, 16, 3)
    expected = levels.permute(0, 3, 1, 2).float().div_(255).sub_(MEAN).div_(STD)

    found = normalise_in_one_pass(levels, 1 / (255 * STD), -MEAN / STD, torch.float32)

    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_normalisation_in_one_pass_is_rounded_only_at_its_end(dtype: torch.dtype) -> None:
    levels = _images(32)
    expected = normalise_in_one_pass(levels, 1 / (255 * STD), -MEAN / STD, torch.float32).to(dtype)

    found = normalise_in_one_pass(levels, 1 / (255 * STD), -MEAN / STD, dtype)

    assert torch.equal(found, expected)


def test_a_folded_quick_gelu_gives_the_same_embeddings() -> None:
    model = load_model(families.VIT_QUICK, "random")
    images = normalise_in_one_pass(_images(224), 1 / (255 * STD), -MEAN / STD, torch.float32)
    expected = model.tower(images)

    folded = fold_quick_gelu(model.tower)

    assert folded == 2
    assert not [module for module in model.tower.modules() if isinstance(module, QuickGELU)]
    torch.testing.assert_close(model.tower(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", [families.VIT, families.RESNET, families.SIGLIP])
def test_a_tower_with_another_activation_is_left_as_it_is(architecture: str) -> None:
    model = load_model(architecture, "random")
    before = {name: tensor.clone() for name, tensor in model.tower.state_dict().items()}

    folded = fold_quick_gelu(model.tower)

    assert folded == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tower.state_dict().items())
