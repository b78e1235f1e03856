"""Floating-point types of the parameters of a model."""

from __future__ import annotations

import torch
from torch import nn

from codeq.quantizer.activations import ActivationQuantizer
from codeq.quantizer.attach import named_quantizers


def weight_types(model: nn.Module) -> tuple[torch.dtype, ...]:
    """Return the floating-point types of the parameters of a model, each once, but of those of its quantizers.

    Examples
    --------
    >>> weight_types(nn.Sequential(nn.Linear(2, 2).bfloat16(), ActivationQuantizer()))
    (torch.bfloat16,)
    """
    quantizers = [quantizer for _, quantizer in named_quantizers(model)]
    quantizers += [module for module in model.modules() if isinstance(module, ActivationQuantizer)]
    numbers = {id(parameter) for quantizer in quantizers for parameter in quantizer.parameters()}
    weights = [p for p in model.parameters() if p.is_floating_point() and id(p) not in numbers]
    return tuple(dict.fromkeys(p.dtype for p in weights))


def weight_type(model: nn.Module, default: torch.dtype) -> torch.dtype:
    """Return the type of the weights of a model, `default` for one without parameters; see `weight_types`."""
    return next(iter(weight_types(model)), default)
