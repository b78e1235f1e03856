"""Structure of a network as data: its operations in PyTorch's core ATen set, written down and carried out again.

`torch.export` reduces a network to a list of calls of functions of tensors. Those of the *core* ATen set compute
tensors from tensors and do nothing else, so a list that names no other function cannot touch files or run code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export.graph_signature import OutputKind

from codeq.common.errors import CodeqError
from codeq.export.program import exported_program

_ARITHMETIC = {
    name: getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg")
}  # fmt: skip  (of sizes that depend on the batch)
_OPERATION = re.compile(r"aten\.([a-z_][a-z_0-9]*)\.([A-Za-z][A-Za-z_0-9]*)")
_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def trace_structure(model: nn.Module, example: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write down the operations of a network for any batch size.

    What the network writes into its input and its buffers is left out.

    Parameters
    ----------
    model : Module
        In evaluation mode, with plain weights.
    example : Tensor
        `[N, …]`, a batch of inputs.

    Returns
    -------
    tuple
        The structure, of numbers, strings, lists and dictionaries: ``state`` lists the names of tensors, ``nodes`` the
        calls, whose arguments ``{"value": i}`` are the input (0), the tensors of the state, and the results of the
        calls before, in this order; ``output`` the result. And the tensors that the state dict of `model` lacks.

    Raises
    ------
    CodeqError
        If `torch.export` cannot follow the network, or an operation is outside the core ATen set.
    """
    program = exported_program(model, example).run_decompositions()
    signature = program.graph_signature
    numbers: dict[torch.fx.Node, int] = {}
    state: list[str] = []
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = dict(signature.inputs_to_lifted_tensor_constants)
    given = [node for node in program.graph.nodes if node.op == "placeholder"]
    inputs = [node for node in given if node.name in signature.user_inputs]
    if len(inputs) != 1 or len(given) != 1 + len([n for n in given if n.name in named or n.name in constants]):
        raise CodeqError(f"{type(model).__name__} takes {len(inputs)} inputs: a packed network takes one tensor")
    numbers[inputs[0]] = 0
    lifted: dict[str, Tensor] = {}
    for node in given:
        if node is inputs[0]:
            continue
        name = named.get(node.name) or constants[node.name]
        if name not in program.state_dict:  # a constant of the code, or a buffer that is not saved
            lifted[name] = cast(Tensor, program.constants[name])
        state.append(name)
        numbers[node] = len(state)
    nodes: list[dict[str, Any]] = []
    result: Any = None
    for node in program.graph.nodes:
        if node.op == "output":
            kinds = [spec.kind for spec in signature.output_specs]  # new values of tensors that are overwritten, too
            results = zip(cast(Any, node.args[0]), kinds, strict=True)
            result = _encode([value for value, kind in results if kind is OutputKind.USER_OUTPUT], numbers)
        elif node.op == "call_function" and node.target is not torch.ops.aten._assert_tensor_metadata.default:
            name = _operation_name(node)
            kwargs = {key: _encode(value, numbers) for key, value in node.kwargs.items()}
            nodes.append({"op": name, "args": _encode(node.args, numbers), "kwargs": kwargs})
            numbers[node] = len(state) + len(nodes)
    return {"state": state, "nodes": nodes, "output": result}, lifted


