"""What weights come from, and that they are the same model wherever they come from."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.model import families
from worker.architectures import Activation
from worker.encoder import Encoder
from worker.errors import WeightsError
from worker.records import ModelInput
from worker.weights import fingerprint, load_model

ARCHITECTURE = families.VIT_SMALL
SEED = 7

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    torch.manual_seed(SEED)
    return {name: tensor.contiguous() for name, tensor in open_clip.create_model(ARCHITECTURE).state_dict().items()}


def _save_safetensors(tensors: Tensors, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file(tensors, path)
    return path


def _save_state_dict(tensors: Tensors, folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save(tensors, path)
    return path


def _save_training_checkpoint(tensors: Tensors, folder: Path) -> Path:
    path = folder / "epoch_3.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    return path


class _Held(torch.nn.Module):
    """A module that holds tensors by their dotted names, as OpenAI's archives do."""

    def hold(self, name: str, tensor: torch.Tensor) -> None:
        first, _, rest = name.partition(".")
        if not rest:
            self.register_buffer(first, tensor)
            return
        if first not in self._modules:
            self.add_module(first, _Held())
        self._modules[first].hold(rest, tensor)  # type: ignore[operator,union-attr]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def _save_torchscript(tensors: Tensors, folder: Path) -> Path:
    held = _Held()
    for name, tensor in tensors.items():
        held.hold(name, tensor)
    path = folder / "archive.pt"
    torch.jit.script(held).save(str(path))  # type: ignore[no-untyped-call]
    return path


@pytest.mark.parametrize("save", [_save_safetensors, _save_state_dict, _save_training_checkpoint, _save_torchscript])
def test_the_same_weights_have_the_same_fingerprint_in_every_file_format(
    save: Callable[[Tensors, Path], Path], tensors: Tensors, tmp_path: Path
) -> None:
    clip = open_clip.create_model(ARCHITECTURE)
    clip.load_state_dict(tensors)
    path = save(tensors, tmp_path)

    model = load_model(ARCHITECTURE, str(path))

    assert model.name == f"{ARCHITECTURE}:{path.name}:{fingerprint(clip.visual)}"


def test_a_weight_that_differs_in_its_last_bit_changes_the_fingerprint(tensors: Tensors) -> None:
    clip = open_clip.create_model(ARCHITECTURE)
    clip.load_state_dict(tensors)
    before = fingerprint(clip.visual)

    with torch.no_grad():
        clip.visual.proj[0, 0] = torch.nextafter(clip.visual.proj[0, 0], torch.tensor(9.0))

    assert fingerprint(clip.visual) != before


def test_random_weights_are_open_clips_with_seed_0_and_quickgelu_for_openais_name() -> None:
    torch.manual_seed(0)
    expected = open_clip.create_model("ViT-B-32-quickgelu").visual

    model = load_model("ViT-B/32", "random")

    assert model.name == f"ViT-B/32:random:{fingerprint(expected)}"
    assert any(type(module).__name__ == "QuickGELU" for module in model.tower.modules())


def test_open_clips_own_name_has_no_quickgelu() -> None:
    model = load_model("ViT-B-32", "random")

    assert not any(type(module).__name__ == "QuickGELU" for module in model.tower.modules())


def test_the_fingerprint_of_untrained_weights_is_as_ever() -> None:
    assert load_model("ViT-B/32", "random").name == "ViT-B/32:random:e5831423c781"


@pytest.mark.parametrize("architecture", ["RN50", "MobileCLIP-S1", "ViT-S-32-alt"])
def test_the_image_tower_alone_is_the_one_that_open_clip_makes(architecture: str) -> None:
    torch.manual_seed(0)
    expected = open_clip.create_model(architecture).visual

    model = load_model(architecture, "random")

    assert model.name.endswith(fingerprint(expected))
    assert str(model.tower) == str(expected)


@pytest.mark.parametrize(
    "architecture", ["coca_ViT-B-32", "xlm-roberta-base-ViT-B-32"], ids=["CoCa", "text of transformers"]
)
def test_a_model_whose_text_tower_is_of_another_kind_embeds_images(architecture: str) -> None:
    model = load_model(architecture, "random")

    encoder = Encoder(model, "cpu", "fp32", normalized=False)
    side = model.input.size
    embeddings = encoder.encode(np.zeros((2, side, side, 3), np.uint8), np.empty((0, side, side, 3), np.float32))

    assert embeddings.shape == (2, 512)


