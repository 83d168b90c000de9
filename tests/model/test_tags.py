"""Pretrained tags without a network: out of Hugging Face's cache, or one error that says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.model import families
from worker.architectures import Activation
from worker.weights import fingerprint, load_model

COMMIT = "0" * 40


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def _folder_in(cache: Path, architecture: str, tag: str) -> Path:
    """Make the place in the cache where the tag's file lies once it has been downloaded."""
    repository = open_clip.get_pretrained_cfg(architecture, tag)["hf_hub"].rstrip("/")
    kept = cache / f"models--{repository.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    (kept / "snapshots" / COMMIT).mkdir(parents=True)
    return kept / "snapshots" / COMMIT


def _weights(architecture: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {name: tensor.contiguous() for name, tensor in open_clip.create_model(architecture).state_dict().items()}


@pytest.mark.parametrize(
    ("architecture", "tag", "activation", "mean"),
    [
        (families.VIT, "openai", Activation.QUICK_GELU, 0.48145466),
        (families.VIT, "laion2b_s34b_b79k", Activation.GELU, 0.48145466),
        (families.SIGLIP, "webli", None, 0.5),
        (families.MOBILECLIP, "dfndr2b", None, 0.0),
    ],
)
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_tag_is_loaded_from_the_cache_with_what_it_says(
    architecture: str, tag: str, activation: Activation | None, mean: float, name: str, cache: Path
) -> None:
    tensors = _weights(architecture)
    path = _folder_in(cache, architecture, tag) / name
    save_file(tensors, path) if name.endswith(".safetensors") else torch.save(tensors, path)
    expected = open_clip.create_model(architecture)
    expected.load_state_dict(tensors)

    model = load_model(architecture, tag)

    assert model.name == f"{architecture}:{tag}:{fingerprint(expected.visual)}"
    assert model.activation is activation
    assert model.input.mean[0] == mean
    assert model.preprocessing.source == f"the tag {tag}"


def test_a_tag_of_a_model_with_a_text_tower_of_transformers_needs_only_the_image_tower(cache: Path) -> None:
    architecture, tag = "xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"
    random = load_model(architecture, "random")
    path = _folder_in(cache, architecture, tag) / "open_clip_model.safetensors"
    save_file(random.tower.state_dict(prefix="visual.") | {"text.transformer.x": torch.zeros(1)}, path)

    model = load_model(architecture, tag)

    assert model.name == f"{architecture}:{tag}:{fingerprint(random.tower)}"


def test_offline_the_error_is_one_line_with_the_cache_and_the_local_way(tmp_path: Path) -> None:
    script = "from worker.weights import load_model; load_model('ViT-B/32', 'openai')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}

    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)

    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"worker.errors.WeightsError: the weights openai of ViT-B-32 can't be had: not in the cache {tmp_path}, "
        f"and with HF_HUB_OFFLINE nothing is downloaded: "
    )
    assert last.endswith("Give a local file instead: WORKER_WEIGHTS=/path/to/weights.safetensors (or .pt, .bin)")
