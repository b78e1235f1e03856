"""A model as a graph of calls for batches of any size."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from codeq.graph.functions import name_of
from codeq.graph.nodes import ModuleCall
from codeq.graph.overwriting import overwritten

BATCH = 2  # inputs in the recorded batch; not 1, so that the batch dimension can be recognized in every tensor

KEEP_SIZE = {  # their result has the size of the first argument, whatever is written into it
    "index_add", "index_copy", "index_put", "scatter", "scatter_add", "scatter_reduce", "masked_scatter", "masked_fill",
    overwritten.__name__,
}  # fmt: skip


# Their results depend on the shape of their argument alone, or besides on the values of the argument with that position
# and name, or on the values of the first one.
FILLED = {"new_zeros", "new_ones", torch.zeros_like, torch.ones_like}
FILLED_WITH = {"new_full": (2, "fill_value"), torch.full_like: (1, "fill_value"), "new_tensor": (1, "data")}
OF_FIRST = {"type_as", "expand_as", "view_as", "reshape_as"}


def function_of(node: fx.Node) -> Any:
    """Return the function, or the name of the method, that a node calls; `None` for anything else.

    Modules and arguments of a forward may have names of methods: ``squeeze``.
    """
    return node.target if node.op in ("call_function", "call_method") else None


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def valued_arguments(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return those of the arguments of a call whose values decide its result, not only their shapes and types.

    Parameters
    ----------
    node : fx.Node
        The call.
    args, kwargs : tuple, dict
        Its arguments, or what stands for them.
    """
    function = function_of(node)
    if function in FILLED or function is of_batch:
        return ()
    if function in FILLED_WITH:
        position, name = FILLED_WITH[function]
        return args[position] if len(args) > position else kwargs.get(name)
    return args[:1] if function in OF_FIRST else (args, kwargs)


def of_batch(x: Tensor, slope: int, offset: int) -> int:
    """Return a number that grows by `slope` with every input of the batch `x`.

    Examples
    --------
    >>> import torch
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
        Names of the layers and BatchNorms whose weights are passed to functions, by target of the node; for weights
        without a layer, names of the weights.
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
            sources: list[fx.Node] = []
            fx.map_arg(valued_arguments(node, node.args, node.kwargs), sources.append)
            if node.op == "placeholder" or not found.isdisjoint(sources):
                found.add(node)
        return found

    @cached_property
    def sizes_by_values(self) -> dict[fx.Node, str]:
        """Nodes whose size depends on the values of the input, with the call that it depends on."""
        found: dict[fx.Node, str] = {}
        for node in self.graph.nodes:
            sources = node.all_input_nodes[: 1 if name_of(function_of(node)) in KEEP_SIZE else None]
            origin = next((found[source] for source in sources if source in found), "")
            if node.meta.get("size_by_values") and node in self.varying:
                place = node.meta["place"]
                origin = name_of(node.target) + (f" in {place}" if place else "")
            if origin and node.meta.get("result") != torch.Size():  # a single number is one number
                found[node] = origin
        return found

    def report(self, problem: str) -> None:
        """Add a problem, once: calls in a loop have the same one."""
        if problem not in self.problems:
            self.problems.append(problem)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it calls one."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def layer(self, node: fx.Node) -> str:
        """Return the name of the layer or BatchNorm that a node calls."""
        return self.layers.get(str(node.target), str(node.target))

    def attribute(self, node: fx.Node) -> Any:
        """Return the attribute that a ``get_attr`` node reads."""
        owner, _, name = str(node.target).rpartition(".")
        return getattr(self.modules[owner], name)


def run_node(node: fx.Node, modules: dict[str, nn.Module], args: Any, kwargs: Any) -> Any:
    """Return the result of one call."""
    match node.op:
        case "call_module":
            return modules[str(node.target)].forward(*args, **kwargs)
        case "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        case _:
            return cast(Any, node.target)(*args, **kwargs)
