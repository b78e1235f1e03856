"""Rules of calls that move channels: flattening, padding, slicing, concatenation and selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import fx

from codeq.graph.calls import Calls, argument
from codeq.graph.layer_rules import Base, channel_axis, shape_of
from codeq.graph.ops import Concat, Gather, Op, PerChannel


def without_space(base: Base, node: fx.Node) -> Op | None:
    """Follow one position of each channel: `[N, C, H, W]` to `[N, C]`."""
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    return PerChannel(*base) if len(before) == 4 and after == before[:2] else None


def flattened(base: Base, node: fx.Node) -> Op | None:
    """Follow the flattening of everything but the batch: each channel becomes its positions."""
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    if len(before) < 2 or len(after) != 2 or after[0] != before[0]:
        return None
    axis = channel_axis(before)
    channel = np.arange(before[axis]).reshape([-1 if d == axis else 1 for d in range(1, len(before))])
    return Gather(*base, index=np.broadcast_to(channel, before[1:]).ravel())


def padded(base: Base, node: fx.Node) -> Op | None:
    """Follow ``F.pad``."""
    mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value")
    return padded_by(base, node, argument(node, 1, "pad"), value) if mode == "constant" else None


def padded_by(base: Base, node: fx.Node, pads: Sequence[int], value: float | None) -> Op | None:
    """Follow padding with zeros, of space or, as in a shortcut without weights, of channels."""
    source = shape_of(node.all_input_nodes[0])
    if len(source) < 2 or value not in (None, 0, 0.0):
        return None
    by_dimension = [(0, 0)] * len(source)
    for k in range(len(pads) // 2):  # the last dimension comes first
        by_dimension[-1 - k] = (pads[2 * k], pads[2 * k + 1])
    axis = channel_axis(source)
    before, after = by_dimension[axis]
    if by_dimension[0] != (0, 0) or before < 0 or after < 0:
        return None
    return Gather(*base, index=np.concatenate([np.full(before, -1), np.arange(source[axis]), np.full(after, -1)]))


def sliced(base: Base, node: fx.Node) -> Op | None:
    """Follow slices of channels, and of one position of each."""
    source, picks = shape_of(node.all_input_nodes[0]), cast(Any, node.args[1])
    if isinstance(picks, tuple) and picks.count(...) == 1:
        at = picks.index(...)
        picks = (*picks[:at], *[slice(None)] * (len(source) - len(picks) + 1), *picks[at + 1 :])
    axis = channel_axis(source)
    if not isinstance(picks, tuple) or picks[:1] != (slice(None),):
        return None
    if not all(isinstance(pick, slice) for pick in picks):
        one_position = picks[1:2] == (slice(None),) and all(type(pick) is int for pick in picks[2:])
        return without_space(base, node) if one_position else None
    return Gather(*base, index=np.arange(source[axis])[picks[axis] if axis < len(picks) else slice(None)])


def concatenated(base: Base, node: fx.Node, calls: Calls) -> Op:
    """Follow a concatenation of channels.

    Constants that a compacted network inserts between channels count as zeros, like the shift of a BatchNorm.
    """
    given = cast(list[fx.Node], argument(node, 0, "tensors"))
    tensors = [tensor for tensor in given if shape_of(tensor) != (0,)]  # a list that starts empty
    inserted = [tensor in calls.varying for tensor in tensors] == [True, False]
    if not (inserted and all(user.target == "index_select" for user in node.users)):
        return Concat(base[0], tuple(n.name for n in tensors), base[2])
    channels = shape_of(tensors[0])[channel_axis(shape_of(tensors[0]))]
    index = np.concatenate([np.arange(channels), np.full(base[2] - channels, -1)])
    return Gather(base[0], (tensors[0].name,), base[2], index=index)


def selected(base: Base, node: fx.Node, calls: Calls) -> Op | None:
    """Follow the selection of channels or of positions by fixed indices, as compacted networks do."""
    if node.kwargs or not isinstance(node.args[2], fx.Node) or node.args[2].op != "get_attr":
        return None
    source, dim, index = cast(tuple[fx.Node, int, fx.Node], node.args)
    axis = dim % len(shape_of(node))
    if axis == 0:
        return None
    if axis != channel_axis(shape_of(node)):
        return PerChannel(base[0], (source.name,), base[2])
    return Gather(base[0], (source.name,), base[2], index=calls.attribute(index).numpy())
