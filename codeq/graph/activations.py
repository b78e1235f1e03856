"""Attaching quantizers to the activations that enter layers, and their bits in the recorded calls."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor, fx, nn

from codeq.common.errors import CodeqError, quote
from codeq.graph.calls import Calls, record_calls
from codeq.quantizer.activations import (
    INPUT_QUANTIZER,
    ActivationMethod,
    ActivationQuantizer,
    named_activation_quantizers,
    quantize_input,
)
from codeq.quantizer.attach import named_quantizers
from codeq.quantizer.calibration import calibrate
from codeq.quantizer.layers import LAYER_TYPES, named_layers
from codeq.quantizer.patterns import select_layers

logger = logging.getLogger(__name__)


def attach_activation_quantizers(
    model: nn.Module,
    example: Tensor,
    bits: int = 8,
    method: ActivationMethod = "lsq",
    exclude_layers: Sequence[str] = (),
    symmetric: bool = False,
) -> list[str]:
    """Quantize the inputs of the layers whose weights are quantized; of all conv and linear layers if none are.

    Layers that read the same tensor share a quantizer, so that one integer tensor serves all of them: the convolutions
    at the start of a residual block and its shortcut. The ranges are calibrated on `example`, see `calibrate`.

    Parameters
    ----------
    model : Module
        Changed in place: each layer gets a module ``input_quantizer``.
    example : Tensor
        `[N, …]`, real inputs.
    bits, method, symmetric
        See `ActivationQuantizer`.
    exclude_layers : sequence of str
        Layers whose inputs stay float, see `select_layers`.

    Returns
    -------
    list of str
        Names of the layers with quantized inputs.

    Raises
    ------
    CodeqError
        For arguments out of range, a model that cannot be traced or has such quantizers already, a layer that is never
        called or only through a function (its input cannot be reached), and when no layer is left. The model is
        unchanged then.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> attach_activation_quantizers(net, torch.rand(2, 3, 6, 6), method="minmax")
    ['0', '3']
    """
    ActivationQuantizer(bits, method, symmetric)
    if taken := [name for name, _ in named_activation_quantizers(model)]:
        raise CodeqError(f"the input of layer {taken[0]!r} already has a quantizer")
    quantized = {name for name, _ in named_quantizers(model)} or {name for name, _ in named_layers(model)}
    names = [name for name, _ in select_layers(model, exclude_layers) if name in quantized]
    if not names:
        raise CodeqError(f"exclude_layers={quote(list(exclude_layers))} leaves no layer with an input to quantize")
    sources = _sources(record_calls(model, tuple(example.shape[1:])), names)
    layers = dict(named_layers(model))
    shared: dict[fx.Node, ActivationQuantizer] = {}
    hooks = []
    for name in names:
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        quantizer = shared.setdefault(sources[name], ActivationQuantizer(bits, method, symmetric).to(weight.device))
        layers[name].add_module(INPUT_QUANTIZER, quantizer)
        hooks.append(layers[name].register_forward_pre_hook(quantize_input))
    try:
        calibrate(model, [example])
    except Exception:
        for name, hook in zip(names, hooks, strict=True):
            hook.remove()
            delattr(layers[name], INPUT_QUANTIZER)
        raise
    for name in names:
        logger.info("Attached activation quantizer to the input of layer: %s", name)
    return names


def _sources(calls: Calls, names: Sequence[str]) -> dict[str, fx.Node]:
    """Return the node that computes the input of each layer."""
    sources: dict[str, fx.Node] = {}
    for node in calls.graph.nodes:
        if isinstance(calls.module(node), LAYER_TYPES) and node.target not in calls.layers and len(node.args) == 1:
            sources.setdefault(str(node.target), node.args[0])
    for name in names:
        if name not in sources:
            used = "is used through a function" if name in calls.layers.values() else "is never called with one input"
            raise CodeqError(f"layer {name!r} {used}: its input cannot be quantized; add {name!r} to exclude_layers")
    return sources
