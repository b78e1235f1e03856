"""Puts quantizers on a model's weights (`torch.nn.utils.parametrize`) and takes them off again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codeq.common.errors import CodeqError, nearest
from codeq.common.registry import check_kwargs
from codeq.quantizer.modules import QUANTIZERS, DeadZoneQuantizer
from codeq.quantizer.scale import absmax

logger = logging.getLogger(__name__)

FLOAT_BITS = 32
LAYER_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
NORMALIZATION_WORDS = frozenset({"bn", "norm", "ln", "gn", "batchnorm", "layernorm", "groupnorm"})


class WeightQuantization(nn.Module):
    """The parametrization of one weight: a quantizer and the switch that turns it on and off."""

    def __init__(self, quantizer: nn.Module, enabled: bool) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.enabled = enabled
        self.parameters_detached = False

    def forward(self, w: Tensor) -> Tensor:
        """Return ``ŵ``, or `w` itself while switched off."""
        if not self.enabled:
            return w
        quantized = self.quantizer(w)
        return w + (quantized - w).detach() if self.parameters_detached else quantized


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the conv and linear layers with their full dotted names, in the model's order.

    Examples
    --------
    >>> [name for name, _ in named_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)))]
    ['0', '3']
    """
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LAYER_TYPES))


def _parametrizations(layer: nn.Module) -> Any:
    return cast(Any, layer.parametrizations).weight


def weight_quantization(layer: nn.Module) -> WeightQuantization | None:
    """Return the quantization attached to the weight of `layer`, switched on or not, or `None`."""
    if parametrize.is_parametrized(layer, "weight"):
        for parametrization in _parametrizations(layer):
            if isinstance(parametrization, WeightQuantization):
                return parametrization
    return None


def latent_weight(layer: nn.Module) -> nn.Parameter:
    """Return the parameter that the optimizer updates: the float weights behind ``ŵ``, or the plain weight."""
    if parametrize.is_parametrized(layer, "weight"):
        return _parametrizations(layer).original
    return cast(nn.Parameter, layer.weight)


def forward_weight(layer: nn.Module) -> Tensor:
    """Return the weights that the forward pass uses: ``ŵ``, or the plain weight."""
    return cast(Tensor, layer.weight)


def bitwidth(name: str, layer: nn.Module) -> int:
    """Return the bit-width in force of the weights of `layer`, in bits: 32 where they are float.

    Raises
    ------
    CodeqError
        If the layer's quantizer does not say its bit-width (it has no ``get_bitwidth()``).

    Examples
    --------
    >>> bitwidth("fc", nn.Linear(2, 2))
    32
    """
    quantization = weight_quantization(layer)
    if quantization is None or not quantization.enabled:
        return FLOAT_BITS
    quantizer = quantization.quantizer
    if not callable(getattr(quantizer, "get_bitwidth", None)):
        raise CodeqError(
            f"layer {name!r}: quantizer {type(quantizer).__name__} has no get_bitwidth(), so its bits are unknown; "
            "give it a method that returns the integer bit-width as a 0-d tensor"
        )
    return int(cast(Any, quantizer).get_bitwidth())


