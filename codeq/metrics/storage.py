"""Bytes of the weights of a network: as float32, packed at their bits, and entropy-coded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from codeq.metrics.codes import weight_codes
from codeq.metrics.records import repeated_layers
from codeq.quantizer.layers import bitwidth, latent_weight, named_layers


@dataclass(frozen=True)
class StorageBytes:
    """Bytes of all conv and linear weights.

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


def storage_bytes(model: nn.Module) -> StorageBytes:
    """Count the bytes of the weights of `model`; float layers take four bytes a weight in all three.

    Raises
    ------
    CodeqError
        If the bits of a layer are unknown.

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
    packed, float32 = packed_bytes(model)
    entropy = 0
    for _, layer in stored_layers(model):
        count, codes = latent_weight(layer).numel(), weight_codes(layer)
        entropy += 4 * count if codes is None else int(np.ceil(count * _entropy(codes) / 8))
    return StorageBytes(float32, packed, entropy)


def packed_bytes(model: nn.Module) -> tuple[int, int]:
    """Return the bytes of the weights of `model` packed at their bits, and as float32; see `StorageBytes`.

    Raises
    ------
    CodeqError
        If the bits of a layer are unknown.
    """
    counts = [(latent_weight(layer).numel(), bitwidth(name, layer)) for name, layer in stored_layers(model)]
    return sum(-(-count * bits // 8) for count, bits in counts), sum(4 * count for count, _ in counts)


def stored_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the conv and linear layers whose weights take memory of their own, with their names."""
    repeated = repeated_layers(model)
    return [(name, layer) for name, layer in named_layers(model) if name not in repeated]


def _entropy(codes: np.ndarray) -> float:
    """Return the entropy of the distribution of codes, in bits."""
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(share * np.log2(share)).sum())
