"""Explanation of why a channel is live or dead, and of the MACs and BOPs that pruning it saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from codeq.common.checks import is_integer
from codeq.common.errors import CodeqError, quote
from codeq.flow.analysis import ChannelFlow, channel_flow
from codeq.flow.layers import by_channel, same_direction
from codeq.flow.steps import LayerCall
from codeq.graph.baking import baked_copy
from codeq.graph.channels import CoupledGroups, coupled_groups
from codeq.graph.coupled_group import CoupledGroup, coupled_group
from codeq.graph.layer_rules import input_quantizer
from codeq.graph.ops import ChannelGraph
from codeq.graph.tracing import trace
from codeq.quantizer.activations import activation_bits
from codeq.quantizer.layers import FLOAT_BITS, bitwidth, forward_weight, named_layers
from codeq.quantizer.transposed import swap_channels, transposed_groups

SHOWN = 4  # names in a sentence before "and N more"


@dataclass(frozen=True)
class ChannelExplanation:
    """Explanation of the state of one output channel of a layer.

    Parameters
    ----------
    layer : str
        Full dotted name.
    channel : int
        Output channel.
    kind : {"live", "unread", "constant", "fixed"}
        Kind of the channel, see `codeq.flow.ChannelFlow.kinds`.
    value : float or None
        Constant value of a channel that does not depend on the input, after the BatchNorm that follows the layer, if
        any; `None` for a channel that depends on the input, varies over space or is another one in each call.
    kept_by : tuple of (str, int)
        Other filters that keep the same channel of the residual stream alive.
    read_by : tuple of (str, int, int)
        Layer, input channel and number of non-zero weights of each slice that reads the channel.
    group : CoupledGroup or None
        Filters and slices that must be zero together to prune the channel; `None` if it cannot be pruned.
    saved_macs, saved_bops : int
        Savings of the compacted network for one input if all filters of the group were zero, relative to the network
        as it is (``"exact"`` accounting, activations of 32 bits or those of their quantizers).
    reasons : tuple of str
        The same information as sentences.
    """

    layer: str
    channel: int
    kind: str
    value: float | None
    kept_by: tuple[tuple[str, int], ...]
    read_by: tuple[tuple[str, int, int], ...]
    group: CoupledGroup | None
    saved_macs: int
    saved_bops: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"channel {self.channel} of {self.layer}: {self.kind}", *(f"- {r}" for r in self.reasons)])


@torch.no_grad()
def explain(
    model: nn.Module, layer: str, channel: int, input_size: tuple[int, int, int] = (3, 32, 32)
) -> ChannelExplanation:
    """Explain why a channel is live or dead, and how many MACs and BOPs pruning its group would save.

    Parameters
    ----------
    model : Module
        With or without quantizers; left as it is.
    layer : str
        Full dotted name of a conv or linear layer, or of a weight that is used without one.
    channel : int
        Output channel.
    input_size : tuple of int
        `(C, H, W)` of one input.

    Raises
    ------
    CodeqError
        If the layer or channel does not exist, or the model cannot be traced.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> model = resnet20()
    >>> with torch.no_grad():
    ...     _ = model.layer1[0].conv2.weight[3].zero_()
    >>> print(explain(model, "layer1.0.conv2", 3))
    channel 3 of layer1.0.conv2: constant
    - all of its 144 weights are zero
    - layer1.0.bn2 (scale 1, shift 0, mean 0) makes it the constant 0
    - conv1[3], layer1.1.conv2[3], layer1.2.conv2[3] and 6 more write the same channel of the residual ...
    - read by layer1.0.conv1[:, 3], layer1.1.conv1[:, 3], layer1.2.conv1[:, 3] and 7 more
    - if all 10 filters of its group were zero: 1,428,490 MACs and 1,462,773,760 BOPs fewer
    """
    check_channel(channel)
    graph = trace(model, input_size)
    groups = coupled_groups(graph)
    followed = layer in groups.writers
    group = coupled_group(graph, groups, layer, channel) if followed else None
    plain = baked_copy(model).cpu()
    flow = channel_flow(plain, input_size)
    kinds = flow.kinds(layer)
    if not 0 <= channel < len(kinds):
        raise CodeqError(f"channel={channel}: layer {layer!r} has channels 0 … {len(kinds) - 1}")
    kind, module = kinds[channel], flow.calls_of(layer)[0].layer
    reasons = [_describe_weights(swap_channels(forward_weight(module), transposed_groups(module))[channel])]
    bias = getattr(module, "bias", None)
    if kind in ("constant", "fixed") and bias is not None and float(bias[channel]):
        reasons.append(f"its bias is {float(bias[channel]):.4g}")
    norm = _norm_after(graph, plain, layer) if followed else None
    value = _constant(flow, layer, module, norm, channel) if kind in ("constant", "fixed") else None
    if kind in ("constant", "fixed"):
        result = _describe_result(kind, value)
        source = f"{_describe_norm(norm, plain.get_submodule(norm), channel)} makes it" if norm else "it is"
        reasons.append(f"{source} {result}")
    kept_by, read_by = _writers_and_readers(flow, groups, group, layer, channel)
    if kept_by:
        others = _enumerate([f"{name}[{c}]" for name, c in kept_by])
        third = "s" if len(kept_by) == 1 else ""
        kept = "" if kind == "live" else f" and keep{third} it alive"
        reasons.append(f"{others} write{third} the same channel of the residual stream{kept}")
    if group is None:
        reasons.append(
            "it cannot be pruned: it comes from or reaches a grouped convolution, or it reaches the output or an "
            "operation that is not followed"
            if followed
            else "coupled groups do not follow this layer, so that it is in none; compaction removes it if it is dead"
        )
        return ChannelExplanation(layer, channel, kind, value, kept_by, read_by, group, 0, 0, tuple(reasons))
    if read_by:
        reasons.append(f"read by {_enumerate([f'{name}[:, {c}]' for name, c, _ in read_by])}")
    else:
        reasons.append("nothing reads it: every slice of it is zero or belongs to a dead filter")
    bits = {name: bitwidth(name, module) for name, module in named_layers(model)}
    for name, c in group.writers:
        forward_weight(plain.get_submodule(name))[c] = 0
    before, after = _cost(flow, bits), _cost(channel_flow(plain, input_size), bits)
    macs, bops = before[0] - after[0], before[1] - after[1]
    subject = f"all {len(group.writers)} filters of its group were" if len(group.writers) > 1 else "its filter were"
    reasons.append(f"if {subject} zero: {macs:,} MACs and {bops:,} BOPs fewer" if macs else "its group is dead already")
    return ChannelExplanation(layer, channel, kind, value, kept_by, read_by, group, macs, bops, tuple(reasons))


def check_channel(channel: object) -> None:
    """Raise a `CodeqError` if `channel` is no integer.

    Examples
    --------
    >>> check_channel("3")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: channel='3': must be an integer, the output channel counted from 0
    """
    if not is_integer(channel):
        raise CodeqError(f"channel={quote(channel)}: must be an integer, the output channel counted from 0")


def _describe_weights(weights: torch.Tensor) -> str:
    nonzero, total = int(weights.count_nonzero()), weights.numel()
    if not nonzero:
        return f"all of its {total} weights are zero"
    verb = "is" if nonzero == 1 else "are"
    return f"{nonzero} of its {total} weights {verb} not zero (norm {float(weights.norm()):.3g})"


def _norm_after(graph: ChannelGraph, plain: nn.Module, layer: str) -> str | None:
    """Return the BatchNorm behind all calls of a layer, if it maps each constant to one."""
    norms = graph.batchnorms_after(layer)
    statistics = [getattr(plain.get_submodule(norm), "running_mean", None) for norm in norms]
    return norms[0] if len(norms) == 1 and statistics[0] is not None else None


def _constant(flow: ChannelFlow, layer: str, module: nn.Module, norm: str | None, channel: int) -> float | None:
    """Return the value of a fixed channel of a layer, after its BatchNorm, or `None` if it varies over space or calls.

    Other layers may share the BatchNorm: only its calls behind this one count.
    """
    called = [node for node in flow.results if node.op == "call_module"]
    calls = [node for node in called if flow.calls.layer(node) == layer]
    nodes = [node for node in calls if same_direction(flow.calls.module(node), module)]
    if norm:
        behind = [node for node in called if flow.calls.layer(node) == norm]
        nodes = [node for node in behind if not set(nodes).isdisjoint(node.all_input_nodes)]
    values = np.concatenate(
        [by_channel(cast(nn.Module, flow.calls.module(n)), flow.results[n].data.numpy())[channel] for n in nodes]
    )
    return float(values[0]) if np.ptp(values) <= 1e-12 * np.abs(values).max() else None


def _describe_norm(name: str, norm: Any, channel: int) -> str:
    scale, shift = (float(p[channel]) if p is not None else d for p, d in ((norm.weight, 1.0), (norm.bias, 0.0)))
    return f"{name} (scale {scale:.4g}, shift {shift:.4g}, mean {float(norm.running_mean[channel]):.4g})"


def _describe_result(kind: str, value: float | None) -> str:
    if value is not None:
        return f"the constant {value:.4g}"
    return "a map that varies over space" if kind == "fixed" else "another constant in each call"


def _writers_and_readers(
    flow: ChannelFlow, coupled: CoupledGroups, group: CoupledGroup | None, layer: str, channel: int
) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int, int], ...]]:
    """Return the other live filters that write the channel, and the slices that read it.

    Other members of the group are only pruned together with it.
    """
    if group is None:
        return (), ()
    stream = coupled.written[layer][:, channel]
    writers = [(name, c) for name, c in group.writers if np.isin(coupled.written[name][:, c], stream).any()]
    readers = [(name, c) for name, c in group.readers if np.isin(coupled.read[name][:, c], stream).any()]
    names = dict.fromkeys(call.name for call in flow.layers)
    calls: dict[str, list[LayerCall]] = {name: flow.calls_of(name) for name in names}
    others = [writer for writer in writers if writer != (layer, channel)]
    writes = tuple((name, c) for name, c in others if any(call.live_out[c] for call in calls[name]))
    reads = []
    for name, c in readers:
        weight, groups = forward_weight(calls[name][0].layer).detach(), calls[name][0].groups
        of_group = c // weight.shape[1] if groups > 1 else 0
        kept_out = np.any([call.kept_out for call in calls[name]], axis=0)
        rows = torch.from_numpy(kept_out).reshape(groups, -1)[of_group]
        slices = weight.reshape(groups, -1, *weight.shape[1:])[of_group, :, c % weight.shape[1]]
        if nonzero := int(slices[rows].count_nonzero()):
            reads.append((name, c, nonzero))
    return writes, tuple(reads)


def _cost(flow: ChannelFlow, bits: dict[str, int]) -> tuple[int, int]:
    """Return the MACs and BOPs of the channels that are live and read."""
    inputs = [activation_bits(flow.calls.modules, input_quantizer(flow.calls, call.node)) for call in flow.layers]
    bops = [
        call.macs * bits.get(call.name, FLOAT_BITS) * (b_a or FLOAT_BITS)  # weights of attention belong to no layer
        for call, b_a in zip(flow.layers, inputs, strict=True)
    ]
    return sum(call.macs for call in flow.layers), sum(bops)


def _enumerate(names: list[str]) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: SHOWN - 1])} and {len(names) - SHOWN + 1} more"
