"""Rules that convert a recorded call to a channel operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from codeq.graph.calls import Calls, of_batch
from codeq.graph.layer_rules import Base, call_of, layer_operation, shape_of
from codeq.graph.ops import (
    Concat,
    Gather,
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

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Each element of the result depends on the same element of the input alone, and 0 stays 0.
ELEMENTWISE_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish,
    nn.Tanh,
)  # fmt: skip
ELEMENTWISE_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.tanh, F.dropout, F.dropout2d, torch.relu,
    torch.tanh, "relu", "tanh", "contiguous", "clone", "detach",
}  # fmt: skip
# They do not map 0 to 0.
SHIFTING_MODULES = (nn.Sigmoid, nn.Hardsigmoid)
SHIFTING_FUNCTIONS = {F.sigmoid, F.hardsigmoid, torch.sigmoid, "sigmoid"}
# They pool the last two dimensions, which are those of images only in `[N, C, H, W]`.
POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POOL_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
MULTIPLY_FUNCTIONS = {torch.mul, "mul"}
ADD_FUNCTIONS = {torch.add, "add", torch.sub, "sub"}
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


def _channel_axis(shape: torch.Size) -> int:
    """Return the dimension of the channels: the last of tokens `[N, tokens, C]`, else 1.

    A tensor of rank 3 whose channels lie elsewhere, such as `[N, C, H·W]`, only comes from an `Unknown`, whose
    channels stay live whatever its dimensions are.
    """
    return 2 if len(shape) == 3 else 1


def _operation(node: fx.Node, calls: Calls) -> Op:
    shape = shape_of(node) if _is_tensor(node) else torch.Size()
    input_nodes = [n for n in node.all_input_nodes if n.target is not of_batch]
    base = node.name, tuple(n.name for n in input_nodes), shape[_channel_axis(shape)] if len(shape) > 1 else 1
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
    if isinstance(module, BATCH_NORM) and _channel_axis(shape) == 1:  # BatchNorm normalizes over dimension 1
        return PerChannel(*base, batchnorm=calls.layer(node))
    if isinstance(module, (*ELEMENTWISE_MODULES, ActivationQuantizer)) or (
        isinstance(module, POOL_MODULES) and rank == 4
    ):
        return PerChannel(*base)
    if isinstance(module, SHIFTING_MODULES):
        return PerChannel(*base, keeps_zero=False)
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        return _flatten(base, node)
    return None


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


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
    if target is torch.cat and _argument(node, 1, "dim", 0) % rank == _channel_axis(shape_of(node)):
        return _concatenate(base, node, calls)
    if target == "index_select":
        return _select(base, node, calls)
    if len(base[1]) != 1:
        return None
    if target in ELEMENTWISE_FUNCTIONS or (target in POOL_FUNCTIONS and rank == 4):
        return PerChannel(*base)
    if target in SHIFTING_FUNCTIONS:
        return PerChannel(*base, keeps_zero=False)
    if target in FLATTEN_FUNCTIONS:
        return _flatten(base, node)
    if target is F.pad:
        return _pad(base, node)
    if target is operator.getitem:
        return _slice(base, node)
    if target in (torch.mean, "mean"):
        return _mean(base, node)
    return None


def _mean(base: Base, node: fx.Node) -> Op | None:
    before = shape_of(node.all_input_nodes[0])
    dims = _argument(node, 1, "dim")
    dims = (dims,) if isinstance(dims, int) else dims
    positions = set(range(1, len(before))) - {_channel_axis(before)}
    if not positions or not isinstance(dims, (list, tuple)):
        return None
    return PerChannel(*base) if {d % len(before) for d in dims} == positions else None


def _flatten(base: Base, node: fx.Node) -> Op | None:
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    if len(before) < 2 or len(after) != 2 or after[0] != before[0]:
        return None
    axis = _channel_axis(before)
    channel = np.arange(before[axis]).reshape([-1 if d == axis else 1 for d in range(1, len(before))])
    return Gather(*base, index=np.broadcast_to(channel, before[1:]).ravel())


def _pad(base: Base, node: fx.Node) -> Op | None:
    pads: list[int] = list(_argument(node, 1, "pad"))
    mode, value = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value")
    source = shape_of(node.all_input_nodes[0])
    if mode != "constant" or value not in (None, 0, 0.0):
        return None
    by_dimension = [(0, 0)] * len(source)
    for k in range(len(pads) // 2):  # the last dimension comes first
        by_dimension[-1 - k] = (pads[2 * k], pads[2 * k + 1])
    axis = _channel_axis(source)
    before, after = by_dimension[axis]
    if by_dimension[0] != (0, 0) or before < 0 or after < 0:
        return None
    return Gather(*base, index=np.concatenate([np.full(before, -1), np.arange(source[axis]), np.full(after, -1)]))


def _slice(base: Base, node: fx.Node) -> Op | None:
    picks: Any = node.args[1]
    plain = isinstance(picks, tuple) and all(isinstance(pick, slice) for pick in picks)
    if not plain or picks[:1] != (slice(None),):
        return None
    source = shape_of(node.all_input_nodes[0])
    axis = _channel_axis(source)
    return Gather(*base, index=np.arange(source[axis])[picks[axis] if axis < len(picks) else slice(None)])


def _concatenate(base: Base, node: fx.Node, calls: Calls) -> Op:
    """Follow a concatenation of channels.

    Constants that a compacted network inserts between channels count as zeros, like the shift of a BatchNorm.
    """
    tensors = cast(list[fx.Node], _argument(node, 0, "tensors"))
    inserted = [tensor in calls.varying for tensor in tensors] == [True, False]
    if not (inserted and all(user.target == "index_select" for user in node.users)):
        return Concat(base[0], tuple(n.name for n in tensors), base[2])
    channels = shape_of(tensors[0])[_channel_axis(shape_of(tensors[0]))]
    index = np.concatenate([np.arange(channels), np.full(base[2] - channels, -1)])
    return Gather(base[0], (tensors[0].name,), base[2], index=index)


def _select(base: Base, node: fx.Node, calls: Calls) -> Op | None:
    """Follow the selection of channels or of positions by fixed indices, as compacted networks do."""
    if node.kwargs or not isinstance(node.args[2], fx.Node) or node.args[2].op != "get_attr":
        return None
    source, dim, index = cast(tuple[fx.Node, int, fx.Node], node.args)
    axis = dim % len(shape_of(node))
    if axis == 0:
        return None
    if axis != _channel_axis(shape_of(node)):
        return PerChannel(base[0], (source.name,), base[2])
    return Gather(base[0], (source.name,), base[2], index=calls.attribute(index).numpy())


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
