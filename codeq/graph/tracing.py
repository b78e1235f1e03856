"""Traces a model once into a list of channel operations, the one graph that every question about channels is put to.

The network is followed with `torch.fx`; each call becomes one of a handful of operations that say what happens to the
channels of a tensor: the last dimension of tokens `[N, tokens, C]`, dimension 1 of everything else. What the tracer
does not know becomes `Unknown`: its channels stay live, and it is listed in `ChannelGraph.unknown` with its place. So
does what mixes channels without weights (LayerNorm, attention) or moves them to another dimension (the patches of an
image, which become tokens).
"""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from codeq.common.errors import CodeqError
from codeq.graph.ops import (
    ChannelGraph,
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
from codeq.quantizer.attach import LAYER_TYPES, latent_weight, named_layers

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Each element of the result depends on the same element of the input alone, and 0 stays 0.
ELEMENTWISE_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish,
    nn.Tanh,
)  # fmt: skip
ELEMENTWISE_FUNCTIONS = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.tanh, F.dropout, F.dropout2d,
    torch.relu, torch.relu_, torch.tanh, "relu", "relu_", "tanh", "contiguous", "clone",
}  # fmt: skip
# They do not keep 0 at 0.
SHIFTING_MODULES = (nn.Sigmoid, nn.Hardsigmoid)
SHIFTING_FUNCTIONS = {F.sigmoid, F.hardsigmoid, torch.sigmoid, "sigmoid"}
# They pool the last two dimensions, which are those of images only in `[N, C, H, W]`.
POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POOL_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
MULTIPLY_FUNCTIONS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
ADD_FUNCTIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
FLATTEN_FUNCTIONS = {torch.flatten, "flatten", "view", "reshape", torch.reshape}


Base = tuple[str, tuple[str, ...], int]  # what every operation is made from: name, inputs, channels


class LayerTracer(fx.Tracer):
    """Keeps conv and linear layers whole, parametrized or not, and every LayerNorm."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one call of the trace instead of the calls inside it."""
        # A LayerNorm of timm's own is named as a whole too, not by the function and parameters inside it.
        return isinstance(m, (*LAYER_TYPES, nn.LayerNorm)) or super().is_leaf_module(m, module_qualified_name)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, without gradients, and restore each one's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


_traced: WeakKeyDictionary[nn.Module, tuple[object, ChannelGraph]] = WeakKeyDictionary()


def trace(model: nn.Module, input_size: tuple[int, ...] = (3, 32, 32)) -> ChannelGraph:
    """Trace `model` into its channel graph; a model whose structure is unchanged is traced only once.

    Parameters
    ----------
    model : Module
        On any device, with or without quantizers; its mode is left as found.
    input_size : tuple of int
        `(C, H, W)` of one input.

    Raises
    ------
    CodeqError
        If the model's forward cannot be traced (control flow that depends on values) or does not take such an input.

    Examples
    --------
    >>> graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)), (3, 3, 3))
    >>> [(type(op).__name__, op.channels) for op in graph.ops]
    [('Source', 3), ('Layer', 4), ('PerChannel', 4), ('Gather', 4), ('Layer', 2), ('Output', 2)]
    """
    shapes = [latent_weight(layer).shape for _, layer in named_layers(model)]
    structure = (tuple(input_size), [(name, type(module)) for name, module in model.named_modules()], shapes)
    known = _traced.get(model)
    if known is None or known[0] != structure:
        known = structure, _trace(model, tuple(input_size))
        _traced[model] = known
    return known[1]


def _trace(model: nn.Module, input_size: tuple[int, ...]) -> ChannelGraph:
    first = next(model.parameters(), torch.empty(0))
    example = torch.zeros(1, *input_size, device=first.device, dtype=first.dtype)
    try:
        # torch.fx would also print the failing node and a traceback of its own to stderr.
        with evaluation_mode(model), redirect_stderr(io.StringIO()):
            graph_module = fx.GraphModule(model, LayerTracer().trace(model))
            ShapeProp(graph_module).propagate(example)
    except Exception as error:
        raise CodeqError(
            f"{type(model).__name__} cannot be traced with an input of {input_size}: {type(error).__name__}: {error}"
        ) from error
    modules = dict(model.named_modules())
    return ChannelGraph(tuple(_operation(node, modules) for node in graph_module.graph.nodes if _has_tensors(node)))


def _has_tensors(node: fx.Node) -> bool:
    """Return whether a node's result is a tensor or holds some; sizes and indices are no channels' concern."""
    return "tensor_meta" in node.meta


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and hasattr(node.meta.get("tensor_meta"), "shape")


def _shape(node: fx.Node) -> torch.Size:
    return node.meta["tensor_meta"].shape


def _channel_axis(shape: torch.Size) -> int:
    """Return the dimension of the channels: the last of tokens `[N, tokens, C]`, else 1.

    A tensor of rank 3 whose channels lie elsewhere, such as `[N, C, H·W]`, only comes from an `Unknown`, so nothing is
    claimed about what stands in its place.
    """
    return 2 if len(shape) == 3 else 1


