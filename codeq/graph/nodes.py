"""Nodes of a recording, with the tensors that they compute and their dependence on the input."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from codeq.common.errors import CodeqError
from codeq.graph.overwriting import Aliases, read_view, write_view


@dataclass(eq=False)
class ModuleCall:
    """One call of a module, whether recorded as one node or as the calls inside it.

    Parameters
    ----------
    name : str
        Full dotted name of the module.
    argument, result : fx.Node or None
        Nodes of its first positional argument and of what it returns; `None` for anything but a tensor.
    """

    name: str
    argument: fx.Node | None
    result: fx.Node | None = None


@dataclass(eq=False)
class Recording:
    """Recording of one forward pass of a model.

    Parameters
    ----------
    graph : fx.Graph
        Graph without in-place operations. ``meta["result"]`` of a node is its result with shapes in place of tensors,
        ``meta["place"]`` the name of the module that called it, ``meta["within"]`` the calls of modules that it is part
        of; ``meta["unchanged"]`` is set where a module returned its argument itself, ``meta["overwrites"]`` where the
        call overwrites its argument, ``meta["size_by_values"]`` where the size of the result depends on values;
        ``meta["without_gradients"]`` tells whether gradients were switched off, as inside an `autograd.Function`.
    output : object
        Return value of the model.
    functional : dict of str to (str, Module)
        Name of the layer or weight and a layer, for every call of a function (``F.linear``, ``F.batch_norm``) with
        parameters of the model. The key is the target of the node.
    constants : list of Tensor
        Tensors that are neither computed in the model nor its parameters or buffers.
    reads_values : bool
        Whether the values of parameters or constants were read, so that the recording depends on them.
    module_calls : list of ModuleCall
        Calls of modules in the order in which they return.
    """

    graph: fx.Graph
    output: Any = None
    functional: dict[str, tuple[str, nn.Module]] = field(default_factory=dict)
    constants: list[Tensor] = field(default_factory=list)
    reads_values: bool = False
    module_calls: list[ModuleCall] = field(default_factory=list)


class Nodes:
    """Nodes of a recording under construction.

    Parameters
    ----------
    model : Module
        Copy of the model that is recorded.
    original : Module
        Model that it is a copy of; closures may still refer to its parameters.
    """

    def __init__(self, model: nn.Module, original: nn.Module) -> None:
        self.model = model
        self._originals: dict[Tensor, str] = {parameter: name for name, parameter in original.named_parameters()}
        self.recording = Recording(fx.Graph())
        self.graph = self.recording.graph
        self.aliases = Aliases(self.graph)
        self.names = {
            tensor: name
            for name, tensor in [*model.named_buffers(), *model.named_parameters()]  # of equal ids the last counts
        }
        self.entered: list[ModuleCall] = []  # calls of modules that have not returned yet
        self.varying: set[fx.Node] = set()
        parameters = list(inspect.signature(type(model).forward).parameters)
        self.input = self.graph.placeholder(parameters[1] if len(parameters) > 1 and parameters[1] != "args" else "x")
        self.varying.add(self.input)

    def add_input(self, x: Tensor) -> None:
        """Register the input of the model."""
        self.aliases.add(x, self.input)
        self.input.meta["result"] = x.shape

    def add_output(self, output: Any) -> None:
        """Register the return value of the model."""
        self.recording.output = output
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        if not tensors:
            raise CodeqError(f"{type(self.model).__name__} returns no tensor but a {type(output).__name__}")
        (arguments,), _ = self.arguments(((output,), {}))
        node = self.graph.output(arguments)
        node.meta["result"] = pytree.tree_map(lambda leaf: leaf.shape if isinstance(leaf, Tensor) else leaf, output)

    def varies(self, *nodes: fx.Node) -> bool:
        """Return whether any of the nodes depends on the input."""
        return any(
            node in self.varying or (node.target in (read_view, write_view) and self.varies(*node.all_input_nodes))
            for node in nodes
        )

    def place(self) -> str:
        """Return the name of the module that is being called, for messages."""
        return (self.entered[-1].name if self.entered else "") or type(self.model).__name__

    def enter(self, name: str, args: tuple[Any, ...]) -> ModuleCall:
        """Begin the call of a module."""
        call = ModuleCall(name, self._registered(args[0]) if args else None)
        self.entered.append(call)
        return call

    def leave(self, result: Any = None) -> None:
        """End the call of a module that returned `result`."""
        call = self.entered.pop()
        call.result = self._registered(result)
        self.recording.module_calls.append(call)

    def _registered(self, value: Any) -> fx.Node | None:
        return self.aliases.node(value) if isinstance(value, Tensor) and value in self.aliases else None

    def create(self, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        """Add a node."""
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta["place"] = self.entered[-1].name if self.entered else ""
        node.meta["within"] = tuple(self.entered)
        node.meta["without_gradients"] = not torch.is_grad_enabled()
        if self.varies(*node.all_input_nodes):
            self.varying.add(node)
        return node

    def arguments(self, arguments: Any) -> Any:
        """Return positional and keyword arguments with nodes in place of tensors."""

        def argument(leaf: Any) -> Any:
            return self.node(leaf) if isinstance(leaf, Tensor) else leaf

        args, kwargs = fx.node.map_aggregate(arguments, argument)
        return args, dict(kwargs)

    def knows(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a result of a node, or a parameter or buffer of the model or the original."""
        return tensor in self.aliases or tensor in self.names or tensor in self._originals

    def node(self, tensor: Tensor) -> fx.Node:
        """Return the node that computes a tensor, or a new node that reads it if there is none."""
        if tensor not in self.aliases:
            name = self.names.get(tensor)
            if tensor in self._originals:
                raise CodeqError(
                    f"{self.place()} uses the parameter {self._originals[tensor]!r} through a closure; use it through "
                    "the module that a function or hook is called with, or that a method belongs to"
                )
            if name is None:
                name = f"_constant{len(self.recording.constants)}"
                self.recording.constants.append(tensor)
            node = self.create("get_attr", name, (), {})
            node.meta["result"] = tensor.shape
            self.aliases.add(tensor, node)
        return self.aliases.node(tensor)

    def results(self, node: fx.Node, result: Any, changed: list[Tensor]) -> None:
        """Register the result of a node and the tensors that it overwrites."""
        if changed:
            node.meta["result"], node.meta["overwrites"] = changed[0].shape, True
            self.aliases.overwrite(changed[0], node)
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf is not changed[0]:
                    self.aliases.add(leaf, node)
        else:
            self._unpack(node, result)

    def _unpack(self, node: fx.Node, result: Any) -> None:
        node.meta["result"] = pytree.tree_map(lambda leaf: leaf.shape if isinstance(leaf, Tensor) else leaf, result)
        if isinstance(result, Tensor):
            self.aliases.add(result, node)
        elif isinstance(result, (tuple, list, dict)):
            for key, item in result.items() if isinstance(result, dict) else enumerate(result):
                self._unpack(self.create("call_function", operator.getitem, (node, key), {}), item)
