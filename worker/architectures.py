"""A model's name -> its architecture: the image tower still without weights, and what open_clip says of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import open_clip
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import nn
from torch.overrides import TorchFunctionMode

from worker.errors import WeightsError

# https://github.com/openai/CLIP/blob/main/clip/clip.py, _MODELS; all of them use QuickGELU.
OPENAI_MODELS = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}

_TWIN = "-quickgelu"  # open_clip's suffix of the same architecture with the other activation
# What torch.nn.init and timm come down to.
_FILLING = frozenset({"erfinv_", "kaiming_uniform_", "normal_", "uniform_"})
_SAID_BY_TAGS = ("mean", "std", "interpolation", "resize_mode")


class Activation(StrEnum):
    """The activation of a transformer's layers; the wrong one gives embeddings that look fine."""

    QUICK_GELU = "quick_gelu"
    GELU = "gelu"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """open_clip's configuration of a model's input, and who says so; of the fields `unsaid` nobody says anything."""

    config: PreprocessCfg
    source: str
    unsaid: tuple[str, ...] = ()

    def overlaid(self, said: Mapping[str, Any], source: str) -> "Preprocessing":
        """Return the same with what `said` has instead; the size stays the architecture's own.

        Raises: `WeightsError` where a value is none that open_clip's transform takes.
        """
        try:
            config = PreprocessCfg(**merge_preprocess_dict(self.config, dict(said) | {"size": self.config.size}))
            _check(config)
        except (AssertionError, TypeError, ValueError) as error:
            raise WeightsError(f"the preprocessing that {source} says can't be had: {error}") from error
        return Preprocessing(config, source, tuple(field for field in self.unsaid if said.get(field) is None))


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture of open_clip: `name` as set, `key` as open_clip calls it, `config` its own configuration."""

    name: str
    key: str
    config: Mapping[str, Any]

    @property
    def dimensions(self) -> int:
        """Return how many numbers an embedding has."""
        return int(self.config["embed_dim"])

    @property
    def vision(self) -> CLIPVisionCfg:
        """Return the image tower's configuration, without the weights that timm would download."""
        return CLIPVisionCfg(**self.config["vision_cfg"] | {"timm_model_pretrained": False})

    @property
    def tags(self) -> list[str]:
        """Return the pretrained tags."""
        tags: list[str] = open_clip.list_pretrained_tags_by_model(self.key)
        return tags

    @property
    def has_gelu_of_choice(self) -> bool:
        """Return whether the activation is a choice: ResNets have ReLU, timm's towers bring their own."""
        return self.vision.timm_model_name is None and isinstance(self.vision.layers, int)

    @property
    def activations(self) -> frozenset[Activation]:
        """Return those that weights of this architecture are known with, by its twin and by their tags."""
        if self._is_named_quick:
            return frozenset({Activation.QUICK_GELU})
        known = {self.activation_of_tag(tag) for tag in self.tags} | {Activation.GELU}
        if self.key + _TWIN in open_clip.list_models():
            known |= {Activation.QUICK_GELU}
        return frozenset(known)

    @property
    def _is_named_quick(self) -> bool:
        return bool(self.config.get("quick_gelu", False))

    @property
    def activation_untrained(self) -> Activation:
        """Return what random weights have: OpenAI's names stand for OpenAI's models."""
        quick = self._is_named_quick or self.name in OPENAI_MODELS
        return Activation.QUICK_GELU if quick else Activation.GELU

    def activation_of_tag(self, tag: str) -> Activation:
        """Return what the tag's weights were trained with."""
        quick = self._is_named_quick or open_clip.get_pretrained_cfg(self.key, tag).get("quick_gelu", False)
        return Activation.QUICK_GELU if quick else Activation.GELU

    def choose_activation(self, asked: Activation | None, said: Activation | None, source: str) -> Activation | None:
        """Return the activation that `source` says, or else the one asked for; None where it is no choice.

        Raises: `WeightsError` where the two or the architecture's name contradict each other, or nothing says it.
        """
        if not self.has_gelu_of_choice:
            if asked is not None:
                raise WeightsError(f"ACTIVATION={asked}, but {self.name} has an activation of its own: leave it auto")
            return None
        if said is not None and asked not in (None, said):
            raise WeightsError(f"ACTIVATION={asked}, but {source} says {said}: leave it auto")
        chosen = said or asked
        if chosen is None:
            if len(self.activations) > 1:
                raise WeightsError(
                    f"{source} doesn't say its activation, and {self.name} is used with "
                    f"{' and with '.join(sorted(self.activations))}: set WORKER_ACTIVATION to that of the training. "
                    f"OpenAI's weights, and those that began as OpenAI's, have {Activation.QUICK_GELU}"
                )
            return next(iter(self.activations))
        if self._is_named_quick and chosen is not Activation.QUICK_GELU:
            who = source if said else "ACTIVATION"
            raise WeightsError(f"{who} says {chosen}, but MODEL={self.name} is {Activation.QUICK_GELU}")
        return chosen

    def build(self, activation: Activation | None) -> nn.Module:
        """Make the image tower alone, with random weights.

        `open_clip.create_model` would make the text tower too, for which some need another package and a download.
        """
        quick = activation is Activation.QUICK_GELU
        try:
            tower: nn.Module = _build_vision_tower(self.dimensions, self.vision, quick)
        except Exception as error:
            raise WeightsError(f"open_clip can't make {self.name}: {type(error).__name__}: {error}") from error
        tower.output_tokens = False  # type: ignore[assignment]  # CoCa's would return its tokens beside the embedding
        return tower

    def build_to_fill(self, activation: Activation | None) -> nn.Module:
        """Make the image tower alone, with whatever numbers its memory holds: all are to be replaced."""
        with _Unfilled():
            return self.build(activation)

    @property
    def default_preprocessing(self) -> Preprocessing:
        """Return open_clip's defaults, at the architecture's own size."""
        return Preprocessing(PreprocessCfg(size=self._size), "open_clip's defaults", _SAID_BY_TAGS)

    def preprocessing_of_tag(self, tag: str) -> Preprocessing:
        """Return what the tag's weights were trained with."""
        return self.default_preprocessing.overlaid(open_clip.get_pretrained_cfg(self.key, tag), f"the tag {tag}")

    @property
    def agreed_preprocessing(self) -> Preprocessing:
        """Return what all pretrained tags say, the twin's included; open_clip's defaults for what they differ in."""
        base = self.key.removesuffix(_TWIN)
        configs = [
            open_clip.get_pretrained_cfg(key, tag)
            for key in (base, base + _TWIN)
            for tag in open_clip.list_pretrained_tags_by_model(key)
        ]
        values = {field: {config[field] for config in configs} for field in _SAID_BY_TAGS}
        agreed = {field: found.pop() for field, found in values.items() if len(found) == 1}
        return (
            self.default_preprocessing.overlaid(agreed, f"the tags of {base}") if agreed else self.default_preprocessing
        )

    @property
    def _size(self) -> int:
        size = self.vision.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        if height != width:
            raise WeightsError(f"{self.name} takes images of {height}×{width}; only square inputs are supported")
        return int(height)


