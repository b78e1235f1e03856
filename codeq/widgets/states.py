"""State of each channel of a network: alive, dead, or kept alive by a skip connection."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import numpy as np

from codeq.graph.channels import null_channels
from codeq.graph.ops import ChannelGraph, Layer, PerChannel, Sum


class State(IntEnum):
    """State of a filter and its output channel.

    DEAD : the channel is zero.
    ALIVE : the filter has non-zero weights on channels that are not null.
    KEPT : the filter outputs zero, but it is added to a residual stream whose channel another layer keeps alive.
    IDLE : all non-zero weights of the filter read null channels; it counts as null.
    """

    DEAD = 0
    ALIVE = 1
    KEPT = 2
    IDLE = 3


def largest_norm(norms: np.ndarray) -> float:
    """Return the largest finite norm of the filters of a layer, to which thresholds are relative; 0 if there is none.

    Examples
    --------
    >>> largest_norm(np.array([0.5, np.nan, 0.25]))
    0.5
    """
    return float(np.max(norms, where=np.isfinite(norms), initial=0.0))


def residual_sums(graph: ChannelGraph) -> dict[str, Sum]:
    """Return for each layer the residual sum that reads its output, if nothing else does.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> from codeq.graph.tracing import trace
    >>> list(residual_sums(trace(resnet20())))[:2]
    ['layer1.0.conv2', 'layer1.1.conv2']
    """
    sums = {}
    for layer in graph.layers:
        after = graph.readers(layer.name)
        while len(after) == 1 and isinstance(after[0], PerChannel):
            after = graph.readers(after[0].name)
        if len(after) == 1 and isinstance(after[0], Sum):
            sums[layer.layer] = after[0]
    return sums


def channel_states(graph: ChannelGraph, nonzero: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the `State` of each channel, by the ``"weights"`` accounting.

    Parameters
    ----------
    graph : ChannelGraph
        The traced model.
    nonzero : mapping of str to array of bool
        For each layer `[c_out, c_in / groups]`, true for kernels with a non-zero weight.

    Returns
    -------
    dict of str to array of int
        For each layer in order of execution `[c_out]`.

    Examples
    --------
    >>> import torch
    >>> from codeq.graph.tracing import trace
    >>> graph = trace(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(2, 2, 1)), (1, 4, 4))
    >>> nonzero = {"0": np.array([[True], [False]]), "1": np.array([[True, False], [False, True]])}
    >>> {layer: states.tolist() for layer, states in channel_states(graph, nonzero).items()}
    {'0': [1, 0], '1': [1, 3]}
    """
    # Null channels of a sum are those that a layer behind it would read: probes ask the same rules.
    probes = {f"after {layer}": total for layer, total in residual_sums(graph).items()}
    asked = ChannelGraph(
        (*graph.ops, *(Layer(name, (total.name,), 1, name, 1, (1, 1)) for name, total in probes.items()))
    )
    reads_all = {name: np.ones((1, total.channels), dtype=bool) for name, total in probes.items()}
    nulls = null_channels(asked, {**nonzero, **reads_all})
    states = {}
    for op in graph.layers:
        null_out = nulls[op.layer][1]
        state = np.where(null_out, State.DEAD, State.ALIVE)
        state[null_out & nonzero[op.layer].any(axis=1)] = State.IDLE
        if f"after {op.layer}" in probes:
            state[null_out & ~nulls[f"after {op.layer}"][0]] = State.KEPT
        states[op.layer] = state
    return states
