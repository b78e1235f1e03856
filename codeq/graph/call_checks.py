"""Checks of recorded calls: weights used outside of layers, and results that differ from those of the model."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from codeq.common.equality import relative_error
from codeq.graph.calls import Calls, function_of, run_node, valued_arguments
from codeq.graph.functions import name_of
from codeq.graph.layer_rules import call_of
from codeq.graph.surroundings import restored_random_numbers
from codeq.quantizer.layers import LAYER_TYPES, named_layers

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}  # relative difference that rounding may cause
# Matrix products, with the position of the argument that they add; convolutions add the third.
PRODUCTS: dict[str, int | None] = {
    "matmul": None, "mm": None, "bmm": None, "mv": None, "dot": None, "vdot": None, "inner": None, "einsum": None,
    "tensordot": None, "chain_matmul": None, "linalg_multi_dot": None, "linalg_matmul": None, "linalg_vecdot": None,
    "addmm": 0, "addmv": 0, "addbmm": 0, "baddbmm": 0, "linear": 2, "bilinear": 3, "scaled_dot_product_attention": 3,
}  # fmt: skip
SUMMANDS = {"bias", "attn_mask"}  # the same arguments by name
# Their results have the shape and type of the first argument and other values.
VALUELESS = {"new_empty", torch.empty_like, torch.rand_like, torch.randn_like, torch.randint_like}
COUNTED = (nn.LayerNorm, nn.GroupNorm, nn.Embedding, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)


def note_uncounted_weights(calls: Calls) -> None:
    """Report products with fixed numbers, trained or not, and other uses of weights, that are no calls of layers."""
    layers = {id(layer.weight): name for name, layer in named_layers(calls.model)}
    fixed = {node: [factor for factor in _factors(node) if factor not in calls.varying] for node in calls.varying}
    sources = {product: _sources(calls, factors) for product, factors in fixed.items() if factors}
    for node in calls.graph.nodes:
        module = calls.module(node)
        if node.op == "get_attr":
            layer = layers.get(id(calls.attribute(node)))
            products = ", ".join(sorted(product.name for product, found in sources.items() if node in found))
            users = set() if layer is None else _users_of_values(node)
            if layer is not None and not users.isdisjoint(calls.varying):
                calls.uncounted.append(layer)
            if products or users:
                calls.report(f"{node.target} is used outside of a layer, by {products or 'others'}: not counted")
        elif node in sources and not sources[node]:
            calls.report(f"{call_of(node)} multiplies by fixed numbers outside of a layer: not counted")
        elif isinstance(module, LAYER_TYPES) and module.weight.is_complex():
            calls.uncounted.append(calls.layer(node))
            several = "each of whose multiplications is several real ones"
            calls.report(f"{calls.layer(node)} has complex weights, {several}")
        elif module is not None and not isinstance(module, (*LAYER_TYPES, *COUNTED)):
            matrices = [name for name, p in module.named_parameters(recurse=False) if p.ndim > 1]
            if matrices:
                calls.report(f"{node.target}.{matrices[0]} ({type(module).__name__}) is not counted")


def _users_of_values(node: fx.Node) -> set[fx.Node]:
    """Return the calls that use the values of a tensor, directly or through others, without the end of the forward."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        source = waiting.pop()
        new = [user for user in source.users if user not in found and user.op != "output" and source in _read_by(user)]
        found.update(new)
        waiting += new
    return found


def _read_by(node: fx.Node) -> list[fx.Node]:
    """Return the tensors whose values a call uses, not only their shapes and types."""
    if function_of(node) in VALUELESS:
        return []
    return [
        leaf for leaf in pytree.tree_leaves(valued_arguments(node, node.args, node.kwargs)) if isinstance(leaf, fx.Node)
    ]


def note_unknown_sizes(calls: Calls) -> None:
    """Report layers whose number of inputs depends on values, such as the experts of a mixture."""
    of_call: dict[str, list[str]] = {}
    for node, origin in calls.sizes_by_values.items():
        if isinstance(calls.module(node), LAYER_TYPES):
            of_call.setdefault(origin, []).append(calls.layer(node))
    for origin, names in of_call.items():
        calls.uncounted += names
        more = f" and {len(names) - 1} more layers" if len(names) > 1 else ""
        calls.report(f"the number of inputs of {names[0]}{more} depends on values, by {origin}: not counted")


def _factors(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that a matrix product or convolution multiplies; none for any other call."""
    name = name_of(node.target)
    if node.op not in ("call_function", "call_method") or (name not in PRODUCTS and "conv" not in name):
        return []
    summand = PRODUCTS.get(name, 2)
    given = [argument for position, argument in enumerate(node.args) if position != summand]
    given += [argument for key, argument in node.kwargs.items() if key not in SUMMANDS]
    leaves = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, fx.Node)]
    return [leaf for leaf in leaves if isinstance(leaf.meta["result"], torch.Size)]  # not the size of the batch


def _sources(calls: Calls, tensors: list[fx.Node]) -> list[fx.Node]:
    """Return the parameters and buffers that fixed tensors are computed from: the matrices, if any of them is one."""
    found = dict.fromkeys(tensors)
    waiting = [*tensors]
    while waiting:
        new = [source for source in _read_by(waiting.pop()) if source not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    read = {node: calls.attribute(node) for node in found if node.op == "get_attr"}
    numbers = [node for node, tensor in read.items() if tensor.is_floating_point() or tensor.is_complex()] or [*read]
    return [node for node in numbers if read[node].ndim > 1] or numbers


def check_results(calls: Calls, x: Tensor, expected: Any) -> None:
    """Compare the results of the graph and the model, for another input than the recorded one."""
    try:
        with torch.no_grad(), restored_random_numbers():
            torch.default_generator.manual_seed(1)  # a model that draws random numbers draws others
            result = _replay(calls, x)
    except Exception as error:
        calls.wrong = True
        calls.report(f"the traced calls fail: {type(error).__name__}: {str(error)[:200]}")
        return
    found, reference = (
        [_real(leaf) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in (result, expected)
    )
    for a, b in zip(found, reference, strict=True):
        if a.shape != b.shape or _difference(a, b) > TOLERANCE[x.dtype]:
            calls.wrong = True
            calls.report(
                "the traced calls compute something else than the model, which may be random, keep a state between "
                "calls or pass values around PyTorch"
            )
            return


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.to(torch.complex128)) if tensor.is_complex() else tensor.to(torch.float64)


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
