"""Exact analysis of what each channel of a network computes.

`codeq.graph` determines from the structure alone, cheaply enough for every training step, which weights must be zero
together to prune a channel. This package analyses the values of a given network: which channels depend on its input,
which are constant and with what value, and which are never read. It runs the network once, in float64, on the fixed
part of every tensor. It therefore needs no rule for the values that an operation computes, only for the elements that
each result depends on (`codeq.flow.rules`). Evaluation mode only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from codeq.common.checks import at_least, check_choice
from codeq.common.default_device import cpu_by_default
from codeq.common.errors import CodeqError, unknown_name
from codeq.flow.layers import Borders, same_direction, uneven
from codeq.flow.rules import Rules
from codeq.flow.steps import Input, LayerCall, Opaque, Output, Step
from codeq.flow.values import FIXED, Value
from codeq.flow.whole_streams import whole_stream_masks
from codeq.graph.call_recording import record_calls
from codeq.graph.calls import Calls
from codeq.graph.channels import coupled_groups
from codeq.graph.tracing import channel_graph
from codeq.quantizer.layers import LAYER_TYPES, named_layers

Streams = Literal["scatter", "whole"]


@dataclass(frozen=True, eq=False)
class ChannelFlow:
    """Analysis of every channel of a network, for inputs of one size.

    Parameters
    ----------
    calls : Calls
        The recorded float64 copy.
    steps : list of Step
        Calls that make tensors from the input, in order of execution.
    results : dict of fx.Node to object
        Return value of every call, with a `Value` for each tensor.
    needed : array of bool
        For every unit, whether the network's result depends on it.
    ungrouped : tuple of str
        Layers of which whole streams keep dead filters that are in no coupled group.
    """

    calls: Calls
    steps: list[Step]
    results: dict[fx.Node, Any]
    needed: np.ndarray
    ungrouped: tuple[str, ...] = ()

    @property
    def layers(self) -> list[LayerCall]:
        """Conv and linear layers in order of execution."""
        return [step for step in self.steps if isinstance(step, LayerCall)]

    @property
    def unknown(self) -> list[str]:
        """Names and places of the operations that codeq does not follow; channels that reach them stay live."""
        found = []
        for step in self.steps:
            match step:
                case Opaque():
                    found.append(step.call)
                case LayerCall(opaque=True):
                    found.append(f"{step.name} ({type(step.layer).__name__})")
        return found

    @property
    def constant_layers(self) -> list[str]:
        """Conv and linear layers that are called, but on constants alone: they make no step."""
        steps = set(self._layers_of(step.node for step in self.steps))
        return [name for name in self._layers_of(self.calls.graph.nodes) if name not in steps]

    @property
    def unfollowed_layers(self) -> list[str]:
        """Conv and linear layers that return something else than one tensor: their calls are no `LayerCall`."""
        return self._layers_of(step.node for step in self.steps if isinstance(step, Opaque))

    def _layers_of(self, nodes: Iterable[fx.Node]) -> list[str]:
        called = [node for node in nodes if isinstance(self.calls.module(node), LAYER_TYPES)]
        return list(dict.fromkeys(map(self.calls.layer, called)))

    def calls_of(self, layer: str) -> list[LayerCall]:
        """Return the calls of a layer that depend on the input.

        The weights of a tied decoder are used in both directions, by a convolution and by a transposed one, which have
        other channels. Those in the direction of the layer are returned if there are any.
        """
        calls = [call for call in self.layers if call.name == layer]
        named = self.calls.modules.get(layer, calls[0].layer if calls else None)
        own = [call for call in calls if same_direction(call.layer, named)]
        return own or calls

    def kinds(self, layer: str) -> list[str]:
        """Return the kind of each output channel of a layer, the first of these that holds in any of its calls.

        ``"live"``: depends on the input; ``"unread"``: depends on the input, but the result of the network does not
        depend on it; ``"fixed"``: a map that does not depend on the input but varies over space, as a constant does
        after a zero-padded convolution; ``"constant"``: one number.
        """
        calls = self.calls_of(layer)
        if not calls:
            if layer in self.constant_layers:
                raise CodeqError(
                    f"layer {layer!r} is called on constants alone: none of its channels depends on the input"
                )
            if layer in self.unfollowed_layers:
                raise CodeqError(
                    f"layer {layer!r} returns something else than one tensor: its channels are not followed"
                )
            names = dict.fromkeys(call.name for call in self.layers)
            if layer in dict(named_layers(self.calls.model)):
                raise CodeqError(f"layer {layer!r} is not called; layers: {', '.join(names)}")
            raise unknown_name("layer", layer, names)
        live, kept = (np.any([getattr(call, side) for call in calls], axis=0) for side in ("live_out", "kept_out"))
        varies = np.any([uneven(call.layer, call.result.data) for call in calls if not call.opaque], axis=0)
        return np.where(live, np.where(kept, "live", "unread"), np.where(varies, "fixed", "constant")).tolist()


@cpu_by_default()
@torch.no_grad()
def channel_flow(
    model: nn.Module,
    input_size: tuple[int, ...] = (3, 32, 32),
    borders: Borders = "map",
    streams: Streams = "scatter",
    multiple_of: int = 1,
) -> ChannelFlow:
    """Analyse what every channel of `model` computes.

    Parameters
    ----------
    model : Module
        With or without quantizers or other parametrizations; left as it is. On any device.
    input_size : tuple of int
        Shape of one input. Fixed maps are valid for this size only.
    borders : {"map", "live"}
        Treatment of a constant channel in front of a zero-padded convolution, which contributes less at the borders.
        ``"map"``: the contribution is a fixed map. ``"live"``: the convolution reads the channel as if it were live.
    streams : {"scatter", "whole"}
        Treatment of a dead filter whose channel of the residual stream is kept alive by other filters. ``"scatter"``:
        it counts as removed; the results of the others are scattered to their channels of the stream, and each reader
        gathers the channels that it reads. ``"whole"``: as long as a channel is live, all filters that write it and
        all weights that read it count as live, so that no channels are moved. A dead channel that belongs to no coupled
        group is kept as well, also in a chain of layers: it reaches the output, a grouped convolution that is not
        depthwise, a layer that is called twice, or a call without a rule, such as a transposed convolution, a softmax,
        ``PixelShuffle`` and ``ChannelShuffle``. `CompactionReport.notes` names the layers.
    multiple_of : int
        With whole streams: number that the kept input and output channels of every layer are rounded up to, by keeping
        dead channels, up to all channels of the layer.

    Raises
    ------
    CodeqError
        If the model cannot be traced with such an input, or for an unknown option.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight[1].zero_(), net[0].bias.fill_(1.0), net[2].weight[:, 3].zero_()
    >>> flow = channel_flow(net, (3, 8, 8))
    >>> flow.kinds("0")
    ['live', 'constant', 'live', 'unread']
    >>> [(layer.name, layer.macs) for layer in flow.layers]  # 2 of 3 · 4 · 9 · 36 and of 4 · 2 · 9 · 36
    [('0', 1944), ('2', 1296)]
    """
    check_options(borders, streams, multiple_of)
    calls = record_calls(model, input_size)
    if calls.wrong:
        raise CodeqError(f"{type(model).__name__} cannot be followed: {'; '.join(calls.problems)}")
    if calls.sizes_by_values:  # sizes would be those of the fixed part, in which masks select other elements
        origins = ", ".join(dict.fromkeys(calls.sizes_by_values.values()))
        raise CodeqError(f"{type(model).__name__} cannot be followed: sizes of tensors depend on values, by {origins}")
    flow = _follow(calls, borders, {})
    if streams == "whole":
        groups = coupled_groups(channel_graph(calls))
        exact = {call.node: call.kept_out for call in flow.layers}
        flow = _follow(calls, borders, whole_stream_masks(flow.layers, groups, multiple_of))
        held = []
        for call in flow.layers:
            kept = call.kept_out & ~exact[call.node]
            of = groups.writers.get(call.name, np.full(len(kept), -1))
            # A layer that is used in both directions has the groups of one of them.
            if len(of) == len(kept) and (kept & (of == -1)).any():
                held.append(call.name)
        flow = replace(flow, ungrouped=tuple(dict.fromkeys(held)))
    return flow


def check_options(borders: str, streams: str, multiple_of: int) -> None:
    """Raise a `CodeqError` for options of `channel_flow` that do not exist or do not go together."""
    check_choice("borders", borders, Borders)
    check_choice("streams", streams, Streams)
    at_least("multiple_of", multiple_of, 1)
    if multiple_of > 1 and streams != "whole":
        raise CodeqError(f"multiple_of={multiple_of}: requires streams='whole', since scattered streams have gaps")


def _follow(calls: Calls, borders: Borders, counted_nonzero: Mapping[str, np.ndarray]) -> ChannelFlow:
    rules = Rules(calls, borders, counted_nonzero)
    results: dict[fx.Node, Any] = {}
    steps: list[Step] = []
    output: Any = None
    for node in calls.graph.nodes:
        args, kwargs = (fx.map_arg(a, results.__getitem__) for a in (node.args, node.kwargs))
        if node.op == "placeholder":
            step: Any = _input(rules, node)
        elif node.op == "get_attr":
            attribute = calls.attribute(node)
            step = rules.fixed(attribute, attribute.shape) if isinstance(attribute, Tensor) else attribute
        elif node.op == "output":
            output = args[0]
            step = Output(node, args, kwargs, output)
        else:
            step = rules.step(node, args, kwargs)
        results[node] = step.result if isinstance(step, Step) else step
        if isinstance(step, Step):
            steps.append(step)
    values = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Value)]
    if not values:
        raise CodeqError(f"{type(calls.model).__name__} returns nothing that depends on tensors")
    needed = rules.units.needed(np.unique(np.concatenate([value.units.ravel() for value in values])))
    for step in steps:
        if isinstance(step, LayerCall):
            step.resolve(needed)
    return ChannelFlow(calls, steps, results, needed)


def _input(rules: Rules, node: fx.Node) -> Input:
    size = rules.calls.input_size
    channels = np.array([rules.units.fresh([]) for _ in range(size[0])])
    assert FIXED not in channels
    units = np.broadcast_to(channels.reshape(-1, *[1] * (len(size) - 1)), size)
    return Input(node, (), {}, Value(torch.zeros(*size, dtype=torch.float64), units, batch=0))
