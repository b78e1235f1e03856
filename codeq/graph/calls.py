"""A model as a graph of calls for batches of any size, made from two recordings of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from codeq.common.equality import relative_error
from codeq.common.errors import CodeqError
from codeq.graph.baking import baked_copy, check_weights
from codeq.graph.nodes import ModuleCall, Recording
from codeq.graph.recording import record
from codeq.quantizer.activations import INPUT_QUANTIZER, OUTPUT_QUANTIZER
from codeq.quantizer.layers import LAYER_TYPES, named_layers

BATCH = 2  # inputs in the recorded batch; not 1, so that the batch dimension can be recognized in every tensor
QUANTIZERS = {INPUT_QUANTIZER, OUTPUT_QUANTIZER}
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # relative difference that rounding may cause
COUNTED = (nn.LayerNorm, nn.GroupNorm, nn.Embedding, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)


def of_batch(x: Tensor, slope: int, offset: int) -> int:
    """Return a number that grows by `slope` with every input of the batch `x`.

    Examples
    --------
    >>> of_batch(torch.zeros(4, 3), 10, 1)
    41
    """
    return slope * len(x) + offset


@dataclass(eq=False)
class Calls:
    """Recorded calls of a model, for inputs of one size.

    Parameters
    ----------
    model : Module
        A copy with plain weights on the CPU, without hooks.
    input_size : tuple of int
        Shape of one input.
    graph : fx.Graph
        Graph without in-place operations and without sizes that are valid for one batch size only. ``meta["result"]``
        of a node is its result for `BATCH` inputs with shapes in place of tensors, see `codeq.graph.nodes.Recording`.
    larger : dict of fx.Node to object
        The same results for `BATCH` + 1 inputs.
    modules : dict of str to Module
        Called modules, by target of the node.
    layers : dict of str to str
        Names of the layers whose weights are passed to functions, by target of the node; for weights without a layer,
        names of the weights.
    problems : list of str
        Reasons why the graph differs from the model or lacks some of its weights; empty if it can be trusted.
    uncounted : list of str
        Names of layers whose weights are used in a way that codeq does not follow.
    wrong : bool
        Whether the graph computes other results than the model.
    reads_values : bool
        Whether the graph depends on values of parameters.
    module_calls : list of ModuleCall
        Calls of modules, in the order in which they return.
    """

    model: nn.Module
    input_size: tuple[int, ...]
    graph: fx.Graph
    larger: dict[fx.Node, Any]
    modules: dict[str, nn.Module]
    layers: dict[str, str]
    reads_values: bool
    module_calls: list[ModuleCall]
    problems: list[str] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)
    wrong: bool = False

    @cached_property
    def varying(self) -> set[fx.Node]:
        """Nodes that depend on the values of the input, not only on its size."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op == "placeholder" or (node.target is not of_batch and not found.isdisjoint(node.all_input_nodes)):
                found.add(node)
        return found

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def layer(self, node: fx.Node) -> str:
        """Return the name of the layer that a node calls."""
        return self.layers.get(str(node.target), str(node.target))

    def attribute(self, node: fx.Node) -> Any:
        """Return the attribute that a ``get_attr`` node reads."""
        owner, _, name = str(node.target).rpartition(".")
        return getattr(self.modules[owner], name)


