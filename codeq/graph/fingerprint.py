"""Fingerprint of everything that the trace of a model depends on, except the values of its weights."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, cached_property, partial, partialmethod
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

PRIMITIVE = (
    int, float, complex, str, bytes, bool, type(None), np.generic, torch.dtype, torch.device, type, BuiltinFunctionType,
)  # fmt: skip
NO_SETTING = (ModuleType, FunctionType, BuiltinFunctionType, type, nn.Module)
# Attribute with the function that a method, property or partial function calls.
CALLING = {
    property: "fget", cached_property: "func", partial: "func", partialmethod: "func", staticmethod: "__func__",
    classmethod: "__func__", MethodType: "__func__",
}  # fmt: skip
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
        tensors, cls = module._parameters, type_before_parametrizations(module)
        if cls not in classes:
            classes[cls] = _class(cls, DEPTH_OF_SETTINGS)
        if "parametrizations" in module._modules:
            originals = {n: p.original for n, p in module.parametrizations.items() if hasattr(p, "original")}  # type: ignore[union-attr,operator]
            tensors = {**tensors, **originals}
        parts.append((
            name,
            type(module),
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
    if depth <= 0:
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
        case slice() | bytearray() | array():
            return repr(value)
        case FunctionType():
            return _function(value, depth)
        case MethodType():
            return _frozen(value.__func__, depth), _frozen(value.__self__, 1)
        case partial():
            return [_frozen(part, depth - 1) for part in (value.func, value.args, value.keywords)]
        case nn.Module():
            return _class(type(value), depth - 1), [
                (n, _frozen(v, min(depth - 1, 1))) for n, v in vars(value).items() if n[0] != "_"
            ]
    cls, attributes = _class(type(value), depth - 1), _attributes(value)
    if not attributes and not hasattr(value, "__dict__"):
        return cls, _hashable(value)
    return cls, [(n, _frozen(v, depth - 1)) for n, v in sorted(attributes.items())]


def _hashable(value: Any) -> Any:
    """Return an object without attributes, such as a range or a method of a type in C, if its value is constant."""
    try:
        hash(value)
    except Exception:  # it may change, and then a snapshot would be needed
        return None
    return None if isinstance(value, ReferenceType) else value  # references compare what they refer to: tensors


def _attributes(value: Any) -> dict[str, Any]:
    declared = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    slots = [name for names in declared for name in ([names] if isinstance(names, str) else names)]
    return {n: getattr(value, n) for n in slots if hasattr(value, n)} | getattr(value, "__dict__", {})


def _function(function: FunctionType, depth: int) -> Any:
    enclosed = [_frozen(value, depth - 1) for value in _enclosed(function)]
    defaults = [_frozen(given, depth - 1) for given in (function.__defaults__, function.__kwdefaults__)]
    return function.__code__, enclosed, defaults, _globals(function, depth)


def _enclosed(function: FunctionType) -> list[Any]:
    """Return the variables of the functions around a function that it reads, without those not assigned yet."""
    values = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            values.append(cell.cell_contents)
    return values


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
    """Return the names that a function reads, with those of the functions and generators inside it."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


def _class(cls: type, depth: int) -> Any:
    """Return the class with the functions that a call runs, since they can be replaced, and the settings they read."""
    if cls.__module__.startswith("torch."):  # their functions read no settings
        return cls, cls.__call__, getattr(cls, "forward", None)
    depth = min(depth, DEPTH_OF_SETTINGS)
    called = _called(cls)
    followed = [function for function in called if not _of_torch(function)]
    names = sorted({name for function in followed for name in _names(function.__code__)})
    attributes = [vars(part)[name] for name in names for part in cls.__mro__ if name in vars(part)]
    settings = [_frozen(value, depth) for value in attributes if not isinstance(value, NO_SETTING)]
    replaced = [function for function in called if _of_torch(function)]
    return cls, replaced, [_function(function, depth) for function in followed], settings


def _of_torch(owner: FunctionType | ModuleType | type) -> bool:
    module = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    return (module or "").partition(".")[0] == "torch"


def _called(cls: type) -> list[FunctionType]:
    """Return the functions that a call of an instance runs.

    They are those of the class and its bases, which `super` calls, the methods and global functions that these call by
    name, the functions inside decorators, and so on; PyTorch's without what they call.
    """
    found: dict[FunctionType, None] = {}
    waiting = [vars(part).get(name) for name in ("__call__", "forward") for part in cls.__mro__]
    while waiting:
        function = _function_of(waiting.pop())
        if function is None or function in found:
            continue
        found[function] = None
        if not _of_torch(function):
            names = _names(function.__code__)
            waiting += [function.__globals__.get(name) for name in names]
            waiting += [vars(part)[name] for part in cls.__mro__ for name in names if name in vars(part)]
            waiting += _enclosed(function)
    return list(found)


def _function_of(value: Any) -> FunctionType | None:
    """Return the function that a method, property or partial function calls; `None` for anything else."""
    while (kind := next((kind for kind in CALLING if isinstance(value, kind)), None)) is not None:
        value = getattr(value, CALLING[kind])
    return value if isinstance(value, FunctionType) else None
