"""What is measured of each layer, and what it costs under some accounting."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.graph.channels import null_channels
from codeq.graph.ops import ChannelGraph, FunctionalWeight, Layer, Unknown
from codeq.graph.tracing import trace
from codeq.metrics.nulls import NullChannels, nonzero_kernels
from codeq.quantizer.attach import FLOAT_BITS, bitwidth, forward_weight, named_layers


@dataclass(frozen=True)
class LayerStats:
    """Cost of one layer under one accounting.

    Parameters
    ----------
    name : str
        Full dotted name.
    macs, bops : int
        Of one input.
    bitwidth : int
        Bits of the weights; 32 if they are float.
    pruning_ratio : float
        Structured: null output channels / output channels. Unstructured: zero weights / weights.
    null_out, null_in : NullChannels
        By the ``"exact"`` accounting in `exact_stats`, else by ``"weights"``.
    spatial, kernel_size : tuple of int
        Output and kernel height and width; `(1, 1)` for a linear layer, whose `spatial` on tokens `[N, tokens, C]` is
        `(tokens, 1)`.
    """

    name: str
    macs: int
    bops: int
    bitwidth: int
    pruning_ratio: float
    null_out: NullChannels
    null_in: NullChannels
    spatial: tuple[int, int]
    kernel_size: tuple[int, int]


@dataclass(frozen=True)
class ModelStats:
    """Cost of a network under one accounting: its layers in order of execution, and their sums."""

    layers: list[LayerStats]
    total_macs: int = field(init=False)
    total_bops: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total_macs", sum(layer.macs for layer in self.layers))
        object.__setattr__(self, "total_bops", sum(layer.bops for layer in self.layers))


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What is measured of one layer before any accounting: its quantized weights, bits and null channels.

    Parameters
    ----------
    name : str
        Full dotted name.
    weight : Tensor
        The weights that the forward pass uses, detached, `[c_out, c_in / groups, ...]`.
    nonzero : array of bool
        `[c_out, c_in / groups]`, kernels with a non-zero weight.
    bitwidth : int
        Bits.
    null_in, null_out : NullChannels
        By the ``"weights"`` accounting.
    spatial : tuple of int
        Output height and width; for a linear layer `(1, 1)`, or `(tokens, 1)` on tokens.
    """

    name: str
    weight: Tensor
    nonzero: np.ndarray
    bitwidth: int
    null_in: NullChannels
    null_out: NullChannels
    spatial: tuple[int, int]

    @property
    def alive(self) -> np.ndarray:
        """`[c_out]`, true for filters with a non-zero weight."""
        return np.any(self.nonzero, axis=1)

    def stats(self, macs: int, pruning_ratio: float, bits: int, b_a: int) -> LayerStats:
        """Return the layer's cost, given its MACs under some accounting."""
        kernel = (self.weight.shape[2], self.weight.shape[3]) if self.weight.ndim == 4 else (1, 1)
        return LayerStats(
            self.name, macs, macs * bits * b_a, bits, pruning_ratio, self.null_out, self.null_in, self.spatial, kernel
        )


@torch.no_grad()
def measure(model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> list[LayerRecord]:
    """Read every conv and linear layer of `model` once, in order of execution.

    Parameters
    ----------
    model : Module
        With or without quantizers; its mode and device are left as found.
    input_size : tuple of int
        `(C, H, W)` of one input.

    Raises
    ------
    CodeqError
        If the model cannot be traced, a layer's bits are unknown, or a layer is used in a way that codeq cannot count.

    Examples
    --------
    >>> [(r.name, r.bitwidth, r.spatial) for r in measure(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8))]
    [('0', 32, (6, 6))]
    """
    graph = trace(model, input_size)
    _check_countable(model, graph)
    modules = dict(named_layers(model))
    weights = {op.layer: forward_weight(modules[op.layer]).detach() for op in graph.layers}
    nonzero = {name: nonzero_kernels(weight) for name, weight in weights.items()}
    nulls = null_channels(graph, nonzero)
    records = []
    for op in graph.ops:
        if isinstance(op, Layer):
            null_in, null_out = (NullChannels.from_mask(mask) for mask in nulls[op.layer])
            bits = bitwidth(op.layer, modules[op.layer])
            record = LayerRecord(op.layer, weights[op.layer], nonzero[op.layer], bits, null_in, null_out, op.spatial)
            records.append(record)
        elif isinstance(op, FunctionalWeight):  # never quantized, and all of its channels stay live
            weight = model.get_parameter(op.weight).detach()
            null_in, null_out = (NullChannels.none(n) for n in (weight.shape[1] * op.groups, len(weight)))
            live = nonzero_kernels(weight)
            records.append(LayerRecord(op.weight, weight, live, FLOAT_BITS, null_in, null_out, op.spatial))
    return records


def _check_countable(model: nn.Module, graph: ChannelGraph) -> None:
    counted = [op.layer for op in graph.layers]
    if twice := next((name for name in counted if counted.count(name) > 1), None):
        raise CodeqError(f"layer {twice!r} is called more than once in a forward pass; codeq cannot count it yet")
    if graph.uncounted:
        raise CodeqError(f"layer {graph.uncounted[0]!r} cannot be counted: {graph.problems[0]}")
    calls = {op.call for op in graph.ops if isinstance(op, Unknown)}
    for name, layer in named_layers(model):
        if f"call_module {name}" in calls:
            raise CodeqError(
                f"layer {name!r} ({type(layer).__name__}) cannot be counted: only Conv2d on `[N, C, H, W]` and Linear "
                "on `[N, C]` or `[N, tokens, C]` can"
            )
