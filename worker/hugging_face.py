"""A checkpoint of transformers' CLIP or SigLIP -> the same tensors by open_clip's names, and what its JSON files say.

Reads the files itself: transformers is not needed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from worker.architectures import Activation, Architecture
from worker.checkpoints import Checkpoint, Tensors
from worker.errors import WeightsError

# In a whole model's files all names of the image tower begin so, in those of SiglipVisionModel none does.
_TOWER = re.compile(r"^vision_model\.")
_FIRST = "embeddings.patch_embedding.weight"
# A buffer that counts from 0 up, in the files of older versions.
_POSITION_IDS = "embeddings.position_ids"

# config.json's model_type, of the whole model and of its image tower alone.
_CLIP = ("clip", "clip_vision_model")
_SIGLIP = ("siglip", "siglip_vision_model")

# In config.json, transformers leaves out what equals its own defaults only in files of older versions.
# https://github.com/huggingface/transformers/blob/main/src/transformers/models/clip/configuration_clip.py
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        "image_size": 224,
        "patch_size": 32,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
    },
    # …/models/siglip/configuration_siglip.py
    "siglip": {
        "image_size": 224,
        "patch_size": 16,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
}

_GELUS = ("GELU", "GELUTanh")  # torch's and timm's

# PIL.Image.Resampling, as preprocessor_config.json has it.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}

_CLIP_NAMES = {
    "embeddings.class_embedding": "class_embedding",
    _FIRST: "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",  # as transformers spells it
    "post_layernorm": "ln_post",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_SIGLIP_NAMES = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "post_layernorm": "norm",
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp": "attn_pool.mlp",
    "head.probe": "attn_pool.latent",
}


class HuggingFaceTower:
    """The image tower that a folder of transformers holds."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Take the tensors of the image tower, and what config.json says of it.

        Raises: `WeightsError` where there is no config.json, or it is of another model.
        """
        self._path = checkpoint.path
        config = checkpoint.hugging_face_config
        if not config:
            raise WeightsError(
                f"{checkpoint.path} has transformers' names, and no config.json beside it, "
                f"which would say the activation and the number of heads"
            )
        kind = config.get("model_type")
        if kind not in (*_CLIP, *_SIGLIP):
            raise WeightsError(f"{self.said_by} is of model_type {kind}: CLIP's and SigLIP's can be read")
        self.is_siglip = kind in _SIGLIP
        vision = config.get("vision_config", config)
        self._config = {name: vision.get(name, default) for name, default in _DEFAULTS[kind.partition("_")[0]].items()}
        self._tensors = _tower_of(checkpoint.tensors)

    @property
    def said_by(self) -> str:
        """Return which file says what is known of the model."""
        return f"config.json beside {self._path}"

    @property
    def activation(self) -> Activation | None:
        """Return CLIP's; None for SigLIP, whose own `set_gelu` sets.

        Raises: `WeightsError` where it is none that open_clip's tower can have.
        """
        if self.is_siglip:
            return None
        try:
            return Activation(self._config["hidden_act"])
        except ValueError as error:
            raise WeightsError(
                f"{self.said_by} says hidden_act {self._config['hidden_act']}: {' and '.join(Activation)} can be had"
            ) from error

    def check_fit(self, architecture: Architecture) -> None:
        """Compare config.json with the architecture: shapes alone don't tell the number of heads.

        Raises: `WeightsError` that says both.
        """
        model = architecture.name
        with torch.device("meta"):
            tower = architecture.build(None)
        built = _measure_siglip(tower) if self.is_siglip else _measure_clip(tower)
        if built is None:
            family = "SigLIP" if self.is_siglip else "CLIP"
            raise WeightsError(f"{self.said_by} is of a {family} vision transformer, and MODEL={model} is none")
        wrong = [
            f"{name} {self._config[name]}, which is {value} in {model}"
            for name, value in built.items()
            if self._config[name] != value
        ]
        if wrong:
            raise WeightsError(f"{self.said_by} doesn't fit MODEL={model}: it has {'; '.join(wrong)}")

    def set_gelu(self, tower: nn.Module) -> None:
        """Make the GELU of a tower of timm's the approximation that config.json says; for some sizes timm has another.

        Raises: `WeightsError` where it is none that timm's tower can have.
        """
        approximations = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}
        asked = self._config["hidden_act"]
        approximation = approximations.get(asked)
        if approximation is None:
            raise WeightsError(f"{self.said_by} says hidden_act {asked}: {' and '.join(approximations)} can be had")
        for module in list(tower.modules()):
            for name, child in module.named_children():
                if type(child).__name__ in _GELUS:
                    setattr(module, name, nn.GELU(approximate=approximation))

    def tensors(self) -> Tensors:
        """Return the tensors by open_clip's names.

        Raises: `WeightsError` where the attention's are incomplete.
        """
        try:
            return dict(self._siglip() if self.is_siglip else self._clip())
        except KeyError as error:
            raise WeightsError(f"{self._path} lacks the tensor {error.args[0]}") from error

    def _clip(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._tensors.items():
            if name == "visual_projection.weight":
                yield "visual.proj", tensor.T
            elif (queries := _queries(name)) is not None:
                layer, kind = queries
                stacked = self._stack(name)
                yield f"visual.transformer.resblocks.{layer}.attn.in_proj_{kind}", stacked
            elif not _is_stacked_with_others(name):
                renamed = _rename(name, _CLIP_NAMES).replace("encoder.layers.", "transformer.resblocks.")
                yield f"visual.{renamed}", tensor

    def _siglip(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._tensors.items():
            if name == "embeddings.position_embedding.weight":
                yield "visual.trunk.pos_embed", tensor[None]
            elif name.startswith("head.attention.in_proj_"):
                kind = name.removeprefix("head.attention.in_proj_")
                width = len(tensor) // 3
                yield f"visual.trunk.attn_pool.q.{kind}", tensor[:width]
                yield f"visual.trunk.attn_pool.kv.{kind}", tensor[width:]
            elif (queries := _queries(name)) is not None:
                layer, kind = queries
                yield f"visual.trunk.blocks.{layer}.attn.qkv.{kind}", self._stack(name)
            elif not _is_stacked_with_others(name):
                renamed = _rename(name, _SIGLIP_NAMES).replace("encoder.layers.", "blocks.")
                yield f"visual.trunk.{renamed}", tensor

    def _stack(self, queries: str) -> torch.Tensor:
        return torch.cat([self._tensors[queries.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")])


def is_hugging_face(tensors: Tensors) -> bool:
    """Return whether the names are those that transformers gives to an image tower."""
    return any(_TOWER.sub("", name) == _FIRST for name in tensors)


def preprocessing_said(config: Mapping[str, Any], size: int, path: str) -> dict[str, Any]:
    """Return what preprocessor_config.json says, by the names of open_clip's PreprocessCfg.

    Raises: `WeightsError` where open_clip's transform can't do it, or it is for another size.
    """
    said: dict[str, Any] = {}
    for name, ours in (("image_mean", "mean"), ("image_std", "std")):
        if name in config:
            said[ours] = tuple(config[name])
    if "resample" in config:
        said["interpolation"] = _RESAMPLE.get(config["resample"], f"resample={config['resample']}")
    if "size" in config:
        said["resize_mode"] = _resize_mode(config, size, path)
    return said


def _resize_mode(config: Mapping[str, Any], size: int, path: str) -> str:
    """Older files have the shorter side as a number, newer ones a map; SigLIP's have both sides and no crop."""
    sides, crops = config["size"], config.get("do_center_crop", True)
    crop = config.get("crop_size", size) if crops else size
    if isinstance(crop, dict):
        crop = size if set(crop.values()) == {size} else crop
    if crop == size:
        if crops and sides in (size, {"shortest_edge": size}):
            return "shortest"
        if isinstance(sides, dict) and sides.keys() == {"height", "width"} and set(sides.values()) == {size}:
            return "squash"
    raise WeightsError(
        f"{path} says size {sides}, {'crop_size ' + str(config.get('crop_size')) if crops else 'no crop'}: "
        f"the model takes {size}×{size}"
    )


