"""Tiny vision transformer of timm, with or without its pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from codeq.common.checks import at_least
from codeq.common.errors import CodeqError
from codeq.models.weights import checkpoint_path, loading_weights

ARCHITECTURE = "vit_tiny_patch16_224"
PRETRAINED = f"{ARCHITECTURE}.augreg_in21k_ft_in1k"
HUB_ID = f"timm/{PRETRAINED}"
HUB_FILE = "model.safetensors"


def vit(num_classes: int = 1000, pretrained: bool = False, img_size: int = 224, patch_size: int = 16) -> nn.Module:
    """Build timm's ``vit_tiny_patch16_224``: 12 blocks of 192 channels and 3 heads.

    Parameters
    ----------
    num_classes : int
        Number of outputs; with pretrained weights and another number than 1000, the classifier is a new one.
    pretrained : bool
        Whether to start from ``vit_tiny_patch16_224.augreg_in21k_ft_in1k``; position embeddings and patch filters are
        interpolated where `img_size` or `patch_size` differ from 224 and 16.
    img_size : int
        Height and width of the images, in pixels; a multiple of `patch_size`. The model accepts no other size.
    patch_size : int
        Height and width of a patch, in pixels: ``(img_size / patch_size)² + 1`` tokens.

    Raises
    ------
    CodeqError
        For sizes that do not fit together, and if the pretrained weights are missing and cannot be downloaded, or their
        file is damaged.

    Examples
    --------
    >>> import torch
    >>> vit(num_classes=10, img_size=32, patch_size=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    img_size = at_least("img_size", img_size, 1, " (pixels)")
    patch_size = at_least("patch_size", patch_size, 1, " (pixels)")
    if img_size % patch_size:
        raise CodeqError(f"img_size={img_size}: must be a multiple of patch_size={patch_size} (pixels)")
    import timm  # takes seconds to import, needed by this network only

    sizes: dict[str, Any] = {"num_classes": num_classes, "img_size": img_size, "patch_size": patch_size}
    if not pretrained:
        return timm.create_model(ARCHITECTURE, **sizes)
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    url, cached = hf_hub_url(HUB_ID, HUB_FILE), try_to_load_from_cache(HUB_ID, HUB_FILE)
    path = Path(cached) if isinstance(cached, str) else checkpoint_path(url, f"{PRETRAINED}.safetensors")
    # The configuration of this model expects a file in JAX's format unless `custom_load` is false.
    overlay = {"file": str(path), "custom_load": False}
    with loading_weights(url, path, elsewhere=f", or {HUB_ID} into the cache of Hugging Face (HF_HOME)"):
        return timm.create_model(PRETRAINED, pretrained=True, pretrained_cfg_overlay=overlay, **sizes)
