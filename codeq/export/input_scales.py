"""Scales of the quantized inputs of layers, as integer formats need them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from codeq.quantizer.activations import named_activation_quantizers, toggle_activation_quantization

BYTE = 8  # bits of the integers in QDQ form


@dataclass(frozen=True)
class InputScale:
    """Levels ``scale × (q - zero)`` for the integers `q` from 0 to ``2^bits - 1``.

    Parameters
    ----------
    scale : float
        Distance of two levels.
    zero : int
        Integer of 0.
    bits : int
        Bits of `q`.
    """

    scale: float
    zero: int
    bits: int = BYTE


Scales = Mapping[str, InputScale]


def input_scales(model: nn.Module) -> dict[str, InputScale]:
    """Return the scale of the input of each layer with an enabled quantizer of activations, by the weight's name.

    Examples
    --------
    >>> from codeq.quantizer.activations import ActivationQuantizer
    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> net[0].input_quantizer = ActivationQuantizer(bits=4, method="minmax", symmetric=True)
    >>> input_scales(net)
    {'0.weight': InputScale(scale=1.0, zero=8, bits=4)}
    """
    return {
        f"{name}.weight": InputScale(float(quantizer.step.detach().abs()), -int(quantizer.low), quantizer.bits)
        for name, quantizer in named_activation_quantizers(model)
        if quantizer.enabled and quantizer.bits <= BYTE
    }


@torch.no_grad()
def with_float_inputs(model: nn.Module) -> nn.Module:
    """Return a copy of a model without quantization of activations; the model itself if it has none."""
    if not list(named_activation_quantizers(model)):
        return model
    switched = copy.deepcopy(model)
    toggle_activation_quantization(switched, enabled=False)
    return switched
