"""A file or folder of weights -> its tensors by open_clip's names, and what stands beside them about the model.

Never through a free pickle: safetensors, torch's weights-only unpickler, and OpenAI's TorchScript archive.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch

from worker.errors import WeightsError

Tensors = dict[str, torch.Tensor]

# What open_clip saves in a folder, then what transformers does, whole or in shards.
# https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/constants.py
# https://github.com/huggingface/transformers/blob/main/src/transformers/utils/__init__.py
_KNOWN_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = ".index.json"
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

# What open_clip, and what transformers, save beside the weights.
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_HUGGING_FACE_CONFIG = "config.json"
_HUGGING_FACE_PREPROCESSOR = "preprocessor_config.json"

# Numbers that OpenAI's archives have among their tensors, and nobody else's.
_OPENAI_ONLY = frozenset({"input_resolution", "context_length", "vocab_size"})
# DistributedDataParallel and torch.compile put these in front of every name.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_LISTED_NAMES = 6


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors by the names in the file, wrappers removed; the JSON files beside it, empty where there are none."""

    path: Path
    tensors: Tensors
    open_clip_config: Mapping[str, Any] = field(default_factory=dict)
    hugging_face_config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor_config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_openais_archive(self) -> bool:
        """Return whether it is, or was made of, one of OpenAI's own."""
        return self.tensors.keys() >= _OPENAI_ONLY


def find_file(path: Path) -> Path | None:
    """Return the file, or the one in the folder: the first of the known names, else the only one.

    Raises: `WeightsError` where the folder has none, or several.
    """
    if not path.is_dir():
        return path if path.is_file() else None
    for name in _KNOWN_NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(file for file in path.iterdir() if file.suffix in FILE_SUFFIXES and file.is_file())
    if not found:
        raise WeightsError(f"the folder {path} has no file of weights: none ends in {', '.join(FILE_SUFFIXES)}")
    if len(found) > 1:
        names = some([file.name for file in found])
        raise WeightsError(f"the folder {path} has several files of weights, {names}: name one of them")
    return found[0]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that `find_file` found, and what stands beside it.

    Raises: `WeightsError` where it can't be read without running code that it brings, or holds no tensors.
    """
    tensors = _read_shards(path) if path.name.endswith(_INDEX) else _read_tensors(path)
    unwrapped = {_WRAPPERS.sub("", name): tensor for name, tensor in tensors.items()}
    return Checkpoint(
        path,
        unwrapped,
        open_clip_config=_read_json(path.parent / _OPEN_CLIP_CONFIG),
        hugging_face_config=_read_json(path.parent / _HUGGING_FACE_CONFIG),
        preprocessor_config=_read_json(path.parent / _HUGGING_FACE_PREPROCESSOR),
    )


def some(names: Collection[str]) -> str:
    """Return the first of the names, sorted, as a message has room for them."""
    shown = sorted(names)[:_LISTED_NAMES]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")


def _read_shards(index: Path) -> Tensors:
    """Read the files that the index names; each tensor must be in the one that it is said to be in."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{index} names no files: it has no weight_map of tensors to their files")
    tensors: Tensors = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise WeightsError(f"{index} names {name}, which is no file beside it")
        tensors |= _read_tensors(index.parent / name)
    if missing := places.keys() - tensors.keys():
        raise WeightsError(f"the shards of {index} lack {len(missing)} tensors that it names: {some(missing)}")
    return tensors


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # a UnicodeDecodeError is one too
        raise WeightsError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no JSON object")
    return content


def _read_tensors(path: Path) -> Tensors:
    """Read safetensors, a state dict, a training checkpoint or a TorchScript archive."""
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
        said = str(error).partition("\n")[0]
        raise WeightsError(f"{path} can't be read as weights: {type(error).__name__}: {said}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise WeightsError(f"{path} holds no state dict: a map of names to tensors, perhaps under state_dict")
    return content


def _read_safetensors(path: Path) -> Tensors:
    from safetensors.torch import load_file  # noqa: PLC0415 - only where such a file is given

    return load_file(path)


def _is_torchscript(path: Path) -> bool:
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
