"""Residual adds of a network, and the modules at whose input or output their operands can be quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from codeq.common.errors import CodeqError
from codeq.graph.call_recording import record_calls
from codeq.graph.calls import Calls, function_of
from codeq.graph.layer_rules import call_of
from codeq.graph.moves import moved_from
from codeq.quantizer.activations import INPUT_QUANTIZER, OUTPUT_QUANTIZER

_ADDS = (torch.add, "add")


@dataclass(frozen=True)
class ResidualAdd:
    """Sum of two or more tensors of one shape that depend on the input.

    Parameters
    ----------
    name : str
        Its place, and its number there if there are several: ``add in layer1.0``, ``add 2 in blocks.3``.
    reason : str
        Why its operands cannot share a quantizer; empty if they can.
    """

    name: str
    reason: str = ""


@dataclass(frozen=True, eq=False)
class SharedOperands:
    """Operands of one residual add, or of several that have an operand in common.

    Parameters
    ----------
    adds : tuple of ResidualAdd
        The adds.
    sites : dict of fx.Node to (str, str)
        For each tensor to quantize the module, and ``input_quantizer`` or ``output_quantizer``. Everything that reads
        the tensor reads it behind this place. Empty if an operand of one of the adds cannot be reached.
    """

    adds: tuple[ResidualAdd, ...]
    sites: dict[fx.Node, tuple[str, str]]


def shared_operands(calls: Calls) -> list[SharedOperands]:
    """Group the residual adds of a recorded network by common operands, and find where these can be quantized.

    An operand can be reached if it is the result of a module that is called once, or the first argument of one, and
    nothing reads it past that module; calls that only move its elements may lie between it and the add. An add whose
    operand is another add, read by nothing else, has the operands of both.

    Raises
    ------
    CodeqError
        If the recorded calls compute something else than the model.
    """
    if calls.wrong:
        raise CodeqError(f"the operands of residual adds cannot be found: {calls.problems[-1]}")
    sites = _Sites(calls)
    adds = [node for node in calls.graph.nodes if _is_add(calls, node)]
    inner = {
        operand
        for node in adds
        for operand in set(adds).intersection(_operands(node))
        if len(operand.users) == 1 and _plain(node) and _plain(operand)
    }
    places = Counter(node.meta["place"] for node in adds if node not in inner)
    number: Counter[str] = Counter()
    groups: list[tuple[list[ResidualAdd], dict[fx.Node, tuple[str, str] | None]]] = []
    for node in adds:
        if node in inner:
            continue
        place = node.meta["place"]
        number[place] += 1
        name = "add" + (f" {number[place]}" if places[place] > 1 else "") + (f" in {place}" if place else "")
        operands = [origin(calls, operand) for operand in _summands(node, inner)]
        found = {operand: sites.find(operand) for operand in operands}
        reason = "" if _plain(node) else f"alpha={node.kwargs['alpha']!r:.200} scales an operand"
        if missing := [operand for operand, site in found.items() if site is None]:
            reason = f"{call_of(missing[0])} computes an operand that no single module call returns or takes"
        joined = [group for group in groups if not found.keys().isdisjoint(group[1])]
        groups = [group for group in groups if group not in joined]
        members = [add for group in joined for add in group[0]]
        tensors = {tensor: site for group in joined for tensor, site in group[1].items()}
        groups.append(([*members, ResidualAdd(name, reason)], tensors | found))
    return [_judged(members, tensors) for members, tensors in groups]


def _judged(adds: list[ResidualAdd], tensors: dict[fx.Node, tuple[str, str] | None]) -> SharedOperands:
    sites = {tensor: site for tensor, site in tensors.items() if site is not None}
    if not (float_adds := [add for add in adds if add.reason]):
        return SharedOperands(tuple(adds), sites)
    shared = f"it has an operand in common with {float_adds[0].name}"
    return SharedOperands(tuple(ResidualAdd(add.name, add.reason or shared) for add in adds), {})


def _is_add(calls: Calls, node: fx.Node) -> bool:
    """Return whether a node adds two tensors of one shape that depend on the input."""
    operands = _operands(node)
    shapes = {operand.meta.get("result") for operand in operands}
    return function_of(node) in _ADDS and len(operands) == 2 and len(shapes) == 1 and calls.varying.issuperset(operands)


def _operands(node: fx.Node) -> list[fx.Node]:
    named = [node.kwargs[name] for name in ("input", "other") if name in node.kwargs]
    return [argument for argument in (*node.args, *named) if isinstance(argument, fx.Node)]


def _plain(node: fx.Node) -> bool:
    return node.kwargs.get("alpha", 1) in (1, -1)


def _summands(node: fx.Node, inner: set[fx.Node]) -> Iterator[fx.Node]:
    for operand in _operands(node):
        if operand in inner:
            yield from _summands(operand, inner)
        else:
            yield operand


def origin(calls: Calls, node: fx.Node) -> fx.Node:
    """Return the tensor whose elements the result of a node contains, moved or not."""
    while (source := moved_from(calls, node)) is not None:
        node = source
    return node


def unchanged_source(node: fx.Node) -> fx.Node:
    """Return the tensor that a node stands for, behind modules that return their argument itself, as `nn.Identity`."""
    while node.meta.get("unchanged") and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


class _Sites:
    """Search for the module at whose input or output a tensor can be quantized for all that read it."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.count = Counter(call.name for call in calls.module_calls)

    def find(self, tensor: fx.Node) -> tuple[str, str] | None:
        readers = list(self._readers(tensor))
        overwritten = any(reader.meta.get("overwrites") for reader in readers)  # a caller may read the new values
        results, arguments = [], []
        for call in self.calls.module_calls:
            if self.count[call.name] > 1 or not self._takes_hooks(call.name):
                continue
            inside = [call in reader.meta.get("within", ()) for reader in readers]
            enters = self._is(call.argument, tensor)
            if self._is(call.result, tensor) and not enters and not any(inside):
                results.append(call)
            if enters and all(inside) and not overwritten:
                arguments.append(call)
        if results:
            return results[0].name, OUTPUT_QUANTIZER
        return (arguments[0].name, INPUT_QUANTIZER) if arguments else None

    def _takes_hooks(self, name: str) -> bool:
        """Return whether a module can get a quantizer as a submodule: containers would call it as one of their own."""
        return bool(name) and not isinstance(self.calls.model.get_submodule(name), nn.Sequential)

    def _is(self, node: fx.Node | None, tensor: fx.Node) -> bool:
        """Return whether a node is a tensor, or a module's result that is its argument itself."""
        return node is not None and unchanged_source(node) is unchanged_source(tensor)

    def _readers(self, tensor: fx.Node) -> Iterator[fx.Node]:
        """Yield the calls that compute with a tensor; one that returns it unchanged is not told from the tensor."""
        for user in tensor.users:
            if user.meta.get("unchanged"):
                yield from self._readers(user)
            else:
                yield user


def residual_adds(model: nn.Module, input_size: tuple[int, ...]) -> list[ResidualAdd]:
    """Return the residual adds of a model, with the reason for those whose operands cannot share a quantizer.

    Parameters
    ----------
    model : Module
        Not changed.
    input_size : tuple of int
        Shape of one input.

    Raises
    ------
    CodeqError
        If the model cannot be traced.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> [add.name for add in residual_adds(resnet20(), (3, 32, 32))][:2]
    ['add in layer1.0', 'add in layer1.1']
    """
    return [add for group in shared_operands(record_calls(model, input_size)) for add in group.adds]
