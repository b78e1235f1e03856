"""Null channels of every tensor, and coupled groups: the weights that must be zero together to prune a channel.

Both are computed from a `ChannelGraph`, which contains no values. `codeq.flow` analyses the values of a network with
given weights, biases and BatchNorms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from codeq.graph.ops import (
    ChannelGraph,
    Concat,
    Gather,
    Layer,
    Op,
    Output,
    PerChannel,
    Product,
    Sum,
    UnfollowedWeight,
)


def live_kernels(nonzero: np.ndarray, groups: int, null_in: np.ndarray) -> np.ndarray:
    """Return a mask of the kernels that have a non-zero weight and read a channel that is not null.

    Parameters
    ----------
    nonzero : array of bool
        `[c_out, c_in / groups]`, true for kernels with a non-zero weight.
    groups : int
        Groups of the convolution.
    null_in : array of bool
        `[c_in]`, true for null input channels.

    Returns
    -------
    array of bool
        `[c_out, c_in / groups]`.

    Examples
    --------
    >>> live_kernels(np.array([[True, False], [True, True]]), 1, np.array([True, False])).tolist()
    [[False, False], [False, True]]
    """
    reads_null = null_in.reshape(groups, -1).repeat(len(nonzero) // groups, axis=0)
    return nonzero & ~reads_null


def null_channels(graph: ChannelGraph, nonzero: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Propagate null channels through the network, by the ``"weights"`` accounting.

    A filter is null if all of its weights that read non-null channels are zero; biases and BatchNorm's shift are
    ignored. A channel of a residual sum is null only if it is null on both sides: zeroing a filter inside a block does
    not make a channel null that the skip connection keeps alive.

    Parameters
    ----------
    graph : ChannelGraph
        The traced model.
    nonzero : mapping of str to array of bool
        For each layer `[c_out, c_in / groups]`, true for kernels with a non-zero weight.

    Returns
    -------
    dict
        For each layer ``(null_in, null_out)``, boolean arrays `[c_in]` and `[c_out]`; of a layer that is called more
        than once, the channels that are null in every call.

    Examples
    --------
    >>> import torch
    >>> from codeq.graph.tracing import trace
    >>> graph = trace(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(2, 1, 1)), (1, 4, 4))
    >>> nulls = null_channels(graph, {"0": np.array([[True], [False]]), "1": np.array([[True, True]])})
    >>> nulls["1"][0].tolist()
    [False, True]
    """
    null: dict[str, np.ndarray] = {}
    layers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for op in graph.ops:
        nulls_in = [null[name] for name in op.inputs]
        match op:
            case Layer():
                null_out = ~np.any(live_kernels(nonzero[op.layer], op.groups, nulls_in[0]), axis=1)
                before = layers.get(op.layer, (True, True))  # channels that are null in all earlier calls
                layers[op.layer] = nulls_in[0] & before[0], null_out & before[1]
                null[op.name] = null_out
            case PerChannel():
                null[op.name] = nulls_in[0] if op.keeps_zero else np.zeros_like(nulls_in[0])
            case Sum():
                null[op.name] = nulls_in[0] & nulls_in[1]
            case Product():
                null[op.name] = nulls_in[0] | nulls_in[1]
            case Concat():
                null[op.name] = np.concatenate(nulls_in)
            case Gather():
                null[op.name] = np.append(nulls_in[0], True)[op.index]
            case _:
                null[op.name] = np.zeros(op.channels, dtype=bool)
    return layers