def record_calls(model: nn.Module, input_size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Calls:
    """Record the calls of `model` for inputs of one size.

    Parameters
    ----------
    model : Module
        On any device, with or without parametrizations; not changed.
    input_size : tuple of int
        Shape of one input.
    dtype : dtype
        Precision of the recording.

    Raises
    ------
    CodeqError
        If the model does not take such an input, or computes something that cannot be recorded.

    Examples
    --------
    >>> calls = record_calls(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), (3, 2, 2))
    >>> [(node.name, node.meta["result"], calls.larger[node]) for node in calls.graph.nodes][1]
    ('_0', torch.Size([2, 4, 2, 2]), torch.Size([3, 4, 2, 2]))
    """
    input_size = tuple(input_size)
    check_weights(model)
    copied = baked_copy(model).cpu().to(dtype)
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.randn(n, *input_size, generator=generator, dtype=dtype) for n in (BATCH, BATCH + 1))
    try:
        first, second = (record(copied, x, model) for x in (small, large))
        larger = _merge(first, second)
    except Exception as error:
        kind = "" if isinstance(error, CodeqError) else f"{type(error).__name__}: "
        raise CodeqError(
            f"{type(model).__name__} cannot be traced with an input of {input_size}: {kind}{str(error)[:500]}"
        ) from error
    for i, constant in enumerate(first.constants):
        copied.register_buffer(f"_constant{i}", constant.clone())
    modules = dict(copied.named_modules())
    for module in modules.values():
        module._forward_hooks.clear()  # their calls are in the graph
        module._forward_pre_hooks.clear()
        for kind in QUANTIZERS.intersection(dict(module.named_children())):
            delattr(module, kind)
        if hasattr(module, "inplace"):
            cast(Any, module).inplace = False
    modules |= {name: layer for name, (_, layer) in first.functional.items()}
    layers = {name: layer for name, (layer, _) in first.functional.items()}
    calls = Calls(copied, input_size, first.graph, larger, modules, layers, first.reads_values, first.module_calls)
    _remove_unused(calls)
    _check_weights(calls)
    _check_results(calls, large, second.output)
    return calls


def run_node(node: fx.Node, modules: dict[str, nn.Module], args: Any, kwargs: Any) -> Any:
    """Return the result of one call."""
    match node.op:
        case "call_module":
            return modules[str(node.target)].forward(*args, **kwargs)
        case "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        case _:
            return cast(Any, node.target)(*args, **kwargs)


def _merge(first: Recording, second: Recording) -> dict[fx.Node, Any]:
    """Replace numbers of the first recording that differ in the second, and return the results of the second."""
    pairs = list(zip(first.graph.nodes, second.graph.nodes, strict=False))
    different = next((a for a, b in pairs if (a.op, str(a.target)) != (b.op, str(b.target))), None)
    if different is not None or len(first.graph.nodes) != len(second.graph.nodes):
        raise CodeqError("forward computes something else for batches of another size")
    if any(not _equal(a, b) for a, b in zip(first.constants, second.constants, strict=True)):
        raise CodeqError("forward makes tensors from Python or NumPy values that depend on the size of the batch")
    source = pairs[0][0]
    twin = {b: a for a, b in pairs}
    larger: dict[fx.Node, Any] = {a: b.meta.get("result") for a, b in pairs}

    def merged(a: Any, b: Any, node: fx.Node) -> Any:
        match a:
            case fx.Node():
                if twin.get(b) is not a:
                    raise CodeqError(f"{node.name} takes another tensor for batches of another size")
                return a
            case tuple() | list() if isinstance(b, (tuple, list)) and len(a) == len(b):
                items = [merged(x, y, node) for x, y in zip(a, b, strict=True)]
                return type(a)(*items) if hasattr(a, "_fields") else tuple(items) if isinstance(a, tuple) else items
            case dict() if isinstance(b, dict) and list(a) == list(b):
                return {key: merged(a[key], b[key], node) for key in a}
            case slice():
                return slice(*(merged(getattr(a, k), getattr(b, k), node) for k in ("start", "stop", "step")))
            case int() if type(b) is int and a != b:
                with first.graph.inserting_before(node):
                    number = first.graph.call_function(of_batch, (source, b - a, a - (b - a) * BATCH))
                number.meta["result"], number.meta["place"], larger[number] = a, "", b
                return number
        if a is not b and (type(a) is not type(b) or a != b):
            raise CodeqError(f"{node.name} takes {str(a)[:200]} or {str(b)[:200]}, depending on the size of the batch")
        return a

    for a, b in pairs:
        a.args, a.kwargs = merged(tuple(a.args), tuple(b.args), a), merged(dict(a.kwargs), dict(b.kwargs), a)
    return larger


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b)))


