"""Bytes of the weights of a network: as float32, packed at their bits, and entropy-coded."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from codeq.graph.baking import check_weights
from codeq.graph.ops import UnfollowedWeight
from codeq.graph.tracing import trace
from codeq.metrics.codes import weight_codes
from codeq.metrics.records import repeated_layers
from codeq.quantizer.layers import FLOAT_BITS, bitwidth, forward_weight, latent_weight, named_layers

_PARAMETRIZED = re.compile(r"\bparametrizations\.(\w+)\..*")  # what a parametrized tensor is computed from


@dataclass(frozen=True)
class StorageBytes:
    """Bytes of all conv and linear weights, also of those that belong to no layer, which are float32.

    Biases, normalization and the few numbers of a quantization grid are left out: a part of a percent, and float32 in
    any case. Weights that several layers share count once.

    Parameters
    ----------
    float32 : int
        Four bytes a weight.
    packed : int
        `b` bits a weight, zeros like others, each layer by itself: 2Q + 1 = 2^b - 1 levels fit into a code of `b` bits.
    entropy : int
        Lower bound of any code of single weights, with a code for each layer: weights × entropy of its levels. An
        entropy coder comes close to it where most weights are 0.
    """

    float32: int
    packed: int
    entropy: int


def storage_bytes(model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> StorageBytes:
    """Count the bytes of the weights of `model`; float layers take four bytes a weight in all three.

    Parameters
    ----------
    model : Module
        With or without quantizers.
    input_size : tuple of int
        `(C, H, W)` of one input. Only a model with matrices outside of its layers is traced.

    Raises
    ------
    CodeqError
        If the bits of a layer are unknown, or a model with matrices outside of its layers cannot be traced.

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Linear(64, 8))
    >>> _ = attach_weight_quantizers(net, [], "uniform", {"bitwidth": 3})
    >>> nn.init.ones_(net[0].parametrizations.weight.original[:4].detach()).shape
    torch.Size([4, 64])
    >>> nn.init.zeros_(net[0].parametrizations.weight.original[4:].detach()).shape
    torch.Size([4, 64])
    >>> storage_bytes(net)  # two levels, equally frequent: one bit a weight
    StorageBytes(float32=2048, packed=192, entropy=64)
    """
    packed, float32 = packed_bytes(model, input_size)
    layers, entropy = dict(named_layers(model)), 0
    for name, count in stored_weights(model, input_size).items():
        codes = weight_codes(layers[name]) if name in layers else None
        entropy += 4 * count if codes is None else int(np.ceil(count * _entropy(codes) / 8))
    return StorageBytes(float32, packed, entropy)


def packed_bytes(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[int, int]:
    """Return the bytes of the weights of `model` packed at their bits, and as float32; see `storage_bytes`."""
    layers, stored = dict(named_layers(model)), stored_weights(model, input_size)
    bits = {name: bitwidth(name, layers[name]) if name in layers else FLOAT_BITS for name in stored}
    return sum(-(-count * bits[name] // 8) for name, count in stored.items()), 4 * sum(stored.values())


def stored_weights(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """Return the number of weights that take memory of their own, by the names of their records, see `LayerRecord`.

    Those of the conv and linear layers, called or not, but for layers whose weights are those of an earlier one; then
    those that belong to no layer, such as the packed projection of `torch.nn.MultiheadAttention`.
    """
    repeated, layers = repeated_layers(model), dict(named_layers(model))
    if any(isinstance(layer, LazyModuleMixin) for layer in layers.values()):
        check_weights(model)  # which names the layer
    counts = {name: latent_weight(layer).numel() for name, layer in layers.items() if name not in repeated}
    if not _has_matrices_outside(model, layers):  # saves the trace of most networks
        return counts
    in_use = {forward_weight(layer) for layer in layers.values()}  # a weight that is quantized there is another one
    for op in trace(model, input_size).unknown:
        if isinstance(op, UnfollowedWeight) and op.weight not in layers:
            weight = _attribute(model, op.weight)
            if weight not in in_use:
                counts[op.weight] = weight.numel()
    return counts


def _has_matrices_outside(model: nn.Module, layers: Container[str]) -> bool:
    """Return whether there are matrices besides the weights of the layers and what these are computed from."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        owner, _, key = _PARAMETRIZED.sub(r"\1", name).rpartition(".")
        of_layer = owner in layers and key == "weight"
        if tensor.ndim > 1 and tensor.is_floating_point() and not of_layer:
            return True
    return False


def _attribute(model: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    return cast(Tensor, getattr(model.get_submodule(owner), attribute))


def _entropy(codes: np.ndarray) -> float:
    """Return the entropy of the distribution of codes, in bits."""
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(share * np.log2(share)).sum())
