"""Modules that are recorded as one call, and those whose `forward` is that of their PyTorch class."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from codeq.quantizer.activations import ActivationQuantizer
from codeq.quantizer.layers import LAYER_TYPES


def plain_forward(module: nn.Module) -> bool:
    """Return whether a module runs the `forward` of its class in `torch.nn`, not that of a subclass or instance.

    That of convolutions calls a method, which a subclass may override as well. PyTorch has such subclasses itself, for
    quantization-aware training.
    """
    own = type_before_parametrizations(module)
    kind = next((cls for cls in own.__mro__ if cls.__module__.startswith("torch.nn.modules.")), nn.Module)
    methods = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
    return all(name not in vars(module) and getattr(own, name) is getattr(kind, name) for name in methods)


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module is recorded as one call, not as the calls inside it.

    A layer with a forward of its own is not: it may call the function of the layer, see
    `codeq.graph.call_recording.record_calls`.
    """
    if "forward" in vars(module):
        return False
    if isinstance(module, LAYER_TYPES):
        return plain_forward(module)
    inside = [child for child in module.children() if not isinstance(child, ActivationQuantizer)]
    if isinstance(module, nn.LayerNorm):
        # timm's are one call too, also those with an activation function inside: the scale and shift of a call of the
        # function would be constants, which a compacted network does not train. Layers inside adaptive ones count, and
        # so do matrices of a subclass, which it may multiply by.
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        matrices = any(tensor.ndim > 1 for name, tensor in tensors if name not in ("weight", "bias"))
        return not matrices and not any(True for child in inside for _ in child.parameters())
    whole = isinstance(module, ActivationQuantizer) or type(module).__module__.startswith("torch.")
    return whole and not isinstance(module, nn.Sequential) and not inside
