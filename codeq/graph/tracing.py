"""Tracing of a model into its channel graph, the list of channel operations that all analyses of channels use.

Each recorded call (`codeq.graph.calls`) is converted to one of a few operations on the channels of a tensor: the last
dimension of tokens `[N, tokens, C]`, dimension 1 of all other tensors. A call without a rule becomes `Unknown`: its
channels stay live, and it is listed in `ChannelGraph.unknown` with its place. The same holds for calls that mix
channels without weights (LayerNorm, attention) or move them to another dimension (image patches that become tokens).
"""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from codeq.graph.baking import check_weights
from codeq.graph.call_recording import checked_size, record_calls
from codeq.graph.calls import Calls
from codeq.graph.channel_rules import channel_operations, with_live_layers
from codeq.graph.fingerprint import fingerprint
from codeq.graph.ops import ChannelGraph
from codeq.quantizer.layers import latent_weight, named_layers

_traced: WeakKeyDictionary[nn.Module, tuple[object, ChannelGraph]] = WeakKeyDictionary()


def trace(model: nn.Module, input_size: tuple[int, ...] = (3, 32, 32)) -> ChannelGraph:
    """Trace `model` into its channel graph; a model in which nothing changed but weights is traced only once.

    Parameters
    ----------
    model : Module
        On any device, with or without quantizers; not changed. Traced in evaluation mode.
    input_size : tuple of int
        `(C, H, W)` of one input.

    Raises
    ------
    CodeqError
        If the model does not take such an input, or if its forward cannot be traced (control flow that depends on
        values).

    Examples
    --------
    >>> graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)), (3, 3, 3))
    >>> [(type(op).__name__, op.channels) for op in graph.ops]
    [('Source', 3), ('Layer', 4), ('PerChannel', 4), ('Gather', 4), ('Layer', 2), ('Output', 2)]
    """
    input_size = checked_size(input_size)
    check_weights(model)
    key = (input_size, fingerprint(model))
    cached = _traced.get(model)
    if cached is not None and _same(cached[0], key):
        return cached[1]
    _traced.pop(model, None)
    calls = record_calls(model, input_size, torch.float32)
    graph = replace(channel_graph(calls), ties=_ties(model))
    if not calls.reads_values:
        _traced[model] = key, graph
    return graph


def _same(first: object, second: object) -> bool:
    try:
        return bool(first == second)
    except Exception:  # objects of other packages compare as they like
        return False


def channel_graph(calls: Calls) -> ChannelGraph:
    """Return the channel graph of a recorded model, whose ties are those of its plain weights."""
    ops = channel_operations(calls)
    if calls.wrong:
        ops = with_live_layers(ops, "not what the model computes")
    return ChannelGraph(tuple(ops), tuple(calls.problems), tuple(calls.uncounted), _ties(calls.model))


def _ties(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    names: dict[Tensor, list[str]] = {}  # holds the weights: the id of a computed one could be used again
    for name, layer in named_layers(model):
        names.setdefault(latent_weight(layer), []).append(name)
    return tuple(tuple(tied) for tied in names.values() if len(tied) > 1)
