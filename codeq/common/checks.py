"""Checks of the arguments of functions; their messages name the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, TypeGuard, get_args

from codeq.common.errors import CodeqError, quote


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise a `CodeqError` if `value` is none of the values of the `Literal` `choices`."""
    allowed = get_args(choices)
    if value not in allowed:
        raise CodeqError(f"{name}={quote(value)}: must be {' or '.join(map(repr, allowed))}")


def check_collection(name: str, value: object) -> None:
    """Raise a `CodeqError` if `value` is no collection of values, or a text, whose letters would be taken for them.

    Examples
    --------
    >>> check_collection("layers", "fc1")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: layers='fc1': must be a list, e.g. ['fc1']
    """
    if isinstance(value, str) or not isinstance(value, Collection):
        raise CodeqError(f"{name}={quote(value)}: must be a list, e.g. [{quote(value)}]")


def check_flag(name: str, value: object) -> None:
    """Raise a `CodeqError` if `value` is neither true nor false: Python takes the text ``"no"`` for true."""
    if not isinstance(value, bool):
        raise CodeqError(f"{name}={quote(value)}: must be True or False")


def check_model(model: object) -> None:
    """Raise a `CodeqError` if `model` is no network: a run, a path and a state dict are taken for one easily.

    Examples
    --------
    >>> check_model("outputs/my_run")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: model='outputs/my_run': must be a torch.nn.Module; run.load_model() returns that of a run
    """
    if not hasattr(model, "named_modules"):
        raise CodeqError(f"model={quote(model)}: must be a torch.nn.Module; run.load_model() returns that of a run")


def is_integer(value: object) -> bool:
    """Return whether `value` is an integer of Python or NumPy; true and false are none.

    Examples
    --------
    >>> is_integer(8), is_integer(8.0), is_integer(True)
    (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether `value` is a real number of Python or NumPy; true and false are none.

    Examples
    --------
    >>> is_number(0.5), is_number(True), is_number("0.5")
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def at_least(name: str, value: Any, smallest: int, unit: str = "") -> int:
    """Return `value`, or raise a `CodeqError` if it is not an integer of at least `smallest`.

    An integer of NumPy becomes one of Python, because products of short ones overflow.

    Examples
    --------
    >>> at_least("img_size", 224, 1)
    224
    >>> at_least("img_size", 0, 1, " (pixels)")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: img_size=0: must be an integer of at least 1 (pixels)
    """
    if not is_integer(value) or value < smallest:
        raise CodeqError(f"{name}={quote(value)}: must be an integer of at least {smallest}{unit}")
    return int(value)


def check_at_least_zero(unit: str = "", **values: object) -> None:
    """Raise a `CodeqError` for values that are no numbers of at least 0.

    Examples
    --------
    >>> check_at_least_zero(" (epochs)", delay=3, ramp=-1)
    Traceback (most recent call last):
    ...
    codeq.CodeqError: ramp=-1: must be at least 0 (epochs)
    """
    for name, value in values.items():
        if not is_number(value):
            raise CodeqError(f"{name}={quote(value)}: must be a number of at least 0{unit}")
        if not float(value) >= 0:  # also true of NaN
            raise CodeqError(f"{name}={quote(value)}: must be at least 0{unit}")