def _folder_of(tensors: Tensors, folder: Path, *names: str) -> Path:
    for name in names:
        save_file(tensors, folder / name) if name.endswith(".safetensors") else torch.save(tensors, folder / name)
    return folder


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (
            ("open_clip_pytorch_model.bin", "open_clip_model.safetensors", "model.safetensors"),
            "open_clip_model.safetensors",
        ),
        (("open_clip_pytorch_model.bin", "pytorch_model.bin"), "open_clip_pytorch_model.bin"),
        (("mine.pt",), "mine.pt"),
    ],
)
def test_weights_may_be_a_folder(names: tuple[str, ...], taken: str, tensors: Tensors, tmp_path: Path) -> None:
    folder = _folder_of(tensors, tmp_path, *names)
    (folder / "README.md").touch()

    model = load_model(ARCHITECTURE, str(folder))

    assert model.name == load_model(ARCHITECTURE, str(folder / taken)).name


def test_a_folder_with_several_weights_is_refused_with_what_is_in_it(tensors: Tensors, tmp_path: Path) -> None:
    folder = _folder_of(tensors, tmp_path, "a.pt", "b.pt")

    with pytest.raises(WeightsError, match=r"has several files of weights, a\.pt, b\.pt: name one of them"):
        load_model(ARCHITECTURE, str(folder))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no file of weights: none ends in \.safetensors, \.pt"):
        load_model(ARCHITECTURE, str(tmp_path))


def test_an_unknown_architecture_is_named_with_those_there_are() -> None:
    with pytest.raises(WeightsError, match=r"MODEL=ViT-B/33 is no architecture: OpenAI's are RN50, .*ViT-B/32"):
        load_model("ViT-B/33", "random")


def test_unknown_weights_are_named_with_the_tags_there_are() -> None:
    with pytest.raises(WeightsError, match=r"WEIGHTS=no/such\.pt is neither a file nor a pretrained tag .*openai, "):
        load_model("ViT-B/32", "no/such.pt")


def test_weights_that_can_not_be_downloaded_are_told_with_the_cache_and_the_local_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(WeightsError, match=r"weights openai of ViT-B-32 .*HF_HUB_OFFLINE .*WORKER_WEIGHTS=/path/to"):
        load_model("ViT-B/32", "openai")


def test_weights_of_another_architecture_are_refused_with_what_does_not_fit(tensors: Tensors, tmp_path: Path) -> None:
    path = _save_state_dict(tensors, tmp_path)

    with pytest.raises(WeightsError, match=r"doesn't fit the image tower: .*of another shape: class_embedding \[384\]"):
        load_model("ViT-B/32", str(path), Activation.QUICK_GELU)


def test_missing_unknown_and_not_finite_tensors_are_listed(tensors: Tensors, tmp_path: Path) -> None:
    odd = dict(tensors)
    odd["visual.extra"] = torch.zeros(1)
    del odd["visual.proj"]
    odd["visual.class_embedding"] = torch.full_like(odd["visual.class_embedding"], float("nan"))
    path = _save_safetensors(odd, tmp_path)

    with pytest.raises(WeightsError, match=r"1 missing: proj; 1 unknown: extra; 1 not finite: class_embedding"):
        load_model(ARCHITECTURE, str(path))


def _with_wrappers(tensors: Tensors) -> Tensors:
    return {f"_orig_mod.module.{name}": tensor for name, tensor in tensors.items()}


def _in_half(tensors: Tensors) -> Tensors:
    return {name: tensor.half() for name, tensor in tensors.items()}


