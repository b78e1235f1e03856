"""Attaching quantizers to a model's weights (`torch.nn.utils.parametrize`), and removing them again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from codeq.common.checks import check_flag, check_model
from codeq.common.errors import CodeqError, quote
from codeq.common.registry import check_kwargs
from codeq.quantizer.attachable import plain_weight, try_on
from codeq.quantizer.copies import give_copies_separate_classes
from codeq.quantizer.layers import (
    WeightQuantization,
    forget_cached,
    forward_weight,
    latent_weight,
    named_layers,
    named_quantizations,
    weight_quantization,
)
from codeq.quantizer.modules import QUANTIZERS, DeadZoneQuantizer
from codeq.quantizer.patterns import select_layers
from codeq.quantizer.scale import absmax
from codeq.quantizer.transposed import swap_channels, transposed_groups

__all__ = [
    "attach_weight_quantizers", "detach_weight_quantizers", "toggle_quantization", "quantizer_parameters_detached",
    "named_quantizers", "split_param_groups", "collapsed_layers",
]  # fmt: skip

logger = logging.getLogger(__name__)


def attach_weight_quantizers(
    model: nn.Module,
    exclude_layers: Sequence[str],
    quantizer: str | type[nn.Module],
    quantizer_kwargs: Mapping[str, Any],
    enabled: bool = True,
) -> list[str]:
    """Attach a separate weight quantizer to every conv and linear layer that is not excluded.

    Layers that share one weight (tied weights) share its quantizer.

    Parameters
    ----------
    model : Module
        Changed in place: reading ``layer.weight`` now returns the quantized weights ``ŵ``.
    exclude_layers : sequence of str
        Layers to leave float, see `select_layers`.
    quantizer : str or class
        A name in `QUANTIZERS`, or a module class with ``forward(w) -> ŵ``. It gets the weights of every layer,
        transposed convolutions included, as `[c_out, c_in / groups, …]`.
    quantizer_kwargs : mapping
        Arguments of its constructor.
    enabled : bool
        Whether the quantizers are active at once (see `toggle_quantization`).

    Returns
    -------
    list of str
        Names of the quantized layers.

    Raises
    ------
    CodeqError
        For an unknown quantizer or argument, a pattern that matches nothing, a model that already has quantizers, a
        layer whose weight cannot be quantized (not a parameter of its own as under `weight_norm`, `spectral_norm` or a
        pruning mask; lazy, on the meta device, empty or of integers; a quantizer that fails on it or overwrites it),
        and when no layer is left to quantize. The model is unchanged then.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> attach_weight_quantizers(net, exclude_layers=["2"], quantizer="deadzone", quantizer_kwargs={"max_bits": 4})
    ['0']
    """
    cls = QUANTIZERS[quantizer] if isinstance(quantizer, str) else quantizer
    if not callable(cls) or isinstance(cls, nn.Module):
        raise CodeqError(f"quantizer={quote(quantizer)}: must be a name in QUANTIZERS or a class of modules")
    if not isinstance(quantizer_kwargs, Mapping):
        raise CodeqError(f"quantizer_kwargs={quote(quantizer_kwargs)}: must be a mapping, {{}} for the defaults")
    check_flag("enabled", enabled)
    check_kwargs(f"quantizer {getattr(cls, '__name__', quote(quantizer))}", cls, quantizer_kwargs)
    if taken := [name for name, _ in named_quantizers(model)]:
        raise CodeqError(f"layer {taken[0]!r} already has a weight quantizer; detach_weight_quantizers(model) first")
    layers = select_layers(model, exclude_layers)
    if not layers and isinstance(model, fx.GraphModule) and not any(named_layers(model)):
        raise CodeqError(
            "the network is a graph without conv or linear layers, as torch.export makes: use what was exported"
        )
    if not layers:
        raise CodeqError(f"exclude_layers={quote(list(exclude_layers))} leaves no conv or linear layer to quantize")
    weights = [plain_weight(name, layer) for name, layer in layers]
    quantizations: dict[tuple[int, int | None], WeightQuantization] = {}
    for (name, layer), weight in zip(layers, weights, strict=True):
        key = id(weight), transposed_groups(layer)
        if key not in quantizations:
            with torch.inference_mode(False):  # its tensors could never be trained
                module = cls(**quantizer_kwargs).to(weight.device)
            try_on(name, module, swap_channels(weight, transposed_groups(layer)))
            quantizations[key] = WeightQuantization(module, enabled, transposed_groups(layer))
    for (name, layer), weight in zip(layers, weights, strict=True):
        quantization = quantizations[id(weight), transposed_groups(layer)]
        parametrize.register_parametrization(layer, "weight", quantization, unsafe=True)  # checked by `try_on`
        give_copies_separate_classes(layer)
        logger.info("Attached weight quantizer to layer: %s", name)
    return [name for name, _ in layers]


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over ``(layer name, quantizer)`` of every layer that has one, enabled or not.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    ['0']
    >>> [(name, type(quantizer).__name__) for name, quantizer in named_quantizers(net)]
    [('0', 'UniformSymmetric')]
    """
    return ((name, quantization.quantizer) for name, quantization in named_quantizations(model))


