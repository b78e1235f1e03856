"""Conv and linear layers of a model: their names, latent and quantized weights, and bit-widths."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from codeq.common.checks import check_model
from codeq.common.errors import CodeqError, quote
from codeq.common.modes import evaluation_mode
from codeq.quantizer.transposed import TRANSPOSED_TYPES, scale_channels, swap_channels, transposed_groups

FLOAT_BITS = 32
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED_TYPES)
LAYER_TYPES = (*CONVOLUTIONS, nn.Linear)


class Precomputed(NamedTuple):
    """``ŵ``, and the tensors that it was computed from, see `WeightQuantization.tensors`."""

    tensors: tuple[Tensor | None, ...]
    quantized: Tensor


class WeightQuantization(nn.Module):
    """Parametrization of one weight: its quantizer, and the switch that turns it on and off.

    Parameters
    ----------
    quantizer : Module
        ``forward(w) -> ŵ``; gets the weights with the output channels in the first dimension.
    enabled : bool
        Whether the forward pass uses ``ŵ``.
    transposed_groups : int, optional
        Groups of the layer if it is a transposed convolution, see `swap_channels`.
    """

    def __init__(self, quantizer: nn.Module, enabled: bool, transposed_groups: int | None = None) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.enabled = enabled
        self.transposed_groups = transposed_groups
        self.parameters_detached = False
        self.precomputed: Precomputed | None = None  # from `fused_quantization`, inside its context

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, whose weights change separately: it computes ``ŵ`` itself."""
        return self.__dict__ | {"precomputed": None}

    def forward(self, w: Tensor) -> Tensor:
        """Return ``ŵ``, or `w` itself while switched off."""
        if not self.enabled:
            return w
        if self.precomputed and all(map(operator.is_, self.precomputed.tensors, self.tensors(w))):
            return self.precomputed.quantized
        return swap_channels(self._quantize(swap_channels(w, self.transposed_groups)), self.transposed_groups)

    def tensors(self, w: Tensor) -> tuple[Tensor | None, ...]:
        """Return what ``ŵ`` of `w` is computed from; `torch.func.functional_call` substitutes any of them.

        Those of the quantizer come from its registries, see `weight_parametrizations`.
        """
        return w, *self.quantizer._parameters.values(), *self.quantizer._buffers.values()

    def _quantize(self, w: Tensor) -> Tensor:
        if not self.parameters_detached:
            return cast(Tensor, self.quantizer(w))
        detached = {name: parameter.detach() for name, parameter in self.quantizer.named_parameters()}
        return cast(Tensor, functional_call(self.quantizer, detached, (w,)))


def refuse_scripted(module: nn.Module, name: str = "") -> None:
    """Raise a `CodeqError` for a module in TorchScript, whose layers are no layers of PyTorch any more.

    Examples
    --------
    >>> refuse_scripted(nn.ReLU())
    """
    if isinstance(module, torch.jit.ScriptModule):
        what = f"module {name!r}" if name else "the network"
        raise CodeqError(f"{what} is compiled by TorchScript, which codeq does not follow: use what was compiled")


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the conv and linear layers with their full dotted names, in the model's order.

    Examples
    --------
    >>> [name for name, _ in named_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)))]
    ['0', '3']
    """
    check_model(model)
    refuse_scripted(model)
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LAYER_TYPES))


def distinct_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over `named_layers`, but of layers that share one weight (tied weights) over the first alone.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> net[1].weight = net[0].weight
    >>> [name for name, _ in distinct_layers(net)]
    ['0']
    """
    seen: set[Tensor] = set()  # holds the weights: the id of a computed one could be used again
    for name, layer in named_layers(model):
        weight = latent_weight(layer)
        if weight not in seen:
            seen.add(weight)
            yield name, layer


def weight_parametrizations(layer: nn.Module) -> parametrize.ParametrizationList | None:
    """Return the parametrizations of the weight of `layer`, or `None`.

    It looks into the registries of `nn.Module`: `fused_quantization` asks every layer in every step, and attribute
    lookups that go through ``__getattr__`` several times took as long there as ten operations on all weights.
    """
    parametrizations = layer._modules.get("parametrizations")
    if not isinstance(parametrizations, nn.ModuleDict):
        return None
    return cast("parametrize.ParametrizationList | None", parametrizations._modules.get("weight"))


def weight_quantization(layer: nn.Module) -> WeightQuantization | None:
    """Return the quantization attached to the weight of `layer`, enabled or not, or `None`."""
    for parametrization in weight_parametrizations(layer) or ():
        if isinstance(parametrization, WeightQuantization):
            return parametrization
    return None


def sole_quantization(layer: nn.Module) -> WeightQuantization | None:
    """Return the enabled quantization of the weight of `layer` if it alone computes it, so that ``ŵ`` is the weight."""
    chain = weight_parametrizations(layer)
    only = next(iter(chain)) if chain is not None and len(chain) == 1 else None
    return only if isinstance(only, WeightQuantization) and only.enabled else None


def named_quantizations(model: nn.Module) -> Iterator[tuple[str, WeightQuantization]]:
    """Iterate over ``(layer name, quantization)`` of every layer that has one, enabled or not."""
    return ((name, found) for name, layer in named_layers(model) if (found := weight_quantization(layer)))


