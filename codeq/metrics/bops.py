"""MACs and BOPs of a network: dense, structured, exact and unstructured."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from codeq.common.errors import CodeqError
from codeq.flow import Borders, Streams, channel_flow
from codeq.graph.layer_rules import elements_of_one, input_quantizer, shape_of
from codeq.graph.tracing import trace
from codeq.metrics.macs import effective_macs, unstructured_macs
from codeq.metrics.nulls import NullChannels
from codeq.metrics.records import LayerRecord, Records, notes_on
from codeq.metrics.stats import LayerStats, ModelStats, kernel_size
from codeq.quantizer.activations import activation_bits
from codeq.quantizer.layers import FLOAT_BITS, bitwidth, forward_weight, named_layers
from codeq.quantizer.transposed import TRANSPOSED_TYPES


def dense_stats(records: Sequence[LayerRecord], b_a: int = 32) -> ModelStats:
    """Cost of the dense 32-bit network of the same architecture, paper eq. (20)."""
    return ModelStats(
        [r.stats(r.weight.numel() * prod(r.spatial), 0.0, FLOAT_BITS, b_a) for r in records], _notes(records)
    )


def structured_stats(records: Sequence[LayerRecord], b_a: int = 32) -> ModelStats:
    """Cost without null channels, ``"weights"`` accounting; zeros inside live channels count in full."""
    return ModelStats(
        [
            r.stats(
                effective_macs(r.weight, r.null_in, r.null_out, *r.spatial),
                r.null_out.ratio,
                r.bitwidth,
                r.activation_bits or b_a,
            )
            for r in records
        ],
        _notes(records),
    )


def _notes(records: Sequence[LayerRecord]) -> tuple[str, ...]:
    return records.notes if isinstance(records, Records) else ()


def exact_stats(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 32, 32),
    b_a: int = 32,
    borders: Borders = "map",
    streams: Streams = "scatter",
    multiple_of: int = 1,
) -> ModelStats:
    """Cost of what the network really computes, ``"exact"`` accounting: the MACs of the compacted model.

    Inputs of a layer count if they depend on the input of the network and the layer reads them; outputs, if they depend
    on the input of the network and its result depends on them. `null_in` and `null_out` are the others. A layer that is
    called more than once is in the result once for each call.

    Parameters
    ----------
    model : Module
        With or without quantizers; left as it is.
    input_size : tuple of int
        `(C, H, W)` of one input.
    b_a : int
        Bits of activations that are not quantized.
    borders, streams, multiple_of
        Options of the compaction, see `codeq.flow.channel_flow`.

    Raises
    ------
    CodeqError
        If the model cannot be traced, a layer's bits are unknown, or its uses for one input depend on the batch.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight[1].zero_(), net[1].weight[:, 2].zero_()
    >>> [layer.macs for layer in exact_stats(net, (2, 3, 3)).layers]  # channel 1 is constant, 2 is not read
    [36, 36]
    """
    modules = dict(named_layers(model))
    stats = []
    flow = channel_flow(model, input_size, borders, streams, multiple_of)
    for call in flow.layers:
        if shape_of(call.node).numel() and not elements_of_one(call.node, flow.calls):
            cause = "how often it is used for one input depends on the size of the batch"
            raise CodeqError(f"layer {call.name!r} cannot be counted: {cause}")
        bits = bitwidth(call.name, modules[call.name]) if call.name in modules else FLOAT_BITS
        null_in, null_out = (NullChannels.from_mask(~kept) for kept in (call.kept_in, call.kept_out))
        inputs = activation_bits(flow.calls.modules, input_quantizer(flow.calls, call.node)) or b_a
        shape, weight = call.result.units.shape, forward_weight(call.layer)
        image = weight.ndim == 4 and not call.opaque and not isinstance(call.layer, TRANSPOSED_TYPES)
        stats.append(
            LayerStats(
                call.name,
                call.macs,
                call.macs * bits * inputs,
                bits,
                null_out.ratio,
                null_out,
                null_in,
                (shape[1], shape[2]) if image else (call.positions, 1),
                kernel_size(weight.shape),
                inputs,
            )
        )
    constant, unfollowed = flow.constant_layers, flow.unfollowed_layers
    called = {*constant, *unfollowed, *(call.name for call in flow.layers)}
    none = "no MACs in the exact accounting"
    notes = [f"layer {name!r} is called on constants alone: {none}" for name in constant]
    notes += [f"layer {name!r} returns something else than one tensor: {none}" for name in unfollowed]
    problems = (*trace(model, input_size).problems, *notes)
    return ModelStats(stats, notes_on(problems, modules, called, flow.unknown, "in the exact accounting, "))


def unstructured_stats(records: Sequence[LayerRecord], b_a: int = 32) -> ModelStats:
    """Cost of the non-zero weights alone, paper eq. (21)-(22)."""
    stats = []
    for r in records:
        macs = unstructured_macs(r.weight, *r.spatial)
        zeros = 1 - macs / (r.weight.numel() * prod(r.spatial))
        stats.append(r.stats(macs, zeros, r.bitwidth, r.activation_bits or b_a))
    return ModelStats(stats, _notes(records))
