"""Checks that a weight can be parametrized, and that a quantizer works on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codeq.common.errors import CodeqError


def plain_weight(name: str, layer: nn.Module) -> nn.Parameter:
    """Return the weight of `layer`, or raise a `CodeqError` if it cannot be parametrized and quantized."""
    where = f"layer {name!r} ({type(layer).__name__})"
    remedy = f"or add {name!r} to exclude_layers"
    if parametrize.is_parametrized(layer):
        chains = {key: [type(p).__name__ for p in chain] for key, chain in layer.parametrizations.items()}  # type: ignore[operator, union-attr]
        raise CodeqError(
            f"{where} already has parametrizations ({chains}): call "
            f"torch.nn.utils.parametrize.remove_parametrizations on it before attaching quantizers, {remedy}"
        )
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None:
        found = ", ".join(key for key, _ in layer.named_parameters(recurse=False)) or "none"
        raise CodeqError(
            f"{where} has no parameter 'weight' (its parameters: {found}), as under weight_norm, spectral_norm or a "
            f"pruning mask: undo that before attaching quantizers (torch.nn.utils.remove_weight_norm, "
            f"remove_spectral_norm, prune.remove), {remedy}"
        )
    if nn.parameter.is_lazy(weight):
        raise CodeqError(
            f"{where} has no weights before its first forward pass: run one batch through the model before attaching "
            f"quantizers, {remedy}"
        )
    if weight.is_meta:
        raise CodeqError(f"{where} is on the meta device and has no values: load its weights before, {remedy}")
    if not weight.numel():
        raise CodeqError(
            f"{where} has no weights (shape {list(weight.shape)}), so there is nothing to quantize: {remedy[3:]}"
        )
    if not weight.is_floating_point():
        raise CodeqError(
            f"{where} has weights of {weight.dtype} and shape {list(weight.shape)}: only floating-point weights can be "
            f"quantized, {remedy}"
        )
    return weight


@torch.no_grad()
def try_on(name: str, quantizer: nn.Module, w: Tensor) -> None:
    """Run a quantizer once on a copy of the weights `w`, which also gives a learned scale its shape and value.

    Raises
    ------
    CodeqError
        If it fails, writes into what it gets, or returns another kind of tensor.
    """
    what = f"layer {name!r}: quantizer {type(quantizer).__name__}"
    try:
        with torch.inference_mode(False):  # where nothing counts how often a tensor was written to
            tried = w.clone()
        written = tried._version
        quantized = quantizer(tried)
    except Exception as error:  # a user's quantizer may raise anything
        raise CodeqError(f"{what} fails on weights of {w.dtype} and shape {list(w.shape)}: {error}") from error
    # Writes through `.data` are not counted, and others may have left the values as they were, for now.
    if tried._version != written or not ((tried == w) | w.isnan()).all():
        raise CodeqError(
            f"{what} overwrites the weights that it gets: must return new ones, e.g. w.clamp() for w.clamp_()"
        )
    if not isinstance(quantized, Tensor):
        raise CodeqError(f"{what} returned a {type(quantized).__name__}, must be a tensor")
    if (quantized.dtype, quantized.shape) != (w.dtype, w.shape):
        raise CodeqError(
            f"{what} returned {quantized.dtype} {list(quantized.shape)} for weights of {w.dtype} {list(w.shape)}: "
            "must keep dtype and shape"
        )
