"""Records of the weights of a model, one a layer."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from codeq.common.errors import CodeqError, listed
from codeq.common.modes import evaluation_mode
from codeq.graph.channels import null_channels
from codeq.graph.leaves import plain_forward
from codeq.graph.ops import ChannelGraph, Layer, UnfollowedWeight
from codeq.graph.tracing import trace
from codeq.metrics.nulls import NullChannels, nonzero_kernels
from codeq.metrics.stats import LayerStats, kernel_size
from codeq.quantizer.activations import activation_bits
from codeq.quantizer.layers import FLOAT_BITS, bitwidth, forward_weight, latent_weight, named_layers
from codeq.quantizer.transposed import swap_channels, transposed_groups

MAX_CALLS = 3  # operations that a note names


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """Quantized weights, bits and null channels of one layer, before any accounting.

    Parameters
    ----------
    name : str
        Full dotted name of the layer, or of a weight that is used without one, such as ``attn.in_proj_weight``.
    weight : Tensor
        The weights that the forward pass uses, detached, `[c_out, c_in / groups, ...]`.
    nonzero : array of bool
        `[c_out, c_in / groups]`, kernels with a non-zero weight.
    bitwidth : int
        Bits.
    null_in, null_out : NullChannels
        By the ``"weights"`` accounting.
    spatial : tuple of int
        Output height and width; for a linear layer `(1, 1)`, or `(tokens, 1)` on tokens. Of a layer that is called more
        than once `(positions of all calls, 1)`, of a transposed convolution `(input positions, 1)`.
    elements : int
        Elements that it writes for one input, in all calls.
    stored : bool
        Whether the weights take memory of their own; false for those that an earlier layer has already (tied weights).
    activation_bits : int or None
        Bits of the inputs, the most of all calls; `None` if they are float in any.
    """

    name: str
    weight: Tensor
    nonzero: np.ndarray
    bitwidth: int
    null_in: NullChannels
    null_out: NullChannels
    spatial: tuple[int, int]
    elements: int
    stored: bool = True
    activation_bits: int | None = None

    @property
    def alive(self) -> np.ndarray:
        """`[c_out]`, true for filters with a non-zero weight."""
        return np.any(self.nonzero, axis=1)

    def stats(self, macs: int, pruning_ratio: float, bits: int, b_a: int) -> LayerStats:
        """Return the cost of the layer, given its MACs under some accounting and the bits of its weights and inputs."""
        return LayerStats(
            self.name,
            macs,
            macs * bits * b_a,
            bits,
            pruning_ratio,
            self.null_out,
            self.null_in,
            self.spatial,
            kernel_size(self.weight.shape),
            b_a,
        )


class Records(list[LayerRecord]):
    """The records of a model, with notes on what they leave out or assume.

    Parameters
    ----------
    records : iterable of LayerRecord
        In order of execution.
    notes : iterable of str
        See `ModelStats`.
    """

    def __init__(self, records: Iterable[LayerRecord], notes: Iterable[str] = ()) -> None:
        super().__init__(records)
        self.notes = tuple(notes)


@torch.no_grad()
def measure(model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> Records:
    """Read every weight matrix that the forward pass of `model` uses once, in order of execution.

    Besides conv and linear layers these are weights that belong to no layer, such as the packed projection of
    `torch.nn.MultiheadAttention`, which have 32 bits. A layer that is called more than once is one record; layers that
    share a weight are one each. Layers that are never called have no record and are named in the notes.

    Parameters
    ----------
    model : Module
        With or without quantizers; its mode and device are left as found.
    input_size : tuple of int
        `(C, H, W)` of one input.

    Raises
    ------
    CodeqError
        If the model cannot be traced, the bits of a layer are unknown, or a layer is used in a way that codeq cannot
        count.

    Examples
    --------
    >>> [(r.name, r.bitwidth, r.spatial) for r in measure(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8))]
    [('0', 32, (6, 6))]
    """
    graph = trace(model, input_size)
    modules, everything = dict(named_layers(model)), dict(model.named_modules())
    uses: dict[str, list[Layer | UnfollowedWeight]] = {}
    for op in graph.weighted:
        uses.setdefault(op.weight, []).append(op)
    _check_countable(modules, graph, uses)
    with evaluation_mode(model):  # parametrizations may compute other weights, or change their state, in training
        weights = used_weights(model, graph, uses)
        nonzero = {name: nonzero_kernels(weight) for name, weight in weights.items()}
        nulls = null_channels(graph, nonzero)
        followed = {name: nulls[name] for name, calls in uses.items() if all(isinstance(call, Layer) for call in calls)}
        repeated = repeated_layers(model)
        records = [
            LayerRecord(
                name,
                weights[name],
                nonzero[name],
                bitwidth(name, modules[name]) if name in modules else FLOAT_BITS,
                *_null_channels(followed, name, calls[0].groups, weights[name]),
                calls[0].spatial if len(calls) == 1 else (sum(prod(call.spatial) for call in calls), 1),
                sum(call.elements for call in calls),
                name not in repeated,
                _input_bits(everything, calls),
            )
            for name, calls in uses.items()
        ]
    return Records(records, notes_on(graph.problems, modules, uses, [op.call for op in graph.unknown]))


def notes_on(
    problems: Iterable[str], layers: Iterable[str], used: Container[str], unknown: Sequence[str], accounting: str = ""
) -> tuple[str, ...]:
    """Return what a measurement could not follow, see `ModelStats`.

    Parameters
    ----------
    problems : iterable of str
        Of the graph.
    layers, used : iterable, container of str
        Names of all layers, and of those that are called.
    unknown : sequence of str
        Operations that are not followed.
    accounting : str
        Beginning of the last note, for an accounting that follows other operations than the structured one.
    """
    notes = [f"layer {name!r} is never called: it counts no MACs" for name in layers if name not in used]
    if unknown:
        live = f"{accounting}channels count as live where operations are not followed"
        notes.append(f"{live}: {listed(unknown, MAX_CALLS)}")
    return (*problems, *notes)


def repeated_layers(model: nn.Module) -> set[str]:
    """Return the layers whose weights, quantized to the same values, are those of an earlier layer (tied weights).

    Values are those of evaluation mode.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> net[1].weight = net[0].weight
    >>> repeated_layers(net)
    {'1'}
    """
    first: dict[nn.Parameter, list[nn.Module]] = {}
    repeated = set()
    with evaluation_mode(model):
        for name, layer in named_layers(model):
            others = first.setdefault(latent_weight(layer), [])
            if any(torch.equal(forward_weight(layer), forward_weight(other)) for other in others):
                repeated.add(name)
            others.append(layer)
    return repeated


def used_weights(model: nn.Module, graph: ChannelGraph, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the weights that the forward pass uses, `[c_out, c_in / groups, ...]`, by the names of their records.

    Parameters
    ----------
    model : Module
        With or without quantizers.
    graph : ChannelGraph
        The traced model.
    names : iterable of str
        Of layers, or of weights that are used without one.
    """
    layers = dict(named_layers(model))
    transposed = {op.weight: op.groups for op in graph.unknown if isinstance(op, UnfollowedWeight) and op.transposed}
    weights: dict[str, Tensor] = {}
    for name in names:
        if name in layers:
            weight, groups = forward_weight(layers[name]), transposed_groups(layers[name])
        else:
            owner, _, attribute = name.rpartition(".")
            weight, groups = cast(Tensor, getattr(model.get_submodule(owner), attribute)), transposed.get(name)
        weights[name] = swap_channels(weight.detach(), groups)
    return weights