class PackedNetwork(nn.Module):
    """A network that carries out the calls of a structure, one after the other.

    Parameters
    ----------
    structure : dict
        As `trace_structure` returns it.
    state : mapping of str to Tensor
        The tensors that it names.

    Raises
    ------
    CodeqError
        For a structure that is malformed, or names a function outside the core ATen set or a missing tensor.

    Examples
    --------
    >>> call = {"op": "aten.add.Tensor", "args": [{"value": 0}, {"value": 1}], "kwargs": {"alpha": 2}}
    >>> structure = {"state": ["bias"], "nodes": [call], "output": [{"value": 2}]}
    >>> PackedNetwork(structure, {"bias": torch.tensor([3.0])})(torch.ones(1, 1)).tolist()
    [[7.0]]
    """

    def __init__(self, structure: Any, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        names, nodes, self._output = _parts(structure)
        if missing := [name for name in names if name not in state]:
            raise CodeqError(f"the structure reads tensor {missing[0]!r:.200}, which the file does not hold")
        for number, name in enumerate(names):
            self.register_buffer(f"state_{number}", state[name])
        self._count = len(names)
        self._calls = [(_resolve(node["op"]), node["op"], node["args"], node["kwargs"]) for node in nodes]

    def forward(self, x: Tensor) -> Any:
        """Return the result of the network for a batch `[N, …]`."""
        values: list[Any] = [x, *(getattr(self, f"state_{number}") for number in range(self._count))]
        for number, (function, name, args, kwargs) in enumerate(self._calls):
            try:
                named = {key: _decode(value, values) for key, value in kwargs.items()}
                values.append(function(*_decode(args, values), **named))
            except CodeqError:
                raise
            except Exception as error:
                raise CodeqError(f"call {number} of the packed network, {name}: {error}"[:500]) from error
        output = _decode(self._output, values)
        return output[0] if len(output) == 1 else tuple(output)


def _parts(structure: Any) -> tuple[list[str], list[dict[str, Any]], Any]:
    """Return the three parts of a structure, checked to be of their types."""
    if not isinstance(structure, dict) or structure.keys() != {"state", "nodes", "output"}:
        raise CodeqError("the structure must have the keys state, nodes and output")
    names, nodes, output = structure["state"], structure["nodes"], structure["output"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CodeqError("state of the structure must be a list of names")
    if not isinstance(nodes, list):
        raise CodeqError("nodes of the structure must be a list")
    for node in nodes:
        valid = isinstance(node, dict) and node.keys() == {"op", "args", "kwargs"}
        if not (valid and isinstance(node["args"], list) and isinstance(node["kwargs"], dict)):
            raise CodeqError(f"node {node!r:.200} of the structure must have op, a list args and a dictionary kwargs")
    if not isinstance(output, list) or not output:
        raise CodeqError("output of the structure must be a list of values")
    return names, nodes, output


def _operation_name(node: torch.fx.Node) -> str:
    if isinstance(node.target, OpOverload):
        name = str(node.target)
    else:
        name = f"operator.{getattr(node.target, '__name__', node.target)}"
    try:
        _resolve(name)
    except CodeqError as error:
        raise CodeqError(f"{_place(node)}: {error}") from error
    return name


def _place(node: torch.fx.Node) -> str:
    modules = node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(list(modules.values())) if path), "the network itself")


def layer_of(program: torch.export.ExportedProgram, message: str) -> str:
    """Return the dotted name of the module whose operation an error message names."""
    for node in program.graph.nodes:
        if isinstance(node.target, OpOverload) and str(node.target).rpartition(".")[0] in message:
            return _place(node)
    return "the network"


def _resolve(name: Any) -> Any:
    """Return the function of a name, which must be one of the core ATen set or of the arithmetic of sizes."""
    if isinstance(name, str):
        if name.startswith("operator.") and (function := _ARITHMETIC.get(name.removeprefix("operator."))):
            return function
        if found := _OPERATION.fullmatch(name):
            packet = getattr(torch.ops.aten, found[1], None) if not found[1].startswith("__") else None
            overload = getattr(packet, found[2], None)
            if isinstance(overload, OpOverload) and torch.Tag.core in overload.tags:
                return overload
    raise CodeqError(f"operation {name!r:.200} is outside PyTorch's core ATen set, so it cannot be packed")


def _encode(argument: Any, numbers: Mapping[torch.fx.Node, int]) -> Any:
    if isinstance(argument, torch.fx.Node):
        return {"value": numbers[argument]}
    if isinstance(argument, (list, tuple)):
        return [_encode(item, numbers) for item in argument]
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": repr(argument)}
    if argument is None or isinstance(argument, (bool, int, float, str)):
        return argument
    if isinstance(argument, torch.device):
        return {"device": "input"}
    for kind, cls in _KINDS.items():
        if isinstance(argument, cls):
            return {kind: str(argument).removeprefix("torch.")}
    raise CodeqError(f"an argument of type {type(argument).__name__} cannot be packed")


def _decode(argument: Any, values: list[Any]) -> Any:
    if isinstance(argument, list):
        return [_decode(item, values) for item in argument]
    if not isinstance(argument, dict):
        return argument
    if len(argument) == 1:
        ((kind, content),) = argument.items()
        if kind == "value" and isinstance(content, int) and 0 <= content < len(values):
            return values[content]
        if kind == "float" and content in ("inf", "-inf", "nan"):
            return float(content)
        if kind == "device":
            return values[0].device
        if kind in _KINDS and isinstance(content, str):
            found = getattr(torch, content, None)
            if isinstance(found, _KINDS[kind]):
                return found
    raise CodeqError(f"argument {argument!r:.200} of the structure is not understood")
