"""A name with a tag, a file or `random` -> the image tower in memory, with its fingerprint."""

import hashlib
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import open_clip
import torch
from huggingface_hub import constants
from open_clip.convert import convert_state_dict
from open_clip.model import CLIPVisionCfg
from open_clip.pretrained import download_pretrained
from open_clip.transform import image_transform_v2
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from worker.architectures import Activation, Architecture, Preprocessing, find_architecture
from worker.checkpoints import FILE_SUFFIXES, Checkpoint, Tensors, find_file, read_checkpoint, some
from worker.errors import WeightsError
from worker.fit import Geometry
from worker.hugging_face import HuggingFaceTower, is_hugging_face, preprocessing_said
from worker.records import ModelInput

RANDOM = "random"
_SEED = 0
_FINGERPRINT_DIGITS = 12
_VISUAL = "visual."

# Fields of open_clip's vision_cfg that training alone looks at, or that change no number.
_NOT_COMPARED = {"patch_dropout", "timm_drop", "timm_drop_path", "timm_model_pretrained", "output_tokens"}


@dataclass(frozen=True, slots=True)
class Model:
    """An image tower, fp32 on the CPU, in evaluation mode.

    `tower` maps float32 [N, 3, R, R], normalised, to float32 [N, D]; D is `dimensions`. `geometry` is
    open_clip's own transform up to the pixels. `name` is architecture, weights and fingerprint.
    `activation` is the tower's, where it is a choice. `preprocessing` says where `input` comes from.
    """

    tower: nn.Module
    name: str
    dimensions: int
    activation: Activation | None
    preprocessing: Preprocessing
    input: ModelInput
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class _Source:
    """Weights under the name that the output tells, and what is said of the model where they come from.

    `checkpoint` is None where they are to be random.
    """

    name: str
    said_by: str
    checkpoint: Checkpoint | None
    activation: Activation | None
    preprocessing: Preprocessing
    hugging_face: HuggingFaceTower | None = None


def load_model(model: str, weights: str, activation: Activation | None = None) -> Model:
    """Load the image tower of `model` with `weights`: a pretrained tag, a local file or folder, or `random`.

    `activation` is needed where nothing else says it, and must not contradict what does.
    Raises: `WeightsError` that says what was tried, what doesn't fit, and how to give a local file.
    """
    architecture = find_architecture(model)
    source = _find_source(architecture, weights)
    chosen = architecture.choose_activation(activation, source.activation, source.said_by)
    if source.checkpoint is None:
        torch.manual_seed(_SEED)
        tower = architecture.build(chosen)
    else:
        tower = architecture.build_to_fill(chosen)
    if source.hugging_face is not None and source.hugging_face.is_siglip:
        source.hugging_face.set_gelu(tower)
    if source.checkpoint is not None:
        _fill(tower, source.checkpoint)
    tower = tower.eval().requires_grad_(requires_grad=False)
    return Model(
        tower,
        f"{model}:{source.name}:{fingerprint(tower)}",
        architecture.dimensions,
        chosen,
        source.preprocessing,
        _input(source.preprocessing),
        _geometry(source.preprocessing),
    )


def fingerprint(tower: nn.Module) -> str:
    """Return the first 12 hex digits of the SHA-256 over the tower's tensors.

    For each of open_clip's names (`visual.conv1.weight`), sorted: the name, a NUL byte, the shape as
    decimal numbers separated by commas, a NUL byte, the values as float32 little-endian. Equal weights
    have equal fingerprints, whatever file they came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict(prefix=_VISUAL).items()):
        digest.update(f"{name}\0{','.join(map(str, tensor.shape))}\0".encode())
        digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


def _find_source(architecture: Architecture, weights: str) -> _Source:
    if weights == RANDOM:
        untrained = architecture.activation_untrained
        return _Source(RANDOM, f"WEIGHTS={RANDOM}", None, untrained, architecture.agreed_preprocessing)
    if weights in architecture.tags:
        return _tag(architecture, weights)
    path = find_file(Path(weights).expanduser())
    if path is None:
        raise WeightsError(
            f"WEIGHTS={weights} is neither a file nor a pretrained tag of {architecture.key} "
            f"({', '.join(architecture.tags) or 'which has none'}) nor {RANDOM}; "
            f"a local file ends in {', '.join(FILE_SUFFIXES)}"
        )
    return _file(architecture, read_checkpoint(path))


def _tag(architecture: Architecture, tag: str) -> _Source:
    """Download the tag's file, or take it from the cache: the image tower needs nothing else of it."""
    try:
        with _open_clip_unheard():
            path = Path(download_pretrained(open_clip.get_pretrained_cfg(architecture.key, tag)))
    except Exception as error:
        tried = "with HF_HUB_OFFLINE nothing is downloaded" if constants.HF_HUB_OFFLINE else "the download failed"
        said = " ".join(str(error).split()).rstrip(".")
        raise WeightsError(
            f"the weights {tag} of {architecture.key} can't be had: not in the cache {constants.HF_HUB_CACHE}, and "
            f"{tried}: {said}. Give a local file instead: WORKER_WEIGHTS=/path/to/weights.safetensors (or .pt, .bin)"
        ) from error
    checkpoint = read_checkpoint(path)
    activation = architecture.activation_of_tag(tag)
    return _Source(tag, f"the tag {tag}", checkpoint, activation, architecture.preprocessing_of_tag(tag))


@contextmanager
def _open_clip_unheard() -> Iterator[None]:
    """Drop what open_clip writes to the root logger on its way: what matters of it is returned or raised."""
    root = logging.getLogger()

    def by_others(line: logging.LogRecord) -> bool:
        return "open_clip" not in line.pathname

    root.addFilter(by_others)
    try:
        yield
    finally:
        root.removeFilter(by_others)