def _input_bits(modules: Mapping[str, nn.Module], calls: Sequence[Layer | UnfollowedWeight]) -> int | None:
    bits = [activation_bits(modules, call.input_quantizer) or FLOAT_BITS for call in calls]
    return None if FLOAT_BITS in bits else max(bits)


def _null_channels(
    followed: Mapping[str, tuple[np.ndarray, np.ndarray]], name: str, groups: int, weight: Tensor
) -> tuple[NullChannels, NullChannels]:
    if name not in followed:
        return NullChannels.none(groups * weight.shape[1]), NullChannels.none(len(weight))
    null_in, null_out = followed[name]
    return NullChannels.from_mask(null_in), NullChannels.from_mask(null_out)


def _check_countable(modules: Mapping[str, nn.Module], graph: ChannelGraph, counted: Container[str]) -> None:
    """Refuse layers whose weights are used otherwise than by a call, or inside a module that is not followed."""
    calls = {op.call for op in graph.unknown}
    for name, layer in modules.items():
        parts = name.split(".")
        inside = any(f"call_module {'.'.join(parts[: n + 1])}" in calls for n in range(len(parts)))
        if name in graph.uncounted:
            raise CodeqError(f"layer {name!r} cannot be counted: {'; '.join(graph.problems)}")
        if inside and name not in counted:
            kind = type_before_parametrizations(layer)
            cause = "it, or a module around it, computes in a way that is not followed"
            if not plain_forward(layer):
                cause = (
                    f"the forward of {kind.__name__} computes with more than its weight and bias; compute a weight in "
                    "a parametrization of a plain layer, and put other matrices into layers of their own"
                )
            raise CodeqError(f"layer {name!r} ({kind.__name__}) cannot be counted: {cause}")