def _check_patterns(what: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            inside = f"{pattern}.*"
            guess = inside if any(fnmatchcase(name, inside) for name in names) else nearest(pattern, names)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise CodeqError(
                f"{what}: pattern {pattern!r} matches no conv or linear layer.{hint} Layers: {', '.join(names)}"
            )


def match_factors(
    model: nn.Module, weights: Mapping[str, float] | None, what: str = "weights", default: float = 1
) -> dict[str, float]:
    """Return a number for every conv and linear layer: that of the first pattern that matches its name, or `default`.

    Parameters
    ----------
    model : Module
        Any model.
    weights : mapping of str to float, or None
        Globs on the full dotted name, see `select_layers`.
    what : str
        What an error calls the patterns.
    default : float
        Of the layers that no pattern matches.

    Raises
    ------
    CodeqError
        For a pattern that matches no conv or linear layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> match_factors(net, {"2": 0.5})
    {'0': 1, '2': 0.5}
    """
    names = [name for name, _ in named_layers(model)]
    weights = weights or {}
    _check_patterns(what, weights, names)
    return {name: next((f for p, f in weights.items() if fnmatchcase(name, p)), default) for name in names}


def select_layers(model: nn.Module, exclude_layers: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Return the conv and linear layers that no pattern excludes.

    Parameters
    ----------
    model : Module
        Any model.
    exclude_layers : sequence of str
        Globs on the full dotted name; a plain name matches exactly and ``*`` crosses dots. The words bn, norm, ln, gn,
        batchnorm, layernorm and groupnorm are accepted and redundant: normalization is never quantized.

    Raises
    ------
    CodeqError
        For a bare string instead of a sequence and for a pattern that selects no conv or linear layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> [name for name, _ in select_layers(net, ["2", "bn"])]
    ['0']
    """
    if isinstance(exclude_layers, str):
        raise CodeqError(f"exclude_layers={exclude_layers!r}: must be a list of patterns, e.g. [{exclude_layers!r}]")
    layers = list(named_layers(model))
    names = [name for name, _ in layers]
    patterns = [pattern for pattern in exclude_layers if pattern not in NORMALIZATION_WORDS]
    _check_patterns("exclude_layers", patterns, names)
    return [(name, layer) for name, layer in layers if not any(fnmatchcase(name, p) for p in patterns)]


def attach_weight_quantizers(
    model: nn.Module,
    exclude_layers: Sequence[str],
    quantizer: str | type[nn.Module],
    quantizer_kwargs: Mapping[str, Any],
    enabled: bool = True,
) -> list[str]:
    """Give every conv and linear layer that is not excluded a weight quantizer of its own.

    Parameters
    ----------
    model : Module
        Changed in place: reading ``layer.weight`` now returns the quantized weights ``ŵ``.
    exclude_layers : sequence of str
        Layers to leave float, see `select_layers`.
    quantizer : str or class
        A name in `QUANTIZERS`, or a module class with ``forward(w) -> ŵ``.
    quantizer_kwargs : mapping
        Arguments of its constructor.
    enabled : bool
        Whether the quantizers act at once (see `toggle_quantization`).

    Returns
    -------
    list of str
        Names of the layers that got a quantizer.

    Raises
    ------
    CodeqError
        For an unknown quantizer or argument, a pattern that selects nothing, a model that already has quantizers, and
        when no layer is left to quantize. The model is unchanged then.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    >>> attach_weight_quantizers(net, exclude_layers=["2"], quantizer="deadzone", quantizer_kwargs={"max_bits": 4})
    ['0']
    """
    cls = QUANTIZERS[quantizer] if isinstance(quantizer, str) else quantizer
    check_kwargs(f"quantizer {cls.__name__}", cls, quantizer_kwargs)
    if taken := [name for name, _ in named_quantizers(model)]:
        raise CodeqError(f"layer {taken[0]!r} already has a weight quantizer; detach_weight_quantizers(model) first")
    layers = select_layers(model, exclude_layers)
    if not layers:
        raise CodeqError(f"exclude_layers={list(exclude_layers)!r} leaves no conv or linear layer to quantize")
    quantizers = [cls(**quantizer_kwargs).to(latent_weight(layer).device) for _, layer in layers]
    for (name, layer), own in zip(layers, quantizers, strict=True):
        parametrize.register_parametrization(layer, "weight", WeightQuantization(own, enabled))
        logger.info("Attached weight quantizer to layer: %s", name)
    return [name for name, _ in layers]


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over ``(layer name, quantizer)`` of every layer that has one, switched on or not.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    ['0']
    >>> [(name, type(quantizer).__name__) for name, quantizer in named_quantizers(net)]
    [('0', 'UniformSymmetric')]
    """
    for name, layer in named_layers(model):
        if quantization := weight_quantization(layer):
            yield name, quantization.quantizer


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
    quantizations = [q for _, layer in named_layers(model) if (q := weight_quantization(layer))]
    if not quantizations:
        raise CodeqError("toggle_quantization: the model has no weight quantizers; attach_weight_quantizers first")
    for quantization in quantizations:
        quantization.enabled = enabled


@torch.no_grad()
def collapsed_layers(model: nn.Module) -> list[str]:
    """Return the dead-zone quantized layers with a scale `R` below half of the one over the same non-zero weights.

    It happens when most latent weights are exactly zero, and takes all quantization levels along.

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
    for name, quantizer in named_quantizers(model):
        if isinstance(quantizer, DeadZoneQuantizer):
            w = latent_weight(model.get_submodule(name))
            if (quantizer.magnitude(w) < 0.5 * absmax(w, "nonzero", quantizer.granularity)).any():
                collapsed.append(name)
    return collapsed


@contextmanager
def quantizer_parameters_detached(model: nn.Module) -> Iterator[None]:
    """Let gradients through ``ŵ`` reach the latent weights alone, not the quantizers' own parameters.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {})
    >>> with quantizer_parameters_detached(net):
    ...     net[0].weight.sum().backward()
    >>> [parameter.grad for _, parameter in dict(named_quantizers(net))["0"].named_parameters()]
    [None, None]
    """
    quantizations = [q for _, layer in named_layers(model) if (q := weight_quantization(layer))]
    for quantization in quantizations:
        quantization.parameters_detached = True
    try:
        yield
    finally:
        for quantization in quantizations:
            quantization.parameters_detached = False


@torch.no_grad()
def detach_weight_quantizers(model: nn.Module) -> None:
    """Bake what the forward pass uses into plain weights and remove the quantizers; the outputs stay the same.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> _ = attach_weight_quantizers(net, [], "uniform", {"bitwidth": 2})
    >>> detach_weight_quantizers(net)
    >>> type(net[0]).__name__, len(net[0].weight.unique()) <= 3
    ('Linear', True)
    """
    for _, layer in named_layers(model):
        if weight_quantization(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def split_param_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters into ``(base, dz, bit)``: weights, dead-zone logits, bit-width logits.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {"learnable_bit": False})
    >>> [len(group) for group in split_param_groups(net)]
    [2, 1, 0]
    """
    base: list[nn.Parameter] = []
    groups: dict[str, list[nn.Parameter]] = {"logit_dz": [], "logit_bit": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.get(name.rpartition(".")[2], base).append(parameter)
    return base, groups["logit_dz"], groups["logit_bit"]