def _remove_unused(calls: Calls) -> None:
    """Erase functions whose results are unused; modules stay, because they are computed and counted."""
    for node in reversed(calls.graph.nodes):
        if not node.users and node.op in ("call_function", "call_method", "get_attr"):
            calls.graph.erase_node(node)


def _check_weights(calls: Calls) -> None:
    """Report weights that are used other than by calling a layer or its function."""
    layers = {id(layer.weight): name for name, layer in named_layers(calls.model)}
    for node in calls.graph.nodes:
        module = calls.module(node)
        if node.op == "get_attr":
            tensor = calls.attribute(node)
            products = ", ".join(sorted({user.name for user in _products(calls, node)}))
            if id(tensor) in layers:
                calls.uncounted.append(layers[id(tensor)])
            if isinstance(tensor, nn.Parameter) and tensor.ndim > 1 and (products or id(tensor) in layers):
                calls.problems.append(
                    f"{node.target} is used outside of a layer, by {products or 'others'}: not counted"
                )
        elif module is not None and not isinstance(module, (*LAYER_TYPES, *COUNTED)):
            matrices = [name for name, p in module.named_parameters(recurse=False) if p.ndim > 1]
            if matrices:
                calls.problems.append(f"{node.target}.{matrices[0]} ({type(module).__name__}) is not counted")


def _products(calls: Calls, node: fx.Node) -> Iterator[fx.Node]:
    """Yield the matrix products and convolutions that read a parameter, or what is computed from parameters alone."""
    for user in node.users:
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        if (
            name in ("matmul", "mm", "bmm", "einsum", "linear", "addmm", "baddbmm", "tensordot", "bilinear")
            or "conv" in name
        ):
            yield user
        elif user not in calls.varying:
            yield from _products(calls, user)


def _check_results(calls: Calls, x: Tensor, expected: Any) -> None:
    """Compare the results of the graph and the model, for another input than the recorded one."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)  # a model that draws random numbers draws others
            result = _replay(calls, x)
    except Exception as error:
        calls.wrong = True
        calls.problems.append(f"the traced calls fail: {type(error).__name__}: {str(error)[:200]}")
        return
    found, reference = (
        [leaf.to(torch.float64) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
        for tree in (result, expected)
    )
    for a, b in zip(found, reference, strict=True):
        if a.shape != b.shape or _difference(a, b) > TOLERANCE[x.dtype]:
            calls.wrong = True
            calls.problems.append(
                "the traced calls compute something else than the model, which may be random, keep a state between "
                "calls or pass values around PyTorch"
            )
            return


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest relative difference of two tensors; values that are not finite must be the same."""
    finite = found.isfinite() & expected.isfinite()
    if not torch.allclose(found[~finite], expected[~finite], rtol=0, atol=0, equal_nan=True):
        return inf
    a, b = found[finite], expected[finite]
    return relative_error(b.numpy(), (a - b).abs().numpy())


def _replay(calls: Calls, x: Tensor) -> Any:
    results: dict[fx.Node, Any] = {}
    remaining = {node: len(node.users) for node in calls.graph.nodes}
    look_up: Callable[[fx.Node], Any] = results.__getitem__
    for node in calls.graph.nodes:
        args, kwargs = (fx.map_arg(a, look_up) for a in (node.args, node.kwargs))
        match node.op:
            case "placeholder":
                results[node] = x
            case "get_attr":
                results[node] = calls.attribute(node)
            case "output":
                return args[0]
            case _:
                results[node] = run_node(node, calls.modules, args, kwargs)
        for used in node.all_input_nodes:
            remaining[used] -= 1
            if not remaining[used]:
                del results[used]
