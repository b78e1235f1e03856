"""Conversion of calls of PyTorch functions and methods to nodes of a `torch.fx` graph."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from codeq.common.errors import CodeqError

# Operators with the tensor on the right: `2 - x`.
REFLECTED = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv, "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul, "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod,
}  # fmt: skip

# The size of their result depends on values: the elements that are not zero, or that a mask selects.
SELECTIONS = {
    "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount",
}  # fmt: skip

SELECTED_FROM = {"__getitem__", "masked_select", "repeat_interleave"}  # their first argument decides nothing


def size_by_values(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether the size of the result of a call depends on the values of its arguments.

    Examples
    --------
    >>> x = torch.ones(3)
    >>> size_by_values("__getitem__", (x, x > 0), {}), size_by_values("__getitem__", (x, x.long()), {})
    (True, False)
    """
    tensors = selecting(name, args, kwargs)
    if name == "__getitem__":
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors)
    if name == "repeat_interleave":
        return bool(tensors)
    return name in SELECTIONS or (name == "where" and len(args) + len(kwargs) == 1)


def selecting(name: str, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the arguments of a call whose values can decide the size of its result, such as a mask of elements."""
    others = args[1:] if name in SELECTED_FROM else args
    return [leaf for leaf in pytree.tree_leaves((others, kwargs)) if isinstance(leaf, Tensor)]


def target_of(func: Any, name: str, is_method: bool, arguments: Any) -> tuple[str, Any, Any]:
    """Return the kind, target and arguments of the node for a call that is not in-place."""
    args = arguments[0]
    if name == "__get__":  # an attribute: `x.T`, `x.data`
        attribute = func.__self__.__name__
        if attribute == "data":
            return "call_method", "detach", ((args[0],), {})
        return "call_function", getattr, ((args[0], attribute), {})
    if name == "__getitem__":
        return "call_function", operator.getitem, arguments
    if name in REFLECTED:
        return "call_function", REFLECTED[name], ((args[1], args[0]), {})
    return ("call_method", name, arguments) if is_method else ("call_function", func, arguments)


def in_precision(dtype: torch.dtype, args: Any, kwargs: Any) -> Any:
    """Return the arguments with `dtype` in place of floating-point types, and the CPU in place of devices.

    NumPy's numbers become Python's: a graph could neither call nor save them.
    """

    def replaced(leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype) and leaf.is_floating_point:
            return dtype
        if isinstance(leaf, torch.dtype) and leaf.is_complex:
            return torch.complex128 if dtype == torch.double else torch.complex64
        if isinstance(leaf, np.generic):
            return leaf.item()
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    if isinstance(kwargs.get("device"), (str, int)):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    return fx.node.map_aggregate(args, replaced), dict(fx.node.map_aggregate(kwargs, replaced))


def with_tensor_indices(args: Any) -> Any:
    """Return the arguments of an indexing with tensors in place of NumPy's arrays.

    Examples
    --------
    >>> with_tensor_indices((torch.ones(3), np.array([2, 0])))[1]
    tensor([2, 0])
    """

    def tensor(leaf: Any) -> Any:
        if not (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biu"):
            return leaf
        return torch.from_numpy(leaf.astype(bool if leaf.dtype.kind == "b" else np.int64))

    return args[0], fx.node.map_aggregate(args[1], tensor), *args[2:]


def name_of(func: Any) -> str:
    """Return the name of a function, method or operator."""
    return str(getattr(func, "__name__", func))


def is_method(func: Any) -> bool:
    """Return whether a function is a method of tensors."""
    return getattr(func, "__qualname__", "").startswith(("Tensor.", "TensorBase.", "_TensorBase.")) or (
        getattr(Tensor, name_of(func), None) is func
    )


def out_of_place(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a function with ``inplace`` switched off, whether positional or by keyword.

    Examples
    --------
    >>> out_of_place(torch.nn.functional.relu, (1, True), {})
    ((1,), {'inplace': False})
    """
    try:
        names = list(inspect.signature(function).parameters)
        place = names.index("inplace")
    except ValueError as error:  # built-in functions have no signature
        raise CodeqError(f"{name_of(function)} overwrites its argument, which codeq does not follow") from error
    kwargs = dict(zip(names[place + 1 :], args[place + 1 :], strict=False)) | kwargs | {"inplace": False}
    return args[:place], kwargs
