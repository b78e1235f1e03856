"""Rules that convert a recorded call to a channel operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from codeq.graph import channel_moves, known
from codeq.graph.calls import Calls, argument, of_batch
from codeq.graph.layer_rules import Base, call_of, channel_axis, layer_operation, shape_of
from codeq.graph.ops import (
    Layer,
    Op,
    Output,
    PerChannel,
    Product,
    Source,
    Sum,
    Unknown,
)
from codeq.quantizer.activations import ActivationQuantizer
from codeq.quantizer.layers import LAYER_TYPES

ZERO_KEEPING = known.UNCHANGED_FUNCTIONS | known.UNCHANGED_METHODS | known.ZERO_KEEPING_FUNCTIONS
MULTIPLY_FUNCTIONS = {torch.mul, "mul"}
ADD_FUNCTIONS = {torch.add, "add", torch.sub, "sub"}
SCALING_FUNCTIONS = MULTIPLY_FUNCTIONS | {torch.div, "div", operator.truediv}
FLATTEN_FUNCTIONS = {torch.flatten, "flatten", "view", "reshape", torch.reshape}


def channel_operations(calls: Calls) -> list[Op]:
    """Return the channel operation of every call that returns tensors, but of constants that no operation reads."""
    kept: list[Op] = []
    read: set[str] = set()
    for node in reversed(calls.graph.nodes):
        if node.target is not of_batch:
            operation = _operation(node, calls)
            if operation.name in read or node in calls.varying or node.op == "output":
                kept.append(operation)
                read.update(operation.inputs)
    return kept[::-1]


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("result"), torch.Size)


def _operation(node: fx.Node, calls: Calls) -> Op:
    shape = shape_of(node) if _is_tensor(node) else torch.Size()
    input_nodes = [n for n in node.all_input_nodes if n.target is not of_batch]
    base = node.name, tuple(n.name for n in input_nodes), shape[channel_axis(shape)] if len(shape) > 1 else 1
    if node.op == "placeholder":
        return Source(*base)
    if node.op == "output":
        return Output(*base)
    operation = None
    if _is_tensor(node) and all(map(_is_tensor, input_nodes)):  # calls with nested tensors are not followed
        if node.op == "call_module":
            operation = _module_operation(base, node, calls)
        elif node.op != "get_attr":
            operation = _function_operation(base, node, calls)
    return operation or Unknown(*base, call=call_of(node))


def _module_operation(base: Base, node: fx.Node, calls: Calls) -> Op | None:
    module, shape = calls.module(node), shape_of(node)
    rank = len(shape)
    if isinstance(module, LAYER_TYPES):
        return layer_operation(base, node, calls)
    if isinstance(module, known.BATCH_NORMS) and channel_axis(shape) == 1:  # BatchNorm normalizes over dimension 1
        return PerChannel(*base, batchnorm=calls.layer(node))
    kept = (*known.UNCHANGED_MODULES, *known.ZERO_KEEPING_MODULES, nn.PReLU, ActivationQuantizer)
    if isinstance(module, kept) or (isinstance(module, known.SPATIAL_MODULES) and rank == 4):
        return PerChannel(*base)
    if isinstance(module, known.SHIFTING_MODULES):
        return PerChannel(*base, keeps_zero=False)
    if isinstance(module, known.PADDING_MODULES):
        return channel_moves.padded_by(base, node, module.padding, module.value)
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        return channel_moves.flattened(base, node)
    return None


def _function_operation(base: Base, node: fx.Node, calls: Calls) -> Op | None:
    target: Callable[..., Any] | str = node.target
    rank = len(shape_of(node))
    two = len(node.args) == 2 and all(map(_is_tensor, node.args))
    if target in MULTIPLY_FUNCTIONS and two:
        x, gate = cast(tuple[fx.Node, fx.Node], node.args)
        fits = all(len(shape_of(n)) == 4 and shape_of(n)[1] == base[2] for n in (x, gate))
        return Product(base[0], (x.name, gate.name), base[2]) if fits else None
    if target in ADD_FUNCTIONS and two:
        # `x + x` has one input node; both operands count. Broadcast operands differ in shape and stay unknown.
        a, b = cast(tuple[fx.Node, fx.Node], node.args)
        return Sum(base[0], (a.name, b.name), base[2]) if shape_of(a) == shape_of(b) else None
    if target is torch.cat or target in known.STACKS:
        return _concatenation(base, node, calls)
    if target == "index_select":
        return channel_moves.selected(base, node, calls)
    if len(base[1]) != 1:
        return None
    if target in ZERO_KEEPING or (target in known.SPATIAL_FUNCTIONS and rank == 4):
        return PerChannel(*base)
    if target in known.SHIFTING_FUNCTIONS:
        return PerChannel(*base, keeps_zero=False)
    if target in FLATTEN_FUNCTIONS:
        return channel_moves.flattened(base, node)
    if target is F.pad:
        return channel_moves.padded(base, node)
    if target is operator.getitem:
        return channel_moves.sliced(base, node)
    if target in SCALING_FUNCTIONS | ADD_FUNCTIONS:
        return _with_number(base, node)
    if target in known.REDUCTIONS | known.SCANS:
        return _reduction(base, node)
    if target in (torch.squeeze, "squeeze"):
        return channel_moves.without_space(base, node)
    return None


def _concatenation(base: Base, node: fx.Node, calls: Calls) -> Op | None:
    """Follow a concatenation of channels, but not one that adds dimensions to its tensors first."""
    rank = len(shape_of(node))
    axis = argument(node, 1, "dim", 0) % rank if node.target is torch.cat else known.STACKS[node.target]
    if axis >= rank or axis != channel_axis(shape_of(node)):
        return None
    # PyTorch passes over empty vectors, whatever the other tensors are.
    same = all(len(shape_of(tensor)) == rank for tensor in node.all_input_nodes if shape_of(tensor) != (0,))
    return channel_moves.concatenated(base, node, calls) if same else None


def _with_number(base: Base, node: fx.Node) -> Op | None:
    """Follow a product, quotient or sum of a tensor and a number."""
    if len(node.args) != 2 or node.kwargs or not isinstance(number := node.args[1], (int, float)):
        return None
    return PerChannel(*base, keeps_zero=node.target in SCALING_FUNCTIONS or number == 0)


def _reduction(base: Base, node: fx.Node) -> Op | None:
    """Follow a statistic of all positions of each channel, or running sums and products over some of them."""
    before = shape_of(node.all_input_nodes[0])
    dims = argument(node, known.dimensions_of(node.target), "dim")
    dims = (dims,) if type(dims) is int else dims  # not a bool, which is another argument of `torch.std`
    positions = set(range(1, len(before))) - {channel_axis(before)}
    if not positions or not isinstance(dims, (list, tuple)):
        return None
    over = {d % len(before) for d in dims}
    return PerChannel(*base) if over == positions or (node.target in known.SCANS and over <= positions) else None


def with_live_layers(ops: list[Op], reason: str) -> list[Op]:
    """Return the operations with all channels of every layer kept live, for a graph that cannot be trusted."""
    channels = {op.name: op.channels for op in ops}
    kept: list[Op] = []
    for op in ops:
        if isinstance(op, Layer):
            before, after = (f"{op.name}_{side}" for side in ("before", "after"))
            call = f"{reason}: {op.layer}"
            kept.append(Unknown(before, op.inputs, channels[op.inputs[0]], call))
            kept.append(replace(op, inputs=(before,)))
            kept.append(Unknown(after, (op.name,), op.channels, call))
        else:
            kept.append(op)
    return kept