def _file(architecture: Architecture, checkpoint: Checkpoint) -> _Source:
    """Ask what is closest to the tensors: their own names, then the JSON file beside them."""
    if is_hugging_face(checkpoint.tensors):
        return _hugging_face_folder(architecture, checkpoint)
    if checkpoint.is_openais_archive:
        preprocessing = replace(architecture.default_preprocessing, source="OpenAI's own code", unsaid=())
        said_by = f"OpenAI's archive {checkpoint.path}"
        return _Source(checkpoint.path.name, said_by, checkpoint, Activation.QUICK_GELU, preprocessing)
    if checkpoint.open_clip_config:
        return _open_clip_folder(architecture, checkpoint)
    return _Source(checkpoint.path.name, str(checkpoint.path), checkpoint, None, architecture.agreed_preprocessing)


def _hugging_face_folder(architecture: Architecture, checkpoint: Checkpoint) -> _Source:
    tower = HuggingFaceTower(checkpoint)
    tower.check_fit(architecture)
    preprocessing = architecture.agreed_preprocessing
    if checkpoint.preprocessor_config:
        said_by = f"preprocessor_config.json beside {checkpoint.path}"
        said = preprocessing_said(checkpoint.preprocessor_config, preprocessing.config.size, said_by)
        preprocessing = preprocessing.overlaid(said, said_by)
    converted = replace(checkpoint, tensors=tower.tensors())
    return _Source(checkpoint.path.name, tower.said_by, converted, tower.activation, preprocessing, tower)


def _open_clip_folder(architecture: Architecture, checkpoint: Checkpoint) -> _Source:
    said_by = f"open_clip_config.json beside {checkpoint.path}"
    config = checkpoint.open_clip_config.get("model_cfg", checkpoint.open_clip_config)
    try:
        wrong = _differences(CLIPVisionCfg(**config["vision_cfg"]), architecture.vision)
        if config["embed_dim"] != architecture.dimensions:
            wrong.append(f"embed_dim {config['embed_dim']}, which is {architecture.dimensions}")
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{said_by} has no configuration of a model: {type(error).__name__}: {error}") from error
    if wrong:
        raise WeightsError(f"{said_by} doesn't fit MODEL={architecture.name}: it has {'; '.join(wrong)} there")
    activation = Activation.QUICK_GELU if config.get("quick_gelu", False) else Activation.GELU
    said = checkpoint.open_clip_config.get("preprocess_cfg", {})
    preprocessing = architecture.default_preprocessing.overlaid(said, said_by)
    return _Source(checkpoint.path.name, said_by, checkpoint, activation, preprocessing)


def _differences(said: CLIPVisionCfg, built: CLIPVisionCfg) -> list[str]:
    names = [field.name for field in fields(CLIPVisionCfg) if field.name not in _NOT_COMPARED]
    return [
        f"{name} {getattr(said, name)}, which is {getattr(built, name)}"
        for name in names
        if getattr(said, name) != getattr(built, name)
    ]


def _fill(tower: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the image tower's tensors into `tower`; every name, shape and kind of number must fit."""
    given = _visual_of(tower, checkpoint)
    wanted = tower.state_dict()
    both = wanted.keys() & given.keys()
    not_floats = {name for name in both if wanted[name].is_floating_point() and not given[name].is_floating_point()}
    problems: dict[str, Collection[str]] = {
        "missing": wanted.keys() - given.keys(),
        "unknown": given.keys() - wanted.keys(),
        "of another shape": {
            f"{name} {list(given[name].shape)} instead of {list(wanted[name].shape)}"
            for name in both
            if given[name].shape != wanted[name].shape
        },
        "not floating point": {f"{name} {str(given[name].dtype).removeprefix('torch.')}" for name in not_floats},
        "not finite": {name for name in both - not_floats if not _is_finite(given[name])},
    }
    said = [f"{len(names)} {what}: {some(names)}" for what, names in problems.items() if names]
    if said:
        raise WeightsError(f"{checkpoint.path} doesn't fit the image tower: {'; '.join(said)}")
    tower.load_state_dict(given)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Look at the least and the most, which not a number passes through: a tenth of the time of `isfinite`."""
    return tensor.numel() == 0 or all(bound.isfinite() for bound in tensor.float().aminmax())


def _visual_of(tower: nn.Module, checkpoint: Checkpoint) -> Tensors:
    """Return the image tower's tensors by its own names, after the conversion that open_clip makes as it loads."""
    tensors = convert_state_dict(SimpleNamespace(visual=tower), checkpoint.tensors)  # Apple's first MobileCLIPs
    given = {name.removeprefix(_VISUAL): tensor for name, tensor in tensors.items() if name.startswith(_VISUAL)}
    if not given:
        raise WeightsError(
            f"{checkpoint.path} has no image tower by open_clip's names: none of its {len(tensors)} tensors "
            f"is {_VISUAL}…, but {some(tensors)}"
        )
    return given


def _input(preprocessing: Preprocessing) -> ModelInput:
    config = preprocessing.config
    return ModelInput(config.size, tuple(config.mean), tuple(config.std), config.interpolation, config.resize_mode)


def _geometry(preprocessing: Preprocessing) -> Geometry:
    transform = image_transform_v2(preprocessing.config, is_train=False)
    geometry: Geometry = Compose([step for step in transform.transforms if not _makes_tensors(step)])
    return geometry


def _makes_tensors(step: object) -> bool:
    return isinstance(step, ToTensor | Normalize) or type(step).__name__ == "MaybeToTensor"
