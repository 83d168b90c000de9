"""Two second opinions on embeddings, with the same seeded weights: open_clip's own path, and transformers.

Nothing of the worker's is used here: the tensors are renamed for transformers once more, by another way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel
from transformers.utils.constants import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from tests.model.families import liven

Embeddings = npt.NDArray[np.float32]
Oracle = Callable[[Sequence[Image.Image]], Embeddings]
Transform = Callable[[Image.Image], torch.Tensor]

TOLERANCE = 1e-5
SEED = 0  # that of WEIGHTS=random
_BATCH = 8


def open_clips(architecture: str, tag: str | None = None) -> Oracle:
    """Embed with open_clip's own model and transform; the input is as the tag has it."""
    clip, transform = _open_clip(architecture, tag)
    return lambda images: _embed(clip.encode_image, torch.stack([transform(image) for image in images]))


def transformers_clip(architecture: str, heads: int) -> Oracle:
    """Embed with transformers' CLIP, and scale the cropped pixels as its image processor does."""
    clip, transform = _open_clip(architecture)
    visual = clip.visual.state_dict()
    width, _, patch, _ = visual["conv1.weight"].shape
    model: Any = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=visual["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            num_hidden_layers=len(clip.visual.transformer.resblocks),
            num_attention_heads=heads,
            image_size=clip.visual.image_size[0],
            patch_size=patch,
            projection_dim=visual["proj"].shape[1],
            hidden_act="quick_gelu" if architecture.endswith("-quickgelu") else "gelu",
        )
    )
    model.eval()
    model.load_state_dict(
        {"visual_projection.weight": visual["proj"].T}
        | {f"vision_model.{name}": tensor for name, tensor in _clip_tensors(visual)}
    )
    scale = _scaler(transform, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    return lambda images: _embed(lambda pixels: model(pixels).image_embeds, scale(images))


def transformers_siglip(architecture: str, tag: str, heads: int, hidden_act: str) -> Oracle:
    """Embed with transformers' SigLIP. timm has the exact GELU where `hidden_act` is gelu."""
    clip, transform = _open_clip(architecture, tag)
    trunk = clip.visual.trunk
    visual = trunk.state_dict()
    width, _, patch, _ = visual["patch_embed.proj.weight"].shape
    model: Any = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=visual["blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=len(trunk.blocks),
            num_attention_heads=heads,
            image_size=clip.visual.image_size[0],
            patch_size=patch,
            hidden_act=hidden_act,
        )
    )
    model.eval()
    model.load_state_dict(dict(_siglip_tensors(visual)))
    scale = _scaler(transform, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
    return lambda images: _embed(lambda pixels: model(pixels).pooler_output, scale(images))


def assert_equal(found: Embeddings, expected: Embeddings) -> None:
    """Compare absolutely and relatively: values reach 4, and a cosine hides mistakes under random weights."""
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def centred_cosine(found: Embeddings, expected: Embeddings) -> npt.NDArray[np.float64]:
    """Return the cosine of each pair after the mean of the set is subtracted: what pictures have in common hides."""
    centre = expected.mean(axis=0, dtype=np.float64)
    a, b = found - centre, expected - centre
    cosine: npt.NDArray[np.float64] = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosine


def _open_clip(architecture: str, tag: str | None = None) -> tuple[Any, Any]:
    torch.manual_seed(SEED)
    said = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    clip, _, transform = open_clip.create_model_and_transforms(
        architecture,
        image_mean=said.get("mean"),
        image_std=said.get("std"),
        image_interpolation=said.get("interpolation"),
        image_resize_mode=said.get("resize_mode"),
    )
    liven(clip.visual)
    return clip.eval(), transform


def _embed(embed: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> Embeddings:
    with torch.inference_mode():
        embeddings: Embeddings = torch.cat(
            [embed(images[at : at + _BATCH]) for at in range(0, len(images), _BATCH)]
        ).numpy()
    return embeddings


def _scaler(
    transform: Transform, mean: list[float], std: list[float]
) -> Callable[[Sequence[Image.Image]], torch.Tensor]:
    """Take open_clip's pixels, before it normalises them, and normalise them by transformers' own constants."""
    on_images = transform.transforms[:-2]  # type: ignore[attr-defined]  # less ToTensor and Normalize

    def scale(images: Sequence[Image.Image]) -> torch.Tensor:
        for step in on_images:
            images = [step(image) for image in images]
        pixels = np.stack([np.asarray(image) for image in images]).astype(np.float64) / 255
        normalised = (pixels - np.array(mean)) / np.array(std)
        return torch.from_numpy(normalised.transpose(0, 3, 1, 2).astype(np.float32))

    return scale


def _clip_tensors(visual: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    renamed = [
        ("embeddings.class_embedding", visual["class_embedding"]),
        ("embeddings.patch_embedding.weight", visual["conv1.weight"]),
        ("embeddings.position_embedding.weight", visual["positional_embedding"]),
    ]
    for kind in ("weight", "bias"):
        renamed += [(f"pre_layrnorm.{kind}", visual[f"ln_pre.{kind}"])]
        renamed += [(f"post_layernorm.{kind}", visual[f"ln_post.{kind}"])]
        for layer in range(sum(name.endswith("in_proj_bias") for name in visual)):
            theirs, ours = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            q, k, v = visual[f"{ours}.attn.in_proj_{kind}"].chunk(3)
            renamed += [
                (f"{theirs}.self_attn.q_proj.{kind}", q),
                (f"{theirs}.self_attn.k_proj.{kind}", k),
                (f"{theirs}.self_attn.v_proj.{kind}", v),
                (f"{theirs}.self_attn.out_proj.{kind}", visual[f"{ours}.attn.out_proj.{kind}"]),
                (f"{theirs}.layer_norm1.{kind}", visual[f"{ours}.ln_1.{kind}"]),
                (f"{theirs}.layer_norm2.{kind}", visual[f"{ours}.ln_2.{kind}"]),
                (f"{theirs}.mlp.fc1.{kind}", visual[f"{ours}.mlp.c_fc.{kind}"]),
                (f"{theirs}.mlp.fc2.{kind}", visual[f"{ours}.mlp.c_proj.{kind}"]),
            ]
    return renamed


def _siglip_tensors(visual: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    renamed = [
        ("embeddings.position_embedding.weight", visual["pos_embed"][0]),
        ("head.probe", visual["attn_pool.latent"]),
    ]
    for kind in ("weight", "bias"):
        pool = torch.cat([visual[f"attn_pool.q.{kind}"], visual[f"attn_pool.kv.{kind}"]])
        renamed += [
            (f"embeddings.patch_embedding.{kind}", visual[f"patch_embed.proj.{kind}"]),
            (f"post_layernorm.{kind}", visual[f"norm.{kind}"]),
            (f"head.attention.in_proj_{kind}", pool),
            (f"head.attention.out_proj.{kind}", visual[f"attn_pool.proj.{kind}"]),
            (f"head.layernorm.{kind}", visual[f"attn_pool.norm.{kind}"]),
            (f"head.mlp.fc1.{kind}", visual[f"attn_pool.mlp.fc1.{kind}"]),
            (f"head.mlp.fc2.{kind}", visual[f"attn_pool.mlp.fc2.{kind}"]),
        ]
        for layer in range(sum(name.endswith("attn.qkv.bias") for name in visual)):
            theirs, ours = f"encoder.layers.{layer}", f"blocks.{layer}"
            q, k, v = visual[f"{ours}.attn.qkv.{kind}"].chunk(3)
            renamed += [
                (f"{theirs}.self_attn.q_proj.{kind}", q),
                (f"{theirs}.self_attn.k_proj.{kind}", k),
                (f"{theirs}.self_attn.v_proj.{kind}", v),
                (f"{theirs}.self_attn.out_proj.{kind}", visual[f"{ours}.attn.proj.{kind}"]),
                (f"{theirs}.layer_norm1.{kind}", visual[f"{ours}.norm1.{kind}"]),
                (f"{theirs}.layer_norm2.{kind}", visual[f"{ours}.norm2.{kind}"]),
                (f"{theirs}.mlp.fc1.{kind}", visual[f"{ours}.mlp.fc1.{kind}"]),
                (f"{theirs}.mlp.fc2.{kind}", visual[f"{ours}.mlp.fc2.{kind}"]),
            ]
    return renamed