def _tower_of(tensors: Tensors) -> Tensors:
    """Return the image tower's by the names that transformers gives to it alone."""
    whole = any(_TOWER.match(name) for name in tensors)
    return {
        _TOWER.sub("", name): tensor
        for name, tensor in tensors.items()
        if (not whole or _TOWER.match(name) or name.startswith("visual_projection."))
        and _TOWER.sub("", name) != _POSITION_IDS
    }


def _queries(name: str) -> tuple[str, str] | None:
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name)
    return (found[1], found[2]) if found else None


def _is_stacked_with_others(name: str) -> bool:
    return ".self_attn.k_proj." in name or ".self_attn.v_proj." in name


def _rename(name: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}($|\.)", rf"\g<1>{ours}\g<2>", name)
    return name


def _measure_clip(tower: nn.Module) -> dict[str, Any] | None:
    """Return what config.json says of a tower of open_clip's; None where transformers has none such."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if blocks is None or getattr(tower, "pool_type", None) != "tok":
        return None
    size, patch, attention, norm = tower.image_size, tower.patch_size, blocks[0].attn, tower.ln_post
    return _measured(size, patch, attention.embed_dim, blocks, attention.num_heads, norm)


def _measure_siglip(tower: nn.Module) -> dict[str, Any] | None:
    """Return the same of timm's."""
    trunk: Any = getattr(tower, "trunk", None)
    if getattr(trunk, "attn_pool", None) is None or getattr(trunk, "blocks", None) is None:
        return None
    patches = trunk.patch_embed
    heads = trunk.blocks[0].attn.num_heads
    return _measured(patches.img_size, patches.patch_size, trunk.embed_dim, trunk.blocks, heads, trunk.norm)


def _measured(size: Any, patch: Any, width: int, blocks: Any, heads: int, norm: Any) -> dict[str, Any]:  # noqa: ANN401 - torch's modules have attributes of any type
    return {
        "image_size": size[0],
        "patch_size": patch[0],
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": heads,
        "layer_norm_eps": norm.eps,
    }
