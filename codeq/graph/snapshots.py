"""Snapshots of values and of the code that they lead to, which are compared with later ones."""

from __future__ import annotations

import dis
import site
import sys
import sysconfig
from array import array
from collections import deque
from contextlib import suppress
from contextvars import ContextVar
from functools import cache, cached_property, partial, partialmethod
from logging import Logger
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor, nn

PRIMITIVE = (
    int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, BuiltinFunctionType,
)  # fmt: skip
# Attributes with what a method, property or partial function calls.
CALLING = {
    property: ("fget",), cached_property: ("func",), staticmethod: ("__func__",), classmethod: ("__func__",),
    partial: ("func", "args", "keywords"), partialmethod: ("func", "args", "keywords"),
}  # fmt: skip
DEPTH_OF_SETTINGS = 4  # levels of what functions read by name that are compared
DEPTH = 6  # levels of nested objects, lists and mappings that are compared
# Packages whose functions are not followed, besides installed ones: they read no settings. `os.getenv` does.
LIBRARIES = (sys.stdlib_module_names | {"torch", "numpy", "codeq"}) - {"os"}
INSTALLED = tuple({*map(sysconfig.get_path, ("purelib", "platlib")), site.getusersitepackages()})
CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__"})
FORWARD = frozenset({"__call__", "forward"})
# Methods that run without being read by name.
IMPLICIT = FORWARD | {
    "__getattr__", "__getattribute__", "__get__", "__enter__", "__exit__", "__iter__", "__next__", "__len__",
    "__bool__", "__contains__", "__getitem__", "__setitem__", "__index__", "__int__", "__float__", "__eq__", "__lt__",
    "__gt__", "__neg__", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__",
    "__rtruediv__", "__floordiv__", "__mod__", "__pow__", "__matmul__", "__rmatmul__",
}  # fmt: skip


class Snapshots:
    """Snapshots of values, and of the functions, classes and Python modules that are found through them.

    A function leads to what it reads by name: global variables, variables of the functions around it, what it imports.
    A class or Python module leads to what it has under any name that a function found so far reads, which may be more
    than is read there. Names that are computed are not seen.
    """

    def __init__(self) -> None:
        # Functions are referred to by their numbers: what is kept must not keep the model alive, as closures do.
        self._numbers: dict[FunctionType, int] = {}
        self._waiting: list[FunctionType] = []
        self._owners: dict[type | ModuleType, frozenset[str]] = {}  # with the names that are read in any case

    def value(self, value: Any, depth: int = DEPTH) -> Any:
        """Return a comparable snapshot of `value`, which later changes of `value` do not affect.

        It is the type where something of `value` cannot be read: proxies and unfinished objects of other packages raise
        whatever they like.
        """
        try:
            return self._snapshot(value, depth)
        except Exception:
            return type(value)

    def _snapshot(self, value: Any, depth: int) -> Any:
        if isinstance(value, np.generic):  # which may not compare with something else
            return type(value), value.tobytes()
        if isinstance(value, PRIMITIVE):
            return value
        match value:
            case type():
                self.find_class(value, CONSTRUCTORS)
                return value
            case FunctionType():
                return self._number(value)
            case ModuleType():
                if not _of_library(value):
                    self._owners.setdefault(value, frozenset())
                return value.__name__
        if depth <= 0:
            return type(value)
        match value:
            case Tensor():
                return frozen_tensor(value)
            case tuple() | list() | deque():
                return [type(value), *(self.value(item, depth - 1) for item in value)]
            case dict():
                items = [*value.items()]
                return [type(value), *((self.value(k, depth - 1), self.value(v, depth - 1)) for k, v in items)]
            case set() | frozenset():
                return [type(value), sorted(repr(self.value(item, depth - 1)) for item in value)]
            case np.ndarray():
                # Methods of subclasses may compute something else, and write: `tobytes` of a masked array fills it.
                numbers = np.ndarray.tobytes(value.view(np.ndarray))
                return type(value), value.shape, value.dtype.str, numbers, self.value(_attributes(value), depth - 1)
            case slice() | bytearray() | array():
                return repr(value)
            case MethodType():
                return self.value(value.__func__), self.value(value.__self__, 1)
            case Logger():  # which would lead to all others
                return value.name
            case ContextVar():
                return self.value(value.get(None), depth - 1)
            case nn.Module():
                read = [(n, v) for n, v in vars(value).items() if n[0] != "_" and n != "training"]
                return self.class_of(value), [(n, self.value(v, min(depth - 1, 1))) for n, v in read]
        for kind, names in CALLING.items():
            if isinstance(value, kind):
                return [self.value(getattr(value, name), depth - 1) for name in names]
        cls, attributes = self.class_of(value), _attributes(value)
        if attributes is None:
            return cls, _hashable(value)
        return cls, [(n, self.value(v, depth - 1)) for n, v in sorted(attributes.items())]

    def class_of(self, value: Any) -> type:
        """Return the class of an object, whose methods are compared from then on."""
        self.find_class(type(value))
        return type(value)

    def find_class(self, cls: type, always: frozenset[str] = IMPLICIT) -> None:
        """Compare the methods of a class from then on: those that are read by name and those named `always`."""
        if always <= self._owners.get(cls, frozenset()):
            return
        for part in cls.__mro__:
            if not _of_library(part):
                self._owners[part] = self._owners.get(part, IMPLICIT) | always
            elif issubclass(part, nn.Module):  # its functions can be replaced
                self._owners[part] = FORWARD

    def code(self) -> list[Any]:
        """Return snapshots of all functions found so far, and of what they lead to."""
        parts: list[Any] = []
        names: set[str] = set()
        read: set[tuple[type | ModuleType, str]] = set()
        while True:
            while self._waiting:
                function = self._waiting.pop()
                names.update(_names(function.__code__))
                parts.append(self._function(function))
            names -= CONSTRUCTORS  # that call those of their bases
            found = [
                (owner, name)
                for owner, always in self._owners.items()
                for name in sorted((always if _of_library(owner) else names | always) & vars(owner).keys())
            ]
            new = [place for place in found if place not in read]
            if not new:
                return parts
            read.update(new)
            parts += [(owner.__name__, name, self._setting(vars(owner)[name])) for owner, name in new]

    def _number(self, function: FunctionType) -> Any:
        if _of_library(function):
            return function
        if function not in self._numbers:
            self._numbers[function] = len(self._numbers)
            self._waiting.append(function)
        return self._numbers[function]

    def _function(self, function: FunctionType) -> list[Any]:
        names = _names(function.__code__)
        variables = [function.__globals__[name] for name in names if name in function.__globals__]
        variables += [*_enclosed(function), *_imported(function)]
        libraries = [found for found in variables if isinstance(found, ModuleType) and _of_library(found)]
        variables += [vars(owner)[name] for owner in libraries for name in names if name in vars(owner)]
        given = function.__defaults__, function.__kwdefaults__, vars(function)
        return [self._number(function), function.__code__, self.value(given), [self._setting(v) for v in variables]]

    def _setting(self, value: Any) -> Any:
        return type(value) if issubclass(type(value), nn.Module) else self.value(value, DEPTH_OF_SETTINGS)


