"""Recording of a model as a graph of calls for batches of any size, merged from recordings of two batches."""

from __future__ import annotations

from operator import index
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from codeq.common.default_device import cpu_by_default
from codeq.common.errors import CodeqError, quote
from codeq.graph.baking import baked_copy, check_weights, convert
from codeq.graph.call_checks import check_results, note_uncounted_weights, note_unknown_sizes
from codeq.graph.calls import BATCH, Calls, of_batch
from codeq.graph.leaves import plain_forward
from codeq.graph.nodes import Recording
from codeq.graph.recording import record
from codeq.quantizer.activations import INPUT_QUANTIZER, OUTPUT_QUANTIZER
from codeq.quantizer.layers import named_layers

QUANTIZERS = {INPUT_QUANTIZER, OUTPUT_QUANTIZER}


@cpu_by_default()
@torch.autocast("cpu", enabled=False)
@torch.inference_mode(False)  # its tensors do not count how often they were written to
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
    input_size = checked_size(input_size)
    check_weights(model)
    copied = convert(baked_copy(model).cpu(), dtype)
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.randn(n, *input_size, generator=generator, dtype=dtype) for n in (BATCH, BATCH + 1))
    try:
        first, second = _record_both(copied, small, large, model)
        larger = _merge(first, second)
    except Exception as error:
        kind = "" if isinstance(error, CodeqError) else f"{type(error).__name__}: "
        raise CodeqError(
            f"{type(model).__name__} cannot be traced with an input of {input_size}: {kind}{str(error)[:500]}"
        ) from error
    for i, constant in enumerate(first.constants):
        copied.register_buffer(f"_constant{i}", constant.detach().clone())
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
    note_uncounted_weights(calls)
    note_unknown_sizes(calls)
    check_results(calls, large, second.output)
    return calls


def _record_both(copied: nn.Module, small: Tensor, large: Tensor, model: nn.Module) -> tuple[Recording, Recording]:
    """Record two batches.

    Layers with a forward of their own are recorded by the calls inside it if these take the parameters of the layer as
    they are, and as one call if their weights are computed there or they cannot be recorded.
    """
    separate = {name: layer for name, layer in named_layers(copied) if not plain_forward(layer)}
    owners = {f"{name}.{key}": name for name, layer in separate.items() for key, _ in layer.named_parameters()}
    try:
        first = record(copied, small, model)
        read = [str(node.target) for node in first.graph.nodes if node.op == "get_attr" and node.users]
        whole = {owners[name] for name in read if name in owners}
    except CodeqError:
        if not separate:
            raise
        whole = set(separate)
    if whole:
        first = record(copied, small, model, whole)
    return first, record(copied, large, model, whole)


def checked_size(input_size: Any) -> tuple[int, ...]:
    """Return the shape of one input as a tuple, or raise a `CodeqError` if it is none.

    Examples
    --------
    >>> checked_size([3, 32, 32])
    (3, 32, 32)
    """
    try:
        sizes = tuple(map(index, input_size))
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise CodeqError(f"input_size={quote(input_size)}: must be the shape of one input, e.g. (3, 32, 32)")
    return sizes


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
        if callable(a) and a is not b and a != b:
            raise CodeqError(
                f"{node.name} takes a function that is another one in each forward pass, as those of torch.cond "
                "usually are, which codeq does not follow"
            )
        if a is not b and (type(a) is not type(b) or not (a == b or (a != a and b != b))):  # NaN is the same number
            raise CodeqError(f"{node.name} takes {str(a)[:200]} or {str(b)[:200]}, depending on the size of the batch")
        return a

    for a, b in pairs:
        a.args, a.kwargs = merged(tuple(a.args), tuple(b.args), a), merged(dict(a.kwargs), dict(b.kwargs), a)
    return larger


def _equal(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    alike = a.shape == b.shape and a.dtype == b.dtype
    return alike and bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is the same number


def _remove_unused(calls: Calls) -> None:
    """Erase functions whose results are unused; modules stay, because they are computed and counted."""
    for node in reversed(calls.graph.nodes):
        if not node.users and node.op in ("call_function", "call_method", "get_attr"):
            calls.graph.erase_node(node)