@dataclass(frozen=True)
class CoupledGroups:
    """Prunable channels of a network, each with the weights that must be zero together to prune it.

    Parameters
    ----------
    count : int
        Number of groups.
    writers : dict of str to array of int
        For each layer `[c_out]`: the group that each filter writes to, -1 where the channel cannot be removed (it
        reaches the network's output or an unknown operation).
    readers : dict of str to array of int
        For each layer `[c_in]`: the group that each input channel belongs to, or -1.
    batchnorms : dict of str to array of int
        For each BatchNorm module `[channels]`: the group that each scale and shift belongs to, or -1.
    classifiers : frozenset of str
        Layers whose result is an output of the network.
    written, read : dict of str to array of int
        For each layer `[calls, c_out]` and `[calls, c_in]`: the stream channel that a filter writes, or a slice reads,
        in each call; -1 for the constant zero. Channels that are added or multiplied are one stream channel. A group
        may contain several, which share a filter or a BatchNorm, or which a depthwise convolution connects.
    """

    count: int
    writers: dict[str, np.ndarray]
    readers: dict[str, np.ndarray]
    batchnorms: dict[str, np.ndarray]
    classifiers: frozenset[str]
    written: dict[str, np.ndarray]
    read: dict[str, np.ndarray]

    def members(self, group: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Return ``(writers, readers)`` of one group as lists of ``(layer, channel)``."""

        def of(side: dict[str, np.ndarray]) -> list[tuple[str, int]]:
            return [(layer, int(c)) for layer, groups in side.items() for c in np.flatnonzero(groups == group)]

        return of(self.writers), of(self.readers)


def coupled_groups(graph: ChannelGraph) -> CoupledGroups:
    """Derive the coupled groups of a network.

    The group of a residual-stream channel contains all filters that write it, in every block and in the stem, and all
    input slices that read it. A parameter-free shortcut between two stages joins the groups of both stages' channels.
    Each block-internal channel is a separate group. Calls of one layer share its filters and calls of one BatchNorm its
    scales: their channels are in one group.

    Parameters
    ----------
    graph : ChannelGraph
        The traced model.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> from codeq.graph.tracing import trace
    >>> groups = coupled_groups(trace(resnet20()))
    >>> groups.count  # 64 stream channels, and 3 blocks of 16, 32 and 64 internal ones
    400
    >>> groups.members(int(groups.writers["layer1.0.conv1"][5]))
    ([('layer1.0.conv1', 5)], [('layer1.0.conv2', 5)])
    """
    # Every channel of a result is a node of a graph; channels that are pruned together (residual sums) are connected.
    ids: dict[str, np.ndarray] = {}
    count = 0
    edges: list[np.ndarray] = []
    combined: list[np.ndarray] = []  # those of the edges that connect operands of one operation
    pinned: list[np.ndarray] = []
    outputs: list[np.ndarray] = []

    def fresh(op: Op) -> np.ndarray:
        nonlocal count
        count += op.channels
        return np.arange(count - op.channels, count)

    def joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        both = (a >= 0) & (b >= 0)
        edges.append(np.stack([a[both], b[both]]))
        return np.where(a >= 0, a, b)

    for op in graph.ops:
        input_ids = [ids[name] for name in op.inputs]
        match op:
            case Layer():
                ids[op.name] = fresh(op)
                if op.groups > 1:  # a depthwise filter and its input are pruned together; other grouped layers are kept
                    if op.groups == len(input_ids[0]) == op.channels:
                        reads = input_ids[0] >= 0
                        edges.append(np.stack([input_ids[0], ids[op.name]])[:, reads])
                    else:
                        pinned += [input_ids[0], ids[op.name]]
            case PerChannel():
                ids[op.name] = input_ids[0]
            case Sum() | Product():  # a gate is pruned together with the channel that it multiplies
                ids[op.name] = joined(*input_ids)
                combined.append(edges[-1])
            case Concat():
                ids[op.name] = np.concatenate(input_ids)
            case Gather():
                ids[op.name] = np.append(input_ids[0], -1)[op.index]
            case Output():
                pinned += input_ids
                outputs += input_ids
            case _:  # the input, or an unknown operation
                ids[op.name] = fresh(op)
                pinned += [*input_ids, ids[op.name]]

    first_uses, elsewhere = _first_uses(graph), _used_elsewhere(graph)
    for op in graph.layers:
        # Calls that share a weight share its filters and slices: their channels are pruned together.
        other = first_uses[op.layer]
        for a, b in ((ids[op.name], ids[other.name]), (ids[op.inputs[0]], ids[other.inputs[0]])):
            if len(a) == len(b):
                joined(a, b)
            else:
                pinned += [a, b]
        if op.layer in elsewhere:  # its filters also write, and its slices read, channels that are not followed
            pinned += [ids[op.name], ids[op.inputs[0]]]
    norms: dict[str, np.ndarray] = {}
    for op in graph.ops:
        if isinstance(op, PerChannel) and op.batchnorm:
            norms[op.batchnorm] = joined(norms.get(op.batchnorm, ids[op.name]), ids[op.name])

    component = _components(count, edges)
    stream_of = np.append(_components(count, combined), -1)  # the last entry is that of id -1, the constant zero
    out_ids = np.concatenate([np.empty(0, dtype=int), *(ids[op.name] for op in graph.layers)])
    fixed = np.concatenate(pinned)
    free = np.setdiff1d(component[out_ids], component[fixed[fixed >= 0]])  # sorted; only channels that a layer writes
    group_of = np.full(count + 1, -1)
    group_of[free] = np.arange(len(free))
    result = np.concatenate([np.empty(0, dtype=int), *outputs])

    def groups_of(channel_ids: np.ndarray) -> np.ndarray:
        return np.where(channel_ids >= 0, group_of[component[channel_ids]], -1)

    writers: dict[str, np.ndarray] = {}
    readers: dict[str, np.ndarray] = {}
    for op in graph.layers:  # a slice may read a channel in one call and a constant zero in another
        for side, channels in ((writers, ids[op.name]), (readers, ids[op.inputs[0]])):
            side[op.layer] = np.maximum(side.get(op.layer, -1), groups_of(channels))
    written: dict[str, list[np.ndarray]] = {}
    read: dict[str, list[np.ndarray]] = {}
    for op in graph.layers:
        written.setdefault(op.layer, []).append(stream_of[ids[op.name]])
        read.setdefault(op.layer, []).append(stream_of[ids[op.inputs[0]]])
    for tied in graph.ties:
        for side in (writers, readers):
            shared = [side[name] for name in tied if name in side]
            side.update({name: np.maximum.reduce(shared) for name in tied if name in side})
    return CoupledGroups(
        count=len(free),
        writers=writers,
        readers=readers,
        batchnorms={name: groups_of(channels) for name, channels in norms.items()},
        classifiers=frozenset(op.layer for op in graph.layers if np.isin(ids[op.name], result).all()),
        written={name: np.stack(calls) for name, calls in written.items()},
        read={name: np.stack(calls) for name, calls in read.items()},
    )


def _components(count: int, edges: list[np.ndarray]) -> np.ndarray:
    """Return the number of the connected component of each of `count` nodes."""
    from scipy.sparse import coo_array  # imported here because it takes a third of a second
    from scipy.sparse.csgraph import connected_components

    left, right = np.concatenate([np.empty((2, 0), dtype=int), *edges], axis=1)
    connected = coo_array((np.ones(len(left)), (left, right)), shape=(count, count))
    return np.asarray(connected_components(connected, directed=False)[1])


def _first_uses(graph: ChannelGraph) -> dict[str, Layer]:
    """Return for every layer the first call with its weight, which another layer may share."""
    owner = {name: tied[0] for tied in graph.ties for name in tied}
    first: dict[str, Layer] = {}
    for op in graph.layers:
        first.setdefault(owner.get(op.layer, op.layer), op)
    return {op.layer: first[owner.get(op.layer, op.layer)] for op in graph.layers}


def _used_elsewhere(graph: ChannelGraph) -> set[str]:
    """Return the layers whose weights, or those of a layer that shares them, are also used by a call not followed."""
    used = {op.weight for op in graph.unknown if isinstance(op, UnfollowedWeight)}
    return used.union(*(tied for tied in graph.ties if not used.isdisjoint(tied)))