def frozen_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """Return the shape and type of a tensor, and the values of one of integers."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta or not tensor.ndim:  # 0-d: a count of steps
        return tuple(tensor.shape), tensor.dtype
    if tensor.layout != torch.strided or tensor.is_quantized:  # which NumPy lacks
        return tuple(tensor.shape), tensor.dtype, tensor.layout
    return tuple(tensor.shape), tensor.dtype, tensor.cpu().numpy().tobytes()


def _hashable(value: Any) -> Any:
    """Return an object without attributes, such as a range or a method of a type in C, if its value is constant."""
    try:
        hash(value)
    except Exception:  # it may change, and then a snapshot would be needed
        return None
    return None if isinstance(value, ReferenceType) else value  # references compare what they refer to: tensors


def _attributes(value: Any) -> dict[str, Any] | None:
    """Return the attributes that an object stores, `None` if it cannot store any, as most objects of types in C.

    No code of its class runs, as its ``__getattr__`` would where a slot is not assigned.
    """
    classes = [vars(cls) for cls in type(value).__mro__]
    members = [item for cls in classes if "__slots__" in cls for item in cls.items()]
    found: dict[str, Any] = {}
    for name, member in members:
        if isinstance(member, MemberDescriptorType):
            with suppress(AttributeError):  # not assigned
                found[name] = member.__get__(value)
    stored = next((cls["__dict__"] for cls in classes if "__dict__" in cls), None)
    if isinstance(stored, (GetSetDescriptorType, MemberDescriptorType)):
        return found | stored.__get__(value)
    return found or None


def _of_library(owner: FunctionType | ModuleType | type) -> bool:
    module = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    return _is_library(str(module or "").partition(".")[0])


@cache
def _is_library(package: str) -> bool:
    """Return whether a package is one of `LIBRARIES` or an installed one, whose code is the same in every call.

    A project that is installed to be edited is none.
    """
    paths = [getattr(sys.modules.get(package), "__file__", None), *getattr(sys.modules.get(package), "__path__", ())]
    return package in LIBRARIES or any(str(path).startswith(INSTALLED) for path in paths if path)


@cache
def _names(code: CodeType) -> tuple[str, ...]:
    """Return the names that a function reads, with those of the functions and generators inside it."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


@cache
def _names_of_imports(code: CodeType) -> tuple[str, ...]:
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names_of_imports(part)]
    steps = dis.get_instructions(code)
    return (*(step.argval for step in steps if step.opname in ("IMPORT_NAME", "IMPORT_FROM")), *inner)


def _imported(function: FunctionType) -> list[ModuleType]:
    """Return the Python modules that a function imports itself, whatever package a relative import begins at."""
    names, place = _names_of_imports(function.__code__), str(function.__globals__.get("__name__") or "").split(".")
    packages = [".".join(place[:levels]) for levels in range(len(place) + 1)]
    paths = [f"{package}.{name}".strip(".") for name in names for package in packages]
    return [sys.modules[path] for path in paths if path in sys.modules]


def _enclosed(function: FunctionType) -> list[Any]:
    """Return the variables of the functions around a function that it reads, without those not assigned yet."""
    values = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            values.append(cell.cell_contents)
    return values