def _in_bfloat16(tensors: Tensors) -> Tensors:
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def test_names_that_training_wrapped_are_unwrapped(tensors: Tensors, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = load_model(ARCHITECTURE, str(_save_state_dict(tensors, tmp_path / "plain")))

    wrapped = load_model(ARCHITECTURE, str(_save_state_dict(_with_wrappers(tensors), tmp_path)))

    assert wrapped.name == plain.name


@pytest.mark.parametrize("shorten", [_in_half, _in_bfloat16])
def test_shorter_floats_become_fp32(shorten: Callable[[Tensors], Tensors], tensors: Tensors, tmp_path: Path) -> None:
    short = shorten(tensors)

    model = load_model(ARCHITECTURE, str(_save_safetensors(short, tmp_path)))

    proj = model.tower.state_dict()["proj"]
    assert proj.dtype == torch.float32
    assert torch.equal(proj, short["visual.proj"].float())


def test_whole_numbers_and_truth_values_where_floats_belong_are_an_error(tensors: Tensors, tmp_path: Path) -> None:
    odd = tensors | {
        "visual.proj": tensors["visual.proj"].to(torch.int8),
        "visual.class_embedding": tensors["visual.class_embedding"] > 0,
    }

    with pytest.raises(WeightsError, match="2 not floating point: class_embedding bool, proj int8"):
        load_model(ARCHITECTURE, str(_save_safetensors(odd, tmp_path)))


def test_a_file_of_a_text_tower_alone_says_so(tensors: Tensors, tmp_path: Path) -> None:
    text = {name: tensor for name, tensor in tensors.items() if not name.startswith("visual.")}

    with pytest.raises(WeightsError, match=r"has no image tower .*none of its \d+ tensors is visual\.…"):
        load_model(ARCHITECTURE, str(_save_safetensors(text, tmp_path)))


OPENAIS_NUMBERS = {name: torch.tensor(value) for name, value in (("input_resolution", 224), ("context_length", 77))}


def test_openais_own_archive_has_quickgelu_and_openais_preprocessing(tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    tensors = dict(open_clip.create_model(families.VIT_QUICK).state_dict())
    path = _save_torchscript(tensors | OPENAIS_NUMBERS | {"vocab_size": torch.tensor(64)}, tmp_path)

    model = load_model(families.VIT, str(path))

    assert model.activation is Activation.QUICK_GELU
    assert "QuickGELU" in str(model.tower)
    assert model.preprocessing.source == "OpenAI's own code"
    assert model.preprocessing.unsaid == ()


@pytest.mark.parametrize("save", [_save_safetensors, _save_state_dict, _save_training_checkpoint, _save_torchscript])
def test_a_file_that_does_not_say_its_activation_needs_the_setting(
    save: Callable[[Tensors, Path], Path], tmp_path: Path
) -> None:
    path = save(dict(open_clip.create_model(families.VIT).state_dict()), tmp_path)

    with pytest.raises(WeightsError, match=r"doesn't say its activation, .* set WORKER_ACTIVATION"):
        load_model(families.VIT, str(path))

    assert load_model(families.VIT, str(path), Activation.GELU).activation is Activation.GELU
    assert load_model(families.VIT, str(path), Activation.QUICK_GELU).activation is Activation.QUICK_GELU


def _open_clip_folder(folder: Path, config: dict[str, object]) -> Path:
    save_file(dict(open_clip.create_model(families.VIT).state_dict()), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("architecture", "activation"), [(families.VIT, "gelu"), (families.VIT_QUICK, "quick_gelu")])
def test_a_folder_of_open_clips_says_activation_and_preprocessing(
    architecture: str, activation: str, tmp_path: Path
) -> None:
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": preprocessing}

    model = load_model(families.VIT, str(_open_clip_folder(tmp_path, config)))

    assert model.activation == activation
    assert model.input == ModelInput(224, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "shortest")
    assert model.preprocessing.unsaid == ("resize_mode",)


def test_a_folder_of_open_clips_of_another_architecture_is_told_with_both(tmp_path: Path) -> None:
    config = open_clip.get_model_config(families.VIT)
    config["vision_cfg"]["head_width"] = 32

    with pytest.raises(WeightsError, match=r"doesn't fit MODEL=two-layer-ViT-B-32: it has head_width 32, which is 64"):
        load_model(families.VIT, str(_open_clip_folder(tmp_path, {"model_cfg": config})))


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a pickle from a stranger ran",))


def test_a_pickle_that_would_run_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": _Bomb()}, path)

    with pytest.raises(WeightsError, match="can't be read as weights"):
        load_model(ARCHITECTURE, str(path))

    assert capsys.readouterr().out == ""
