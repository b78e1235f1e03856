"""Gets a model ready for channel flow: a float64 copy with plain weights, traced, in evaluation mode."""

from __future__ import annotations

import copy
import inspect
import io
from contextlib import redirect_stderr
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from codeq.common.errors import CodeqError
from codeq.flow.known import is_inplace
from codeq.flow.values import PROBE_BATCH
from codeq.graph.tracing import LayerTracer


def baked_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in evaluation mode whose parametrized weights, quantized or not, are plain ones.

    They are baked in the model's own precision: quantizing again in another one would choose other levels.

    Examples
    --------
    >>> model = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> sorted(baked_copy(model).state_dict()), parametrize.is_parametrized(model)
    (['bias', 'weight'], True)
    """
    baked = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(baked.modules()):
        if parametrize.is_parametrized(module):
            # remove_parametrizations would take the property off the class, which a copy shares with its original.
            values = {name: getattr(module, name) for name in cast(Any, module.parametrizations)}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
    return baked


def run_node(node: fx.Node, modules: dict[str, nn.Module], args: Any, kwargs: Any) -> Any:
    """Return the result of one traced call."""
    match node.op:
        case "call_module":
            return modules[str(node.target)](*args, **kwargs)
        case "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        case _:
            return cast(Any, node.target)(*args, **kwargs)


class Prepared:
    """A traced model and what a larger batch makes of it.

    Parameters
    ----------
    model : Module
        Plain weights, float64, evaluation mode.
    input_size : tuple of int
        Of one input.

    Attributes
    ----------
    graph : fx.Graph
        Without operations in place: who reads a tensor after it was overwritten reads the overwriting call.
    modules : dict of str to Module
        By name.
    larger : dict of fx.Node to object
        Results for one input more than `PROBE_BATCH`: shapes of tensors, numbers as they are.

    Raises
    ------
    CodeqError
        If the model cannot be traced or does not take such an input.
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, ...]) -> None:
        self.model = model
        self.input_size = tuple(input_size)
        self.larger: dict[fx.Node, Any] = {}
        try:
            # torch.fx would also print the failing node and a traceback of its own to stderr.
            with torch.no_grad(), redirect_stderr(io.StringIO()):
                self.graph = LayerTracer().trace(model)
                self.modules = dict(model.named_modules())
                self._read_overwritten()
                self._run_larger()
        except Exception as error:
            raise CodeqError(
                f"{type(model).__name__} cannot be traced with an input of {self.input_size}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def attribute(self, node: fx.Node) -> Any:
        """Return what a ``get_attr`` node reads."""
        owner, _, name = str(node.target).rpartition(".")
        return getattr(self.modules[owner], name)

    def _read_overwritten(self) -> None:
        place = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            if is_inplace(node, self.module(node)) and node.args and isinstance(node.args[0], fx.Node):
                for user in list(node.args[0].users):
                    if place[user] > place[node]:
                        user.replace_input_with(node.args[0], node)

    def _run_larger(self) -> None:
        results: dict[fx.Node, Any] = {}
        remaining = {node: len(node.users) for node in self.graph.nodes}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                result: Any = placeholder(node, torch.zeros(PROBE_BATCH + 1, *self.input_size, dtype=torch.float64))
            elif node.op == "get_attr":
                result = self.attribute(node)
            elif node.op == "output":
                continue
            else:
                args, kwargs = (fx.map_arg(a, results.__getitem__) for a in (node.args, node.kwargs))
                result = run_node(node, self.modules, args, kwargs)
            results[node] = result
            self.larger[node] = torch.utils._pytree.tree_map(
                lambda leaf: leaf.shape if isinstance(leaf, Tensor) else leaf, result
            )
            for used in node.all_input_nodes:
                remaining[used] -= 1
                if not remaining[used]:
                    del results[used]


def placeholder(node: fx.Node, x: Tensor) -> Any:
    """Return the value of an argument of the network: `x` for the first, its default for the others."""
    first = next(n for n in node.graph.nodes if n.op == "placeholder")
    if node is first:
        return x
    if not node.args:
        raise CodeqError(f"forward takes {node.name!r} besides the input, without a default")
    return node.args[0]


def out_of_place(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a function with ``inplace`` switched off, wherever it stands.

    Examples
    --------
    >>> out_of_place(torch.nn.functional.relu, (1, True), {})
    ((1,), {'inplace': False})
    """
    try:
        names = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # built-in functions have no signature, nor `inplace`
        return args, kwargs
    if "inplace" in names:
        place = names.index("inplace")
        kwargs = dict(zip(names[place + 1 :], args[place + 1 :], strict=False)) | kwargs | {"inplace": False}
        args = args[:place]
    return args, kwargs
