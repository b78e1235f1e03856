"""Second names of PyTorch's operations and arguments, recorded under the first ones: what is followed has one name."""

from __future__ import annotations

from types import BuiltinFunctionType
from typing import Any

import torch

FUNCTIONS: dict[Any, Any] = {
    torch.concat: torch.cat, torch.concatenate: torch.cat, torch.swapaxes: torch.transpose,
    torch.swapdims: torch.transpose, torch.moveaxis: torch.movedim, torch.multiply: torch.mul,
    torch.divide: torch.div, torch.true_divide: torch.div, torch.subtract: torch.sub, torch.absolute: torch.abs,
    torch.negative: torch.neg, torch.clip: torch.clamp, torch.special.expit: torch.sigmoid,
}  # fmt: skip
METHODS = {
    "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim", "multiply": "mul", "divide": "div",
    "true_divide": "div", "subtract": "sub", "absolute": "abs", "negative": "neg", "clip": "clamp", "detach_": "detach",
}  # fmt: skip
# Those of NumPy, which PyTorch takes as well, and those that belong to a second name.
ARGUMENTS = {"axis": "dim", "keepdims": "keepdim", "axis0": "dim0", "axis1": "dim1"}
FIRST_ARGUMENTS = ("input", "tensors")
INPUT_IS_LATER = {torch.where, torch.searchsorted, torch.polygamma, torch.special.polygamma}


def first_spelling(op: str, target: Any, arguments: Any) -> tuple[str, Any, Any]:
    """Return the kind, target and arguments of a call with first names, and its first argument by position.

    Examples
    --------
    >>> first_spelling("call_method", "swapdims", ((0, 1, 2), {}))
    ('call_method', 'transpose', ((0, 1, 2), {}))
    >>> first_spelling("call_function", torch.mean, ((), {"input": 0, "axis": 1}))[2]
    ((0,), {'dim': 1})
    """
    args, kwargs = arguments
    if op == "call_method" or isinstance(target, BuiltinFunctionType):
        kwargs = {ARGUMENTS.get(name, name): value for name, value in kwargs.items()}
    name = next((name for name in FIRST_ARGUMENTS if name in kwargs), None)
    if not args and name and target not in INPUT_IS_LATER:
        args, kwargs = (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}
    known = METHODS if op == "call_method" else FUNCTIONS
    return op, known.get(target, target), (args, kwargs)
