"""What the worker knows of every architecture and every pretrained tag that open_clip lists."""

from dataclasses import asdict

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from tests.model import families
from worker.architectures import OPENAI_MODELS, Activation, find_architecture
from worker.errors import WeightsError

LISTED = [(name, tag) for name, tag in open_clip.list_pretrained() if name not in families.NAMES]
NAMES = [name for name in open_clip.list_models() if name not in families.NAMES]


def _side(size: int | list[int] | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


@pytest.mark.parametrize(("name", "tag"), LISTED)
def test_a_tags_input_is_what_open_clip_would_use(name: str, tag: str) -> None:
    config = open_clip.get_model_config(name)
    merged = merge_preprocess_dict(asdict(PreprocessCfg()), open_clip.get_pretrained_cfg(name, tag))
    size = _side(config["vision_cfg"].get("image_size", 224))

    found = find_architecture(name).preprocessing_of_tag(tag)

    assert found.config == PreprocessCfg(**merged | {"size": size})
    assert found.unsaid == ()


@pytest.mark.parametrize(("name", "tag"), LISTED)
def test_a_tags_activation_is_the_one_it_was_trained_with(name: str, tag: str) -> None:
    """open_clip builds what the architecture says, and warns where the tag says QuickGELU."""
    config, said = open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, tag)
    quick = config.get("quick_gelu", False) or said.get("quick_gelu", False)

    assert find_architecture(name).activation_of_tag(tag) == ("quick_gelu" if quick else "gelu")


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_can_be_built(name: str) -> None:
    architecture = find_architecture(name)

    with torch.device("meta"):
        tower = architecture.build(None)

    image_size = tower.image_size
    assert _side(image_size) == architecture.default_preprocessing.config.size  # type: ignore[arg-type]
    assert architecture.dimensions > 0


@pytest.mark.parametrize("name", OPENAI_MODELS)
def test_openais_names_stand_for_openais_models(name: str) -> None:
    architecture = find_architecture(name)

    assert "openai" in architecture.tags
    assert architecture.activation_of_tag("openai") is Activation.QUICK_GELU
    assert architecture.activation_untrained is Activation.QUICK_GELU


@pytest.mark.parametrize(
    ("name", "expected", "unsaid"),
    [
        ("ViT-B/32", PreprocessCfg(size=224), ()),
        ("ViT-L/14@336px", PreprocessCfg(size=336), ()),
        (
            "ViT-B-16-SigLIP-384",
            PreprocessCfg(size=384, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="squash"),
            (),
        ),
        ("MobileCLIP2-S0", PreprocessCfg(size=256, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear"), ()),
        ("ViT-L-14", PreprocessCfg(size=224), ("mean", "std")),  # one of its tags was trained with 0.5
        ("ViT-S-32-alt", PreprocessCfg(size=224), ("mean", "std", "interpolation", "resize_mode")),
    ],
)
def test_of_a_file_that_says_nothing_the_input_is_what_the_tags_agree_on(
    name: str, expected: PreprocessCfg, unsaid: tuple[str, ...]
) -> None:
    found = find_architecture(name).agreed_preprocessing

    assert found.config == expected
    assert found.unsaid == unsaid


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"interpolation": "random"}, "an interpolation is bicubic or bilinear, not random"),
        ({"resize_mode": "stretch"}, "a resize mode is shortest, longest or squash, not stretch"),
        ({"std": (0.5, 0, 0.5)}, "a deviation is 0"),
        ({"mean": (0.5,)}, "three numbers each"),
    ],
)
def test_preprocessing_that_can_not_be_had_is_an_error(said: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsError, match=f"the preprocessing that a file says can't be had: .*{message}"):
        find_architecture("ViT-B-32").default_preprocessing.overlaid(said, "a file")


QUICK, GELU = Activation.QUICK_GELU, Activation.GELU


@pytest.mark.parametrize(
    ("name", "asked", "said", "chosen"),
    [
        ("ViT-B/32", None, QUICK, QUICK),
        ("ViT-B/32", None, GELU, GELU),
        ("ViT-B/32", QUICK, None, QUICK),
        ("ViT-B/32", GELU, GELU, GELU),
        ("ViT-B-32-quickgelu", None, None, QUICK),
        ("ViT-L-14-CLIPA", None, None, GELU),
        ("ViT-S-32-alt", QUICK, None, QUICK),
        ("RN50", None, None, None),
        ("RN50", None, QUICK, None),
        ("ViT-B-16-SigLIP", None, None, None),
    ],
)
def test_the_activation_follows_from_where_the_weights_come_from(
    name: str, asked: Activation | None, said: Activation | None, chosen: Activation | None
) -> None:
    assert find_architecture(name).choose_activation(asked, said, "the file") is chosen


@pytest.mark.parametrize(
    ("name", "asked", "said", "message"),
    [
        ("ViT-B/32", None, None, "the file doesn't say its activation, and ViT-B/32 is used with .*WORKER_ACTIVATION"),
        ("ViT-B-32", None, None, "the file doesn't say its activation"),
        ("ViT-L/14@336px", None, None, "the file doesn't say its activation"),
        ("ViT-B/32", GELU, QUICK, "ACTIVATION=gelu, but the file says quick_gelu"),
        ("ViT-B-32-quickgelu", None, GELU, "the file says gelu, but MODEL=ViT-B-32-quickgelu is quick_gelu"),
        ("ViT-B-32-quickgelu", GELU, None, "ACTIVATION says gelu, but MODEL=ViT-B-32-quickgelu is quick_gelu"),
        ("ViT-B-16-SigLIP", GELU, None, "ViT-B-16-SigLIP has an activation of its own: leave it auto"),
        ("RN50", QUICK, None, "RN50 has an activation of its own"),
    ],
)
def test_an_activation_that_is_unknown_or_contradicted_stops_the_start(
    name: str, asked: Activation | None, said: Activation | None, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        find_architecture(name).choose_activation(asked, said, "the file")
