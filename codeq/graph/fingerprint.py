"""Fingerprint of everything that the trace of a model depends on, except the values of its weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils.parametrize import ParametrizationList

PRIMITIVE = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, type, BuiltinFunctionType)
SIMPLE = (*PRIMITIVE, list, tuple, dict)
NO_SETTING = (ModuleType, FunctionType, BuiltinFunctionType, type, nn.Module)
DEPTH_OF_SETTINGS = 4  # levels of what functions read by name that are compared
DEPTH = 6  # levels of nested objects, lists and mappings that are compared
# Attributes that do not affect the forward pass in evaluation mode, or that are compared elsewhere.
SKIPPED = frozenset({
    "training", "_parameters", "_buffers", "_modules", "_backward_hooks", "_backward_pre_hooks",
    "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    "_non_persistent_buffers_set", "_forward_hooks_always_called",
})  # fmt: skip


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Return a fingerprint that is equal for two states of a model only if they differ in values of weights alone.

    It contains the modules with their types, attributes, functions and hooks, shapes and types of tensors, values of
    tensors of integers (which may be indices), and which parameters are shared. Quantizers and other parametrizations
    are left out. Global variables of Python modules, and attributes of modules and classes, are included if a forward
    function, or a function, method or property that it uses by name, reads them by name.

    Parameters
    ----------
    model : Module
        Not changed.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> before = fingerprint(net)
    >>> net[0].stride = (2, 2)
    >>> fingerprint(net) == before
    False
    """
    numbers: dict[int, int] = {}  # of parameters, in the order of the model

    def number(tensor: Tensor | None) -> Any:
        return None if tensor is None else (numbers.setdefault(id(tensor), len(numbers)), *_frozen_tensor(tensor))

    classes: dict[type, Any] = {}
    parts: list[Any] = [
        _frozen(list(g.values()), DEPTH) for g in (hooks._global_forward_hooks, hooks._global_forward_pre_hooks)
    ]
    for name, module in _modules(model):
        tensors, cls = module._parameters, type(module)
        if cls not in classes:
            classes[cls] = _class(cls)
        if "parametrizations" in module._modules:
            originals = {n: p.original for n, p in module.parametrizations.items() if hasattr(p, "original")}  # type: ignore[union-attr,operator]
            tensors = {**tensors, **originals}
        parts.append((
            name,
            classes[cls],
            sorted((n, number(p)) for n, p in tensors.items() if p is not None),
            [(n, _frozen_tensor(b)) for n, b in module._buffers.items() if b is not None],
            [(n, _frozen(value, DEPTH)) for n, value in vars(module).items() if n not in SKIPPED],
        ))  # fmt: skip
    return tuple(parts)


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    stack = [("", model)]
    while stack:
        name, module = stack.pop()
        if id(module) in seen or isinstance(module, ParametrizationList):
            continue
        seen.add(id(module))
        yield name, module
        stack += [(f"{name}.{n}", m) for n, m in module._modules.items() if m is not None and n != "parametrizations"]


def _frozen_tensor(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta or not tensor.ndim:  # 0-d: a count of steps
        return tuple(tensor.shape), tensor.dtype
    return tuple(tensor.shape), tensor.dtype, tensor.cpu().numpy().tobytes()


def _frozen(value: Any, depth: int) -> Any:
    """Return a comparable snapshot of `value`, which later changes of `value` do not affect."""
    if isinstance(value, PRIMITIVE):
        return value
    if depth == 0:
        return type(value)
    match value:
        case Tensor():
            return _frozen_tensor(value)
        case tuple() | list() | deque():
            return [type(value), *(_frozen(item, depth - 1) for item in value)]
        case dict():
            return [type(value), *((_frozen(k, depth - 1), _frozen(v, depth - 1)) for k, v in value.items())]
        case set() | frozenset():
            return [type(value), sorted(repr(_frozen(item, depth - 1)) for item in value)]
        case np.ndarray():
            return value.shape, value.dtype.str, value.tobytes()
        case FunctionType():
            return _function(value, depth)
        case MethodType():
            return _frozen(value.__func__, depth), _frozen(value.__self__, 1)
        case partial():
            return [_frozen(part, depth - 1) for part in (value.func, value.args, value.keywords)]
        case nn.Module():
            return _class(type(value)), [
                (n, _frozen(v, min(depth - 1, 1))) for n, v in vars(value).items() if n[0] != "_"
            ]
    return _class(type(value)), [(n, _frozen(v, depth - 1)) for n, v in sorted(_attributes(value).items())]


def _attributes(value: Any) -> dict[str, Any]:
    declared = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    slots = [name for names in declared for name in ([names] if isinstance(names, str) else names)]
    return {n: getattr(value, n) for n in slots if hasattr(value, n)} | getattr(value, "__dict__", {})


def _function(function: FunctionType, depth: int) -> Any:
    cells = [_cell(cell, depth) for cell in function.__closure__ or ()]
    return function.__code__, cells, _frozen(function.__defaults__, depth - 1), _globals(function, depth)


def _cell(cell: Any, depth: int) -> Any:
    try:
        return _frozen(cell.cell_contents, depth - 1)
    except ValueError:  # not filled yet
        return None


def _globals(function: FunctionType, depth: int) -> list[Any]:
    """Return the global variables that a function reads: settings, not functions, classes or Python modules.

    Of classes and Python modules it returns the settings that the function reads there.
    """
    names = _names(function.__code__)
    variables = [function.__globals__[name] for name in names if name in function.__globals__]
    owners = [owner for owner in variables if isinstance(owner, (ModuleType, type)) and not _of_torch(owner)]
    variables += [
        vars(part)[name] for owner in owners for part in _parts(owner) for name in names if name in vars(part)
    ]
    return [_frozen(value, depth - 1) for value in variables if not isinstance(value, NO_SETTING)]


def _parts(owner: ModuleType | type) -> tuple[Any, ...]:
    return owner.__mro__ if isinstance(owner, type) else (owner,)


@cache
def _names(code: CodeType) -> tuple[str, ...]:
    return code.co_names


def _class(cls: type) -> Any:
    """Return the class with the functions that a call runs, since they can be replaced."""
    functions = cls.__call__, getattr(cls, "forward", None)
    if cls.__module__.startswith("torch."):  # their functions read no settings
        return cls, functions
    called = _called(cls, [f for f in functions if isinstance(f, FunctionType)])
    names = sorted({name for function in called for name in _names(function.__code__)})
    attributes = [getattr(cls, name, None) for name in names]
    settings = [_frozen(value, DEPTH_OF_SETTINGS) for value in attributes if isinstance(value, SIMPLE)]
    return cls, [_function(f, DEPTH_OF_SETTINGS) for f in called], settings


def _of_torch(owner: FunctionType | ModuleType | type) -> bool:
    module = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    return (module or "").partition(".")[0] == "torch"


def _called(cls: type, functions: list[FunctionType]) -> list[FunctionType]:
    """Return functions of a class with the methods and the global functions that they call by name, and so on."""
    found = dict.fromkeys(functions)
    waiting = list(found)
    while waiting:
        function = waiting.pop()
        for name in _names(function.__code__):
            for candidate in (getattr(cls, name, None), function.__globals__.get(name)):
                candidate = candidate.fget if isinstance(candidate, property) else candidate
                if isinstance(candidate, FunctionType) and candidate not in found and not _of_torch(candidate):
                    found[candidate] = None
                    waiting.append(candidate)
    return list(found)
