"""Architectures of every family with two layers, as open_clip and timm know the whole ones.

Patches, input size and everything else are those of the real ones; the depth isn't, and the width where it would
take long.
"""

from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import _PRETRAINED
from timm.models import FastVit, VisionTransformer, register_model, vision_transformer
from timm.models.fastvit import fastvit_mci0
from torch import nn
from torch.nn.functional import interpolate

VIT = "two-layer-ViT-B-32"
VIT_QUICK = "two-layer-ViT-B-32-quickgelu"
VIT_336 = "two-layer-ViT-L-14-336-quickgelu"
VIT_SMALL = "two-layer-ViT-S-32"  # no twin: open_clip knows it with GELU only
RESNET = "four-block-RN50"
SIGLIP = "two-layer-SigLIP"
MOBILECLIP = "four-block-MobileCLIP"

NAMES = (VIT, VIT_QUICK, VIT_336, VIT_SMALL, RESNET, SIGLIP, MOBILECLIP)

# Whose pretrained tags each has: what is said there of preprocessing and activation holds for it as well.
_TAGS_OF = {
    VIT: "ViT-B-32",
    VIT_QUICK: "ViT-B-32-quickgelu",
    VIT_336: "ViT-L-14-336-quickgelu",
    RESNET: "RN50",
    SIGLIP: "ViT-B-16-SigLIP",
    MOBILECLIP: "MobileCLIP2-S0",
}
_CONFIGS = Path(__file__).parent / "configs"


def two_layer_siglip_224(*, pretrained: bool = False, **options: object) -> VisionTransformer:
    """Make timm's vit_base_patch16_siglip_224 with two layers of twelve."""
    whole: dict[str, Any] = {
        "patch_size": 16,
        "embed_dim": 768,
        "num_heads": 12,
        "class_token": False,
        "global_pool": "map",
    }
    tower: VisionTransformer = vision_transformer._create_vision_transformer(
        "vit_base_patch16_siglip_224", pretrained=pretrained, depth=2, **(whole | options)
    )
    return tower


def four_block_mci0(*, pretrained: bool = False, **options: object) -> FastVit:
    """Make timm's fastvit_mci0 with one block of each of the four stages."""
    tower: FastVit = fastvit_mci0(pretrained=pretrained, layers=(1, 1, 1, 1), **options)
    return tower


def liven(tower: nn.Module) -> None:
    """Make an untrained network of convolutions tell pictures apart, as a trained one does.

    Untrained, its residual branches are shut (a weight of 0, a scale of 1e-5), and normalisations have the statistics
    of no input: embeddings of all pictures are the same to 4 digits, and hide mistakes.
    """
    image_size: Any = tower.image_size
    size = max(image_size) if isinstance(image_size, tuple) else image_size
    norms = [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.fill_(0.3)
        for name, parameter in tower.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
        tower.train()
        spots = 2 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        tower(interpolate(spots, (size, size), mode="bicubic"))
        tower.eval()


def register() -> None:
    """Make them known."""
    register_model(two_layer_siglip_224)
    register_model(four_block_mci0)
    open_clip.add_model_config(_CONFIGS)
    for name, whole in _TAGS_OF.items():
        _PRETRAINED[name] = _PRETRAINED[whole]