def forget_cached(model: nn.Module) -> None:
    """Let the weights of `model` be computed anew where `parametrize.cached` has kept them: they are others now."""
    if parametrize._cache_enabled:
        modules = {id(module) for module in model.modules()}
        for key in [key for key in parametrize._cache if key[0] in modules]:
            del parametrize._cache[key]


@contextmanager
def cached_weights(model: nn.Module, caching: bool = True) -> Iterator[None]:
    """Compute each weight of `model` once inside the context, for which `parametrize.cached` alone does not suffice.

    That is one cache for all models, emptied when its outermost context ends: inside the context of another model,
    such as a teacher, it would return weights from before they changed. Without `caching`, that of another model is
    all there is.
    """
    forget_cached(model)
    try:
        with parametrize.cached() if caching else nullcontext():
            yield
    finally:
        forget_cached(model)


def latent_weight(layer: nn.Module) -> nn.Parameter:
    """Return the parameter that the optimizer updates: the float weights behind ``ŵ``, or the plain weight.

    A weight that PyTorch computes from several parameters (`weight_norm`) has none; it is returned as computed.
    """
    chain = weight_parametrizations(layer)
    return cast(nn.Parameter, chain.original if chain is not None and chain.is_tensor else layer.weight)


@torch.no_grad()
def reason_not_prunable(name: str, layer: nn.Module) -> str:
    """Return why a filter of a layer does not become zero with its latent weights, as pruning needs; empty if it does.

    It does not where PyTorch computes the weights otherwise (`weight_norm`, `orthogonal`) or where a quantizer has no
    level 0.

    Examples
    --------
    >>> from torch.nn.utils.parametrizations import weight_norm
    >>> reason_not_prunable("fc", nn.Linear(2, 2)), reason_not_prunable("fc", weight_norm(nn.Linear(2, 2)))
    ('', "the filters of layer 'fc' do not become zero with the parameters that a parametrization computes ...")
    """
    chain = weight_parametrizations(layer)
    if chain is None:
        return ""
    if chain.is_tensor:
        probe = copy.deepcopy(layer).eval()
        latent, groups = latent_weight(probe), transposed_groups(probe)
        scale_channels(latent, (torch.arange(len(swap_channels(latent, groups))) > 0).to(latent), groups)
        forget_cached(probe)
        if not swap_channels(forward_weight(probe), groups)[0].any():
            return ""
    return (
        f"the filters of layer {name!r} do not become zero with the parameters that a parametrization computes its "
        "weights from, so they cannot be pruned; torch.nn.utils.parametrize.remove_parametrizations makes them plain"
    )


def forward_weight(layer: nn.Module) -> Tensor:
    """Return the weights that the forward pass uses: ``ŵ``, or the plain weight."""
    return cast(Tensor, layer.weight)


def weights_by_scale(layer: nn.Module) -> Tensor:
    """Return the weights that the forward pass of evaluation mode uses, a row for each set of levels.

    There is one for each output channel where the quantizer has ``granularity = "channel"``, one in all otherwise.

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3))
    >>> _ = attach_weight_quantizers(net, ["1"], "deadzone", {"granularity": "channel"})
    >>> weights_by_scale(net[0]).shape, weights_by_scale(net[1]).shape
    (torch.Size([4, 18]), torch.Size([1, 216]))
    """
    quantization = weight_quantization(layer)
    with evaluation_mode(layer):  # quantizers may compute other weights, or change their state, in training
        weight = swap_channels(forward_weight(layer), transposed_groups(layer))
    separate = quantization is not None and getattr(quantization.quantizer, "granularity", "layer") == "channel"
    return weight.flatten(1) if separate else weight.reshape(1, -1)


def bitwidth(name: str, layer: nn.Module) -> int:
    """Return the bit-width in force of the weights of `layer`, in bits: 32 where they are float.

    Raises
    ------
    CodeqError
        If the layer's quantizer has no ``get_bitwidth()``, or it does not return one integer of at least 1.

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
    bits = cast(Any, quantizer).get_bitwidth()
    try:
        number = bits.item() if hasattr(bits, "item") else bits
    except (RuntimeError, ValueError):  # of several values
        number = None
    # Not rounded: 1.58 bits of a ternary quantizer are stored in 2, and only the quantizer knows how it stores them.
    if not isinstance(number, int | float) or isinstance(number, bool) or not (number >= 1 and number % 1 == 0):
        raise CodeqError(
            f"layer {name!r}: get_bitwidth() of quantizer {type(quantizer).__name__} returned {quote(bits)}, must be "
            "one integer of at least 1"
        )
    return int(number)


def reference_tensor(model: nn.Module) -> Tensor:
    """Return a tensor with the device of `model`, and its number format where it has parameters.

    A compacted network of which nothing depends on the input has no parameters.

    Examples
    --------
    >>> reference_tensor(nn.Linear(2, 1, dtype=torch.float64)).dtype, reference_tensor(nn.Flatten()).device
    (torch.float64, device(type='cpu'))
    """
    return next(chain(model.parameters(), model.buffers()), torch.zeros(()))