def _operation(node: fx.Node, modules: dict[str, nn.Module]) -> Op:
    shape = _shape(node) if _is_tensor(node) else torch.Size()
    arrive = [n for n in node.all_input_nodes if _has_tensors(n)]
    base = node.name, tuple(n.name for n in arrive), shape[_channel_axis(shape)] if len(shape) > 1 else 1
    if node.op == "placeholder":
        return Source(*base)
    if node.op == "output":
        return Output(*base)
    operation = None
    if _is_tensor(node) and all(map(_is_tensor, arrive)):  # several tensors in one value are beyond this graph
        if node.op == "call_module":
            operation = _module_operation(base, node, modules[str(node.target)])
        elif node.op != "get_attr":
            operation = _function_operation(base, node)
    return operation or Unknown(*base, call=f"{node.op} {getattr(node.target, '__name__', node.target)}")


def _module_operation(base: Base, node: fx.Node, module: nn.Module) -> Op | None:
    shape = _shape(node)
    rank = len(shape)
    if isinstance(module, nn.Linear) and rank in (2, 3):
        # The traced batch is one input: if it grew, tokens or windows were folded into it, and they count.
        return Layer(*base, layer=str(node.target), groups=1, spatial=(shape[:-1].numel(), 1))
    if isinstance(module, nn.Conv2d) and rank == 4 and shape[0] == 1:
        return Layer(*base, layer=str(node.target), groups=module.groups, spatial=(shape[2], shape[3]))
    if isinstance(module, BATCH_NORM) and _channel_axis(shape) == 1:  # the dimension that BatchNorm takes for channels
        return PerChannel(*base, batchnorm=str(node.target))
    if isinstance(module, ELEMENTWISE_MODULES) or (isinstance(module, POOL_MODULES) and rank == 4):
        return PerChannel(*base)
    if isinstance(module, SHIFTING_MODULES):
        return PerChannel(*base, keeps_zero=False)
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        return _flatten(base, node)
    return None


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _function_operation(base: Base, node: fx.Node) -> Op | None:
    target: Callable[..., Any] | str = node.target
    tensors = base[1]
    rank = len(_shape(node))
    if target in ELEMENTWISE_FUNCTIONS or (target in POOL_FUNCTIONS and rank == 4):
        return PerChannel(*base)
    if target in SHIFTING_FUNCTIONS:
        return PerChannel(*base, keeps_zero=False)
    if getattr(target, "__name__", "") == "stochastic_depth":  # torchvision's, whose import takes a second
        return PerChannel(*base)
    if target in MULTIPLY_FUNCTIONS and len(node.args) == 2 and all(map(_is_tensor, node.args)):
        x, gate = cast(tuple[fx.Node, fx.Node], node.args)
        fits = all(len(_shape(n)) == 4 and _shape(n)[1] == base[2] for n in (x, gate))
        return Product(base[0], (x.name, gate.name), base[2]) if fits else None
    if target in ADD_FUNCTIONS and len(node.args) == 2 and all(map(_is_tensor, node.args)):
        # `x + x` has one input node; both operands count. Broadcast operands differ in shape and stay unknown.
        a, b = cast(tuple[fx.Node, fx.Node], node.args)
        return Sum(base[0], (a.name, b.name), base[2]) if _shape(a) == _shape(b) else None
    if target is torch.cat and _argument(node, 1, "dim", 0) % rank == _channel_axis(_shape(node)):
        return Concat(base[0], tuple(n.name for n in cast(list[fx.Node], _argument(node, 0, "tensors"))), base[2])
    if len(tensors) != 1:
        return None
    if target in FLATTEN_FUNCTIONS:
        return _flatten(base, node)
    if target is F.pad and len(node.all_input_nodes) == 1:  # further ones are sizes computed on the way
        return _pad(base, node)
    if target is operator.getitem and len(node.all_input_nodes) == 1:
        return _slice(base, node)
    if target in (torch.mean, "mean"):
        return _mean(base, node)
    return None


def _mean(base: Base, node: fx.Node) -> Op | None:
    before = _shape(node.all_input_nodes[0])
    dims = _argument(node, 1, "dim")
    dims = (dims,) if isinstance(dims, int) else dims
    positions = set(range(1, len(before))) - {_channel_axis(before)}
    if not positions or not isinstance(dims, (list, tuple)):
        return None
    return PerChannel(*base) if {d % len(before) for d in dims} == positions else None


def _flatten(base: Base, node: fx.Node) -> Op | None:
    before, after = _shape(node.all_input_nodes[0]), _shape(node)
    if len(before) < 2 or len(after) != 2 or after[0] != before[0]:
        return None
    axis = _channel_axis(before)
    channel = np.arange(before[axis]).reshape([-1 if d == axis else 1 for d in range(1, len(before))])
    return Gather(*base, index=np.broadcast_to(channel, before[1:]).ravel())


def _pad(base: Base, node: fx.Node) -> Op | None:
    pads: list[int] = list(_argument(node, 1, "pad"))
    mode, value = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value")
    source = _shape(node.all_input_nodes[0])
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
    source = _shape(node.all_input_nodes[0])
    axis = _channel_axis(source)
    return Gather(*base, index=np.arange(source[axis])[picks[axis] if axis < len(picks) else slice(None)])