def find_architecture(model: str) -> Architecture:
    """Return the architecture of OpenAI's or open_clip's name.

    Raises: `WeightsError` that says which there are.
    """
    key = OPENAI_MODELS.get(model, model)
    config = open_clip.get_model_config(key) if key in open_clip.list_models() else None
    if config is None:
        raise WeightsError(
            f"MODEL={model} is no architecture: OpenAI's are {', '.join(OPENAI_MODELS)}; open_clip knows "
            f"{len(open_clip.list_models())} more (python -c 'import open_clip; print(open_clip.list_models())')"
        )
    return Architecture(model, key, config)


class _Unfilled(TorchFunctionMode):
    """Leave out what fills a tensor with random numbers: half a second for ViT-B/32, four for ViT-L/14."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - as the function returns
        named = kwargs or {}
        if function.__name__ in _FILLING:
            return args[0] if args else named["tensor"]
        return function(*args, **named)


def _check(config: PreprocessCfg) -> None:
    for channels in (config.mean, config.std):
        if len(channels) != len("RGB") or not all(isinstance(value, int | float) for value in channels):
            raise ValueError(f"mean and std are three numbers each, not {channels}")
    if 0 in config.std:
        raise ValueError("a deviation is 0")
    if config.interpolation not in ("bicubic", "bilinear"):
        raise ValueError(f"an interpolation is bicubic or bilinear, not {config.interpolation}")
    if config.resize_mode not in ("shortest", "longest", "squash"):
        raise ValueError(f"a resize mode is shortest, longest or squash, not {config.resize_mode}")