def toggle_quantization(model: nn.Module, enabled: bool) -> None:
    """Switch all attached quantizers on or off; off, the model computes with its float latent weights.

    Raises
    ------
    CodeqError
        If the model has no quantizers.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> _ = attach_weight_quantizers(net, [], "uniform", {"bitwidth": 2})
    >>> toggle_quantization(net, enabled=False)
    >>> bool((net[0].weight == latent_weight(net[0])).all())
    True
    """
    check_flag("enabled", enabled)
    quantizations = [quantization for _, quantization in named_quantizations(model)]
    if not quantizations:
        raise CodeqError("toggle_quantization: the model has no weight quantizers; attach_weight_quantizers first")
    for quantization in quantizations:
        quantization.enabled = enabled
    forget_cached(model)


@torch.no_grad()
def collapsed_layers(model: nn.Module) -> list[str]:
    """Return the dead-zone quantized layers whose scale `R` is below half of the one over their non-zero weights.

    It happens when most latent weights are exactly zero, and makes all quantization levels small. A learned or held
    scale does not follow the weights, so it cannot collapse; of few bits, the best learned one is about as small.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(200, 2))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {})
    >>> with torch.no_grad():
    ...     _ = latent_weight(net[0])[:, 1:].zero_()
    >>> collapsed_layers(net)
    ['0']
    """
    collapsed = []
    for name, layer in named_layers(model):
        quantization = weight_quantization(layer)
        quantizer = quantization.quantizer if quantization else None
        if quantization and isinstance(quantizer, DeadZoneQuantizer) and quantizer.scale == "absmax":
            w = swap_channels(latent_weight(layer), quantization.transposed_groups)
            if (quantizer.magnitude(w) < 0.5 * absmax(w, "nonzero", quantizer.granularity)).any():
                collapsed.append(name)
    return collapsed


@contextmanager
def quantizer_parameters_detached(model: nn.Module) -> Iterator[None]:
    """Let gradients through ``ŵ`` reach the latent weights alone, not the quantizers' parameters.

    Those of the latent weights are the same as outside the context.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {})
    >>> with quantizer_parameters_detached(net):
    ...     net[0].weight.sum().backward()
    >>> [parameter.grad for _, parameter in dict(named_quantizers(net))["0"].named_parameters()]
    [None, None]
    """
    quantizations = [quantization for _, quantization in named_quantizations(model)]
    precomputed = [quantization.precomputed for quantization in quantizations]  # its gradients reach the parameters
    for quantization in quantizations:
        quantization.parameters_detached, quantization.precomputed = True, None
    forget_cached(model)
    try:
        yield
    finally:
        for quantization, kept in zip(quantizations, precomputed, strict=True):
            quantization.parameters_detached, quantization.precomputed = False, kept
        forget_cached(model)


@torch.no_grad()
def detach_weight_quantizers(model: nn.Module) -> None:
    """Replace every quantized weight by the plain weights that the forward pass uses; the outputs stay the same.

    Layers that share a weight and its quantizer still share the result. A weight that is also used without the
    quantizer (by an excluded layer, an embedding) is kept there, and the quantized layer gets a parameter of its own.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> _ = attach_weight_quantizers(net, [], "uniform", {"bitwidth": 2})
    >>> detach_weight_quantizers(net)
    >>> type(net[0]).__name__, len(net[0].weight.unique()) <= 3
    ('Linear', True)
    """
    found = [(layer, quantization) for _, layer in named_layers(model) if (quantization := weight_quantization(layer))]
    values = [forward_weight(layer).clone() for layer, _ in found]  # all of them before any tied weight changes
    for layer, _ in found:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    own = (dict(module.named_parameters(recurse=False, remove_duplicate=False)) for module in model.modules())
    users = Counter(id(parameter) for parameters in own for parameter in parameters.values())
    sharers = Counter((id(latent_weight(layer)), id(quantization)) for layer, quantization in found)
    baked: dict[tuple[int, int], nn.Parameter] = {}
    for (layer, quantization), value in zip(found, values, strict=True):
        weight = latent_weight(layer)
        key = id(weight), id(quantization)
        if key not in baked:
            alone = users[id(weight)] == sharers[key]
            with torch.inference_mode(False):  # otherwise a new one could never be trained
                # Where possible the same parameter, which an optimizer may hold.
                baked[key] = weight if alone else nn.Parameter(weight.clone(), requires_grad=weight.requires_grad)
            baked[key].copy_(value)
        layer.weight = baked[key]


def split_param_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters into ``(base, dz, bit)``: weights, dead-zone logits, bit-width logits.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {"learnable_bit": False})
    >>> [len(group) for group in split_param_groups(net)]
    [2, 1, 0]
    """
    check_model(model)
    base: list[nn.Parameter] = []
    groups: dict[str, list[nn.Parameter]] = {"logit_dz": [], "logit_bit": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.get(name.rpartition(".")[2], base).append(parameter)
    return base, groups["logit_dz"], groups["logit_bit"]
