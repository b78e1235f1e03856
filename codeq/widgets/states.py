"""What becomes of every channel of a network: alive, dead, or kept alive by a skip connection."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import numpy as np

from codeq.graph.channels import null_channels
from codeq.graph.ops import ChannelGraph, Layer, PerChannel, Sum


class State(IntEnum):
    """What a filter and the channel that it writes to are.

    DEAD : nothing is written to the channel.
    ALIVE : the filter has non-zero weights on channels that are not null.
    KEPT : the filter writes nothing, but it ends in a residual sum whose other side keeps the channel alive.
    IDLE : the filter has non-zero weights, but only on null channels: it counts as null.
    """

    DEAD = 0
    ALIVE = 1
    KEPT = 2
    IDLE = 3


def residual_sums(graph: ChannelGraph) -> dict[str, Sum]:
    """Return for each layer the residual sum that its output goes into, unless something else reads it before.

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
    """Return the `State` of every channel, by the ``"weights"`` accounting.

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
    # A layer that would read the sum is told which channels of it are null: one set of rules answers both questions.
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
