"""Folders of transformers' CLIP and SigLIP as weights: the numbers, the fingerprint, and what doesn't fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.model import families
from tests.model.oracles import assert_equal
from worker.architectures import Activation
from worker.errors import WeightsError
from worker.weights import Model, load_model

VISION: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 256,
}
SIGLIP_VISION: dict[str, Any] = {"num_hidden_layers": 2}
TEXT: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
TINY_TEXT = TEXT | {"vocab_size": 8, "bos_token_id": 1, "eos_token_id": 2}


def _clip_alone(hidden_act: str = "quick_gelu") -> Any:  # noqa: ANN401 - transformers' classes are untyped
    torch.manual_seed(1)
    model: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, hidden_act=hidden_act))
    return model.eval()


def _clip() -> Any:  # noqa: ANN401
    torch.manual_seed(1)
    config = CLIPConfig(vision_config=VISION, text_config=TINY_TEXT, projection_dim=256)
    model: Any = CLIPModel(config)
    return model.eval()


def _siglip_alone() -> Any:  # noqa: ANN401
    torch.manual_seed(1)
    model: Any = SiglipVisionModel(SiglipVisionConfig(**SIGLIP_VISION))
    return model.eval()


def _siglip() -> Any:  # noqa: ANN401
    torch.manual_seed(1)
    model: Any = SiglipModel(SiglipConfig(vision_config=SIGLIP_VISION, text_config=TINY_TEXT))
    return model.eval()


def _embed_clip_alone(model: Any, images: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    embeddings: torch.Tensor = model(images).image_embeds
    return embeddings


def _embed_clip(model: Any, images: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    embeddings: torch.Tensor = model.visual_projection(model.vision_model(images).pooler_output)
    return embeddings


def _embed_siglip_alone(model: Any, images: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    embeddings: torch.Tensor = model(images).pooler_output
    return embeddings


def _embed_siglip(model: Any, images: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    embeddings: torch.Tensor = model.vision_model(images).pooler_output
    return embeddings


KINDS = [
    pytest.param(families.VIT_SMALL, _clip_alone, _embed_clip_alone, id="CLIPVisionModelWithProjection"),
    pytest.param(families.VIT_SMALL, _clip, _embed_clip, id="CLIPModel"),
    pytest.param(families.SIGLIP, _siglip_alone, _embed_siglip_alone, id="SiglipVisionModel"),
    pytest.param(families.SIGLIP, _siglip, _embed_siglip, id="SiglipModel"),
]


@pytest.mark.parametrize(("architecture", "make", "embed"), KINDS)
def test_a_folder_of_transformers_gives_its_embeddings(
    architecture: str,
    make: Callable[[], Any],
    embed: Callable[[Any, torch.Tensor], torch.Tensor],
    tmp_path: Path,
) -> None:
    theirs = make()
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))

    ours = load_model(architecture, str(tmp_path))

    with torch.inference_mode():
        assert_equal(ours.tower(images).numpy(), embed(theirs, images).numpy())


@pytest.mark.parametrize(("architecture", "make", "embed"), KINDS)
def test_the_fingerprint_is_that_of_the_same_weights_in_a_file_of_open_clips(
    architecture: str, make: Callable[[], Any], embed: object, tmp_path: Path
) -> None:
    del embed
    make().save_pretrained(tmp_path)
    model = load_model(architecture, str(tmp_path))
    path = tmp_path / "same.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.tower.state_dict(prefix="visual.").items()}, path)

    same = load_model(architecture, str(path))

    assert _fingerprint(same) == _fingerprint(model)


def _fingerprint(model: Model) -> str:
    return model.name.rpartition(":")[2]


def test_shards_and_an_older_pickle_are_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "pickle").mkdir()
    _clip_alone().save_pretrained(tmp_path / "whole")
    _clip_alone().save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    tensors["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    torch.save(tensors, tmp_path / "pickle" / "pytorch_model.bin")
    (tmp_path / "pickle" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())

    models = [load_model(families.VIT_SMALL, str(tmp_path / kind)) for kind in ("whole", "shards", "pickle")]

    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert len({_fingerprint(model) for model in models}) == 1


@pytest.mark.parametrize("hidden_act", Activation)
def test_the_activation_is_that_of_the_config(hidden_act: str, tmp_path: Path) -> None:
    _clip_alone(hidden_act).save_pretrained(tmp_path)

    model = load_model(families.VIT_SMALL, str(tmp_path))

    assert model.activation == hidden_act


def _edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_attention_heads": 12},
            "fit MODEL=two-layer-ViT-S-32: it has num_attention_heads 12, which is 6",
        ),
        ({"image_size": 336}, "it has image_size 336, which is 224 in two-layer-ViT-S-32"),
        ({"layer_norm_eps": 1e-6}, "it has layer_norm_eps 1e-06, which is 1e-05"),
        ({"hidden_act": "relu"}, "says hidden_act relu: quick_gelu and gelu can be had"),
        ({"model_type": "blip"}, "is of model_type blip: CLIP's and SigLIP's can be read"),
        ({"model_type": "siglip"}, "is of a SigLIP vision transformer, and MODEL=two-layer-ViT-S-32 is none"),
    ],
)
def test_a_config_that_does_not_fit_is_told_with_both(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    _clip_alone().save_pretrained(tmp_path)
    _edit(tmp_path / "config.json", **fields)

    with pytest.raises(WeightsError, match=message):
        load_model(families.VIT_SMALL, str(tmp_path))


def test_transformers_names_without_a_config_are_an_error(tmp_path: Path) -> None:
    _clip_alone().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()

    with pytest.raises(WeightsError, match=r"has transformers' names, and no config\.json beside it"):
        load_model(families.VIT_SMALL, str(tmp_path))


CROPPED = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}}
OLDER = {"do_center_crop": True, "crop_size": 224, "size": 224}
SQUASHED = {"do_center_crop": False, "size": {"height": 224, "width": 224}}


@pytest.mark.parametrize(
    ("said", "mode"),
    [(CROPPED, "shortest"), (OLDER, "shortest"), (SQUASHED, "squash")],
    ids=["CLIP's", "older", "SigLIP's"],
)
def test_preprocessing_is_that_of_the_preprocessor_config(said: dict[str, object], mode: str, tmp_path: Path) -> None:
    _clip_alone().save_pretrained(tmp_path)
    said = said | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))

    model = load_model(families.VIT_SMALL, str(tmp_path))

    assert (model.input.mean, model.input.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (model.input.interpolation, model.input.resize_mode) == ("bilinear", mode)
    assert model.preprocessing.unsaid == ()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (CROPPED | {"size": {"shortest_edge": 256}}, r"says size .*256.*: the model takes 224×224"),
        (SQUASHED | {"size": {"height": 384, "width": 384}}, "the model takes 224×224"),
        (CROPPED | {"resample": 1}, "an interpolation is bicubic or bilinear, not resample=1"),
    ],
)
def test_preprocessing_that_is_for_another_model_is_an_error(
    said: dict[str, object], message: str, tmp_path: Path
) -> None:
    _clip_alone().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))

    with pytest.raises(WeightsError, match=message):
        load_model(families.VIT_SMALL, str(tmp_path))


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"vision_model.x": "../elsewhere.safetensors"}}))
    save_file({"vision_model.x": torch.zeros(1)}, tmp_path.parent / "elsewhere.safetensors")

    with pytest.raises(WeightsError, match=r"names \.\./elsewhere\.safetensors, which is no file beside it"):
        load_model(families.VIT_SMALL, str(tmp_path))


def test_siglips_gelu_is_the_approximation_that_its_config_says(tmp_path: Path) -> None:
    _siglip_alone().save_pretrained(tmp_path)

    model = load_model(families.SIGLIP, str(tmp_path))

    gelus = {repr(module) for module in model.tower.modules() if "GELU" in type(module).__name__}
    assert gelus == {"GELU(approximate='tanh')"}
    assert np.allclose(model.input.mean, 0.5)
