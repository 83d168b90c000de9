"""A name with a tag, a file or `random` -> the image tower in memory, with its fingerprint.

The only module that knows open_clip.
"""

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import open_clip
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from open_clip.model import _build_vision_tower
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn
from torchvision.transforms import Compose, Normalize, ToTensor

from worker.errors import WeightsError
from worker.fit import Geometry
from worker.records import ModelInput

RANDOM = "random"
_SEED = 0

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

# https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/constants.py: what it saves in a folder.
_OWN_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_FINGERPRINT_DIGITS = 12
_LISTED_NAMES = 6


@dataclass(frozen=True, slots=True)
class Model:
    """An image tower, fp32 on the CPU, in evaluation mode.

    `tower` maps float32 [N, 3, R, R], normalised, to float32 [N, D]. `geometry` is open_clip's own
    transform up to the pixels. `name` is architecture, weights and fingerprint.
    """

    tower: nn.Module
    name: str
    input: ModelInput
    geometry: Geometry


def load_model(model: str, weights: str) -> Model:
    """Load the image tower of `model` with `weights`: a pretrained tag, a local file or folder, or `random`.

    Raises: `WeightsError` that says what was tried and how to give a local file.
    """
    architecture = OPENAI_MODELS.get(model, model)
    if architecture not in open_clip.list_models():
        raise WeightsError(
            f"MODEL={model} is no architecture: OpenAI's are {', '.join(OPENAI_MODELS)}; open_clip knows "
            f"{len(open_clip.list_models())} more (python -c 'import open_clip; print(open_clip.list_models())')"
        )
    if weights == RANDOM:
        torch.manual_seed(_SEED)
        tower = _build(architecture, quick_gelu=model in OPENAI_MODELS)
    elif weights in open_clip.list_pretrained_tags_by_model(architecture):
        tower = _load_tag(architecture, weights)
    else:
        path = _find_file(Path(weights).expanduser())
        if path is None:
            raise WeightsError(_say_what_there_is(architecture, weights))
        tower = _build(architecture, quick_gelu=model in OPENAI_MODELS)
        _fill(tower, _read_tensors(path), path)
        weights = path.name
    tower.output_tokens = False  # type: ignore[assignment]  # CoCa's would return its tokens beside the embedding
    tower = tower.eval().requires_grad_(requires_grad=False)
    return _describe(tower, f"{model}:{weights}:{fingerprint(tower)}")


def fingerprint(tower: nn.Module) -> str:
    """Return the first 12 hex digits of the SHA-256 over the tower's tensors.

    For each of open_clip's names (`visual.conv1.weight`), sorted: the name, a NUL byte, the shape as
    decimal numbers separated by commas, a NUL byte, the values as float32 little-endian. Equal weights
    have equal fingerprints, whatever file they came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict(prefix="visual.").items()):
        digest.update(f"{name}\0{','.join(map(str, tensor.shape))}\0".encode())
        digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


def _build(architecture: str, *, quick_gelu: bool) -> nn.Module:
    """Make the image tower alone, with random weights.

    `open_clip.create_model` would make the text tower too, for which some need another package and a download.
    """
    config = open_clip.get_model_config(architecture)
    vision = config["vision_cfg"] | {"timm_model_pretrained": False}
    try:
        tower: nn.Module = _build_vision_tower(
            config["embed_dim"], vision, quick_gelu or config.get("quick_gelu", False)
        )
    except Exception as error:
        raise WeightsError(f"open_clip can't make {architecture}: {type(error).__name__}: {error}") from error
    tower.preprocess_cfg = asdict(PreprocessCfg(size=tower.image_size))  # type: ignore[assignment]
    return tower


def _load_tag(architecture: str, tag: str) -> nn.Module:
    quick_gelu = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    try:
        with _open_clip_unheard():
            clip = open_clip.create_model(architecture, pretrained=tag, force_quick_gelu=quick_gelu)
    except Exception as error:
        raise WeightsError(
            f"the weights {tag} of {architecture} can't be had: tried the cache {HF_HUB_CACHE} and the download, "
            f"which said: {str(error).splitlines()[0].rstrip('.')}. "
            f"Give a local file instead: WORKER_WEIGHTS=/path/to/weights.safetensors (or .pt, .bin)"
        ) from error
    visual: nn.Module = clip.visual
    return visual


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


def _find_file(path: Path) -> Path | None:
    """Return the file, or the one in the folder: the one that open_clip would save there, else the only one.

    Raises: `WeightsError` where the folder has none, or several.
    """
    if not path.is_dir():
        return path if path.is_file() else None
    for name in _OWN_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(file for file in path.iterdir() if file.suffix in _FILE_SUFFIXES)
    if not found:
        raise WeightsError(f"the folder {path} has no file of weights: none ends in {', '.join(_FILE_SUFFIXES)}")
    if len(found) > 1:
        names = _some([file.name for file in found])
        raise WeightsError(f"the folder {path} has several files of weights, {names}: name one of them")
    return found[0]


def _say_what_there_is(architecture: str, weights: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    return (
        f"WEIGHTS={weights} is neither a file nor a pretrained tag of {architecture} "
        f"({', '.join(tags) or 'which has none'}) nor {RANDOM}; "
        f"a local file ends in {', '.join(_FILE_SUFFIXES)}"
    )


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors, a state dict, a training checkpoint or OpenAI's TorchScript archive; never a free pickle."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if _is_torchscript(path):
            script: Mapping[str, torch.Tensor] = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu"
            ).state_dict()
            return dict(script)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{path} can't be read as weights: {type(error).__name__}: {error}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise WeightsError(f"{path} holds no state dict: a map of names to tensors, perhaps under state_dict")
    return content


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file  # noqa: PLC0415 - only where such a file is given

    return load_file(path)


def _is_torchscript(path: Path) -> bool:
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _fill(tower: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put the image tower's tensors into `tower`; every name and shape must fit."""
    unwrapped = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    given = {name.removeprefix("visual."): tensor for name, tensor in unwrapped.items() if name.startswith("visual.")}
    wanted = tower.state_dict()
    wrong = [
        f"{name} {list(given[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if given[name].shape != wanted[name].shape
    ]
    not_finite = [name for name in wanted.keys() & given.keys() if not given[name].isfinite().all()]
    problems: dict[str, Collection[str]] = {
        "missing": wanted.keys() - given.keys(),
        "unknown": given.keys() - wanted.keys(),
        "of another shape": wrong,
        "not finite": not_finite,
    }
    said = [f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
    if said:
        raise WeightsError(f"{path} doesn't fit the image tower: {'; '.join(said)}")
    tower.load_state_dict(given)


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:_LISTED_NAMES]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")


def _describe(tower: nn.Module, name: str) -> Model:
    config = PreprocessCfg(**tower.preprocess_cfg)  # type: ignore[arg-type]  # open_clip sets a dict
    height, width = config.size if isinstance(config.size, tuple) else (config.size, config.size)
    if height != width:
        raise WeightsError(f"{name} takes images of {height}×{width}; only square inputs are supported")
    transform = image_transform_v2(config, is_train=False)
    geometry = Compose([step for step in transform.transforms if not _makes_tensors(step)])
    model_input = ModelInput(height, tuple(config.mean), tuple(config.std), config.interpolation, config.resize_mode)
    return Model(tower, name, model_input, geometry)


def _makes_tensors(step: object) -> bool:
    return isinstance(step, ToTensor | Normalize) or type(step).__name__ == "MaybeToTensor"
