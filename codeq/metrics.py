"""MACs and BOPs of a network under two named accountings, structured and unstructured.

MACs count multiplications by weights of conv and linear layers only (paper eq. (20)-(21)), so the products of
activations with each other inside an attention (`QKᵀ` and its product with `V`) are not counted. BOPs are MACs × weight
bits × activation bits (eq. (22)).
A *compression ratio* is baseline / compressed (×); its inverse is the *relative BOPs* that papers quote in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, prod

import numpy as np
import torch
from torch import Tensor, nn

from codeq.attach import FLOAT_BITS, bitwidth, forward_weight, named_layers
from codeq.channels import live_kernels, null_channels
from codeq.errors import CodeqError
from codeq.tracing import ChannelGraph, Unknown, trace


@dataclass(frozen=True)
class NullChannels:
    """The channels of a tensor that are zero for every input.

    Parameters
    ----------
    indices : set of int
        Null channels, each in ``range(total)``.
    total : int
        Number of channels.

    Raises
    ------
    CodeqError
        For an index outside ``range(total)``.

    Examples
    --------
    >>> nulls = NullChannels({2, 3}, 4)
    >>> nulls.count, nulls.ratio, nulls.intersect(NullChannels({3}, 4)).indices == {3}
    (2, 0.5, True)
    """

    indices: set[int] | frozenset[int]
    total: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", frozenset(self.indices))
        if any(not 0 <= index < self.total for index in self.indices):
            raise CodeqError(f"indices={sorted(self.indices)}: must lie in 0 … {self.total - 1}")

    @property
    def count(self) -> int:
        """Number of null channels."""
        return len(self.indices)

    @property
    def ratio(self) -> float:
        """Fraction of channels that are null; 0 of no channels is 0."""
        return self.count / self.total if self.total else 0.0

    def intersect(self, other: NullChannels) -> NullChannels:
        """Return the channels that are null in both, as after a residual sum.

        Raises
        ------
        CodeqError
            If the two have different numbers of channels.
        """
        if self.total != other.total:
            raise CodeqError(f"null channels of {self.total} and of {other.total} channels do not combine")
        return NullChannels(self.indices & other.indices, self.total)

    @classmethod
    def none(cls, total: int) -> NullChannels:
        """Return `total` channels of which none is null."""
        return cls(frozenset(), total)

    @classmethod
    def all(cls, total: int) -> NullChannels:
        """Return `total` channels that are all null."""
        return cls(frozenset(range(total)), total)

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> NullChannels:
        """Return the channels where the boolean array `mask` is true."""
        return cls(frozenset(np.flatnonzero(mask).tolist()), len(mask))

    def mask(self) -> np.ndarray:
        """Return a boolean array `[total]`, true for null channels."""
        mask = np.zeros(self.total, dtype=bool)
        mask[list(self.indices)] = True
        return mask


def nonzero_kernels(weight: Tensor) -> np.ndarray:
    """Return which kernels have a non-zero element: `[c_out, c_in / groups, ...]` → `[c_out, c_in / groups]`.

    Examples
    --------
    >>> nonzero_kernels(torch.tensor([[0.0, 1.0]])).tolist()
    [[False, True]]
    """
    nonzero = weight.detach() != 0
    return (nonzero if nonzero.ndim == 2 else nonzero.flatten(2).any(2)).cpu().numpy()


def null_output_channels(weight: Tensor, null_in: NullChannels) -> NullChannels:
    """Return the filters whose weights on all non-null input channels are zero.

    Parameters
    ----------
    weight : Tensor
        `[c_out, c_in / groups, ...]`, quantized.
    null_in : NullChannels
        Of the `c_in` input channels; more of them than `weight` has columns means a grouped convolution.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> sorted(null_output_channels(weight, NullChannels({0}, 2)).indices)
    [0]
    """
    live = live_kernels(nonzero_kernels(weight), _groups(weight, null_in), null_in.mask())
    return NullChannels.from_mask(~np.any(live, axis=1))


def _groups(weight: Tensor, null_in: NullChannels) -> int:
    groups, rest = divmod(null_in.total, weight.shape[1])
    if rest or not groups:
        raise CodeqError(f"null_in.total={null_in.total}: must be a multiple of the weight's {weight.shape[1]} inputs")
    return groups


def effective_macs(weight: Tensor, null_in: NullChannels, null_out: NullChannels, m_h: int, m_w: int) -> int:
    """Count the MACs that remain when null channels are cut away (DJPQ's structured formula).

    ``(1 - p_in) c_in · (1 - p_out) c_out · k_h k_w m_h m_w``, group by group for a grouped convolution; zeros inside
    live channels still count.

    Parameters
    ----------
    weight : Tensor
        `[c_out, c_in / groups, ...]`; only its shape matters.
    null_in, null_out : NullChannels
        Of the `c_in` input and `c_out` output channels.
    m_h, m_w : int
        Height and width of the output.

    Returns
    -------
    int
        MACs of one input.

    Examples
    --------
    >>> effective_macs(torch.ones(4, 2, 3, 3), NullChannels.none(2), NullChannels.none(4), 4, 4)
    1152
    """
    groups = _groups(weight, null_in)
    live_in = (~null_in.mask()).reshape(groups, -1).sum(axis=1)
    live_out = (~null_out.mask()).reshape(groups, -1).sum(axis=1)
    return int(live_in @ live_out) * prod(weight.shape[2:]) * m_h * m_w


def unstructured_macs(weight: Tensor, m_h: int, m_w: int) -> int:
    """Count the MACs of the non-zero weights, paper eq. (21).

    Examples
    --------
    >>> unstructured_macs(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), 4, 4)
    32
    """
    return int(weight.count_nonzero()) * m_h * m_w


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
        By the ``"weights"`` accounting, under both.
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
    return [
        LayerRecord(
            op.layer,
            weights[op.layer],
            nonzero[op.layer],
            bitwidth(op.layer, modules[op.layer]),
            NullChannels.from_mask(nulls[op.layer][0]),
            NullChannels.from_mask(nulls[op.layer][1]),
            op.spatial,
        )
        for op in graph.layers
    ]


def _check_countable(model: nn.Module, graph: ChannelGraph) -> None:
    counted = [op.layer for op in graph.layers]
    if twice := next((name for name in counted if counted.count(name) > 1), None):
        raise CodeqError(f"layer {twice!r} is called more than once in a forward pass; codeq cannot count it yet")
    calls = {op.call for op in graph.ops if isinstance(op, Unknown)}
    for name, layer in named_layers(model):
        if f"call_module {name}" in calls:
            raise CodeqError(
                f"layer {name!r} ({type(layer).__name__}) cannot be counted: only Conv2d on `[N, C, H, W]` and Linear "
                "on `[N, C]` or `[N, tokens, C]` can"
            )


def dense_stats(records: Sequence[LayerRecord], b_a: int = 32) -> ModelStats:
    """Cost of the dense 32-bit network of the same architecture, paper eq. (20)."""
    none = NullChannels.none
    return ModelStats(
        [
            r.stats(
                effective_macs(r.weight, none(r.null_in.total), none(r.null_out.total), *r.spatial),
                0.0,
                FLOAT_BITS,
                b_a,
            )
            for r in records
        ]
    )


def structured_stats(records: Sequence[LayerRecord], b_a: int = 32) -> ModelStats:
    """Cost with null channels cut away, ``"weights"`` accounting; zeros inside live channels count in full."""
    return ModelStats(
        [
            r.stats(effective_macs(r.weight, r.null_in, r.null_out, *r.spatial), r.null_out.ratio, r.bitwidth, b_a)
            for r in records
        ]
    )


def unstructured_stats(records: Sequence[LayerRecord], b_a: int = 32) -> ModelStats:
    """Cost of the non-zero weights alone, paper eq. (21)-(22)."""
    stats = []
    for r in records:
        macs = unstructured_macs(r.weight, *r.spatial)
        zeros = 1 - macs / (r.weight.numel() * prod(r.spatial))
        stats.append(r.stats(macs, zeros, r.bitwidth, b_a))
    return ModelStats(stats)


def compression_ratio(baseline: int, compressed: int) -> float:
    """Return baseline / compressed (×); `inf` when nothing is left.

    Examples
    --------
    >>> compression_ratio(8, 2), compression_ratio(8, 0)
    (4.0, inf)
    """
    return baseline / compressed if compressed else inf


class QuantizationComparison:
    """Compares a compressed network with the dense 32-bit one.

    Parameters
    ----------
    input_size : tuple of int
        `(C, H, W)` of one input.
    b_a : int
        Bits of the activations, in both networks.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> comparison = QuantizationComparison()
    >>> comparison.set_baseline(resnet20())
    >>> comparison.baseline.total_macs
    40551040
    >>> comparison.compression_ratio(comparison.calculate_stats(resnet20()))
    1.0
    """

    def __init__(self, input_size: tuple[int, int, int] = (3, 32, 32), b_a: int = 32) -> None:
        self.input_size = input_size
        self.b_a = b_a
        self._baseline: ModelStats | None = None

    @property
    def baseline(self) -> ModelStats:
        """Cost of the dense 32-bit network.

        Raises
        ------
        CodeqError
            Before `set_baseline`.
        """
        if self._baseline is None:
            raise CodeqError("there is no baseline to compare with; call set_baseline(model) first")
        return self._baseline

    def set_baseline(self, model: nn.Module) -> None:
        """Take the dense 32-bit version of `model` as baseline, whatever quantizers or zeros it has."""
        self._baseline = dense_stats(measure(model, self.input_size), self.b_a)

    def calculate_stats(self, model: nn.Module) -> ModelStats:
        """Return the structured cost of `model`, see `structured_stats`."""
        return structured_stats(measure(model, self.input_size), self.b_a)

    def calculate_unstructured_stats(self, model: nn.Module) -> ModelStats:
        """Return the unstructured cost of `model`, see `unstructured_stats`."""
        return unstructured_stats(measure(model, self.input_size), self.b_a)

    def compression_ratio(self, stats: ModelStats) -> float:
        """Return baseline BOPs / structured BOPs (×); `inf` when nothing is left."""
        return compression_ratio(self.baseline.total_bops, stats.total_bops)

    def mac_compression_ratio(self, stats: ModelStats) -> float:
        """Return baseline MACs / structured MACs (×); `inf` when nothing is left."""
        return compression_ratio(self.baseline.total_macs, stats.total_macs)

    def unstructured_compression_ratio(self, stats: ModelStats) -> float:
        """Return baseline BOPs / unstructured BOPs (×); `inf` when nothing is left."""
        return self.compression_ratio(stats)

    def unstructured_mac_compression_ratio(self, stats: ModelStats) -> float:
        """Return baseline MACs / unstructured MACs (×); `inf` when nothing is left."""
        return self.mac_compression_ratio(stats)
