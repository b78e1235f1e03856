"""Checks of keyword arguments against the signature and the annotations of the callable that takes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import to_json

from codeq.common.errors import MAX_QUOTED, CodeqError, quote
from codeq.config.messages import requirement

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_NUMBERS = {bool: bool, int: float, float: float}  # types that the default of an argument without annotation implies


def _is_storable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_storable(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_storable(item) for item in value)
    return value is None or type(value) in (str, int, float, bool)


def _check_storable(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name, value in kwargs.items():
        if not _is_storable(value):
            raise CodeqError(
                f"{name}={quote(value)}: must be text, a number, true, false, null, or lists or mappings of them, "
                "whose keys are text (in quotes in YAML, if they look like a number)"
            )
    return kwargs


Kwargs = Annotated[dict[str, Any], AfterValidator(_check_storable)]


def check_types(function: Callable[..., Any], kwargs: Kwargs) -> None:
    """Check the types of keyword arguments: ``learnable_bit: no`` is text, which Python takes for true.

    Numbers must be finite. An annotation that pydantic cannot check is ignored; without one, the type of the default
    counts if it is a number or a boolean.

    Raises
    ------
    CodeqError
        With every argument of a wrong type.

    Examples
    --------
    >>> def ramp(delay: float, names: tuple[str, ...] = ()): ...
    >>> check_types(ramp, {"delay": "3", "names": ["a", 2]})
    Traceback (most recent call last):
    ...
    codeq.CodeqError: delay='3': must be a number; names.1=2: must be text (quotes make text of it in YAML)
    """
    adapters = _adapters(function)
    problems = []
    for name in kwargs.keys() & adapters.keys():
        try:
            # As JSON, because a list in a file stands for a tuple, which strict validation of Python values refuses.
            adapters[name].validate_json(to_json(kwargs[name], inf_nan_mode="constants"))
        except ValidationError as error:
            # Of the alternatives of a union, the one that fits best fails deepest inside the value.
            place, details = max(
                ((_place(kwargs[name], details["loc"]), details) for details in error.errors(include_url=False)),
                key=lambda found: len(found[0]),
            )
            if details["type"] != "needs_python_object":
                problems.append(f"{'.'.join([name, *place])}={quote(details['input'])}: {requirement(details)}")
    if problems:
        raise CodeqError("; ".join(sorted(problems)))


def _place(value: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the keys and indices in the location of an error, without pydantic's names of the types of a union."""
    place = []
    for step in location:
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            place.append(str(step))
            value = value[step] if isinstance(value, dict) or step < len(value) else None  # type: ignore[operator,index]
    return place


@functools.lru_cache(maxsize=64)
def _adapters(function: Callable[..., Any]) -> Mapping[str, TypeAdapter[Any]]:
    target: Any = function.func if isinstance(function, functools.partial) else function
    try:
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except Exception:  # an annotation that names what exists for type checkers only
        hints = {}
    adapters = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, _NUMBERS.get(type(parameter.default), Any))
        try:
            adapters[name] = TypeAdapter(hint, config=_STRICT)
        except PydanticUserError:  # not a type for pydantic
            continue
    return adapters


def check_call(what: str, function: Callable[..., Any], kwargs: Kwargs) -> Any:
    """Return ``function(**kwargs)``; any failure is a `CodeqError` about `what` (``"quantizer 'deadzone'"``)."""
    try:
        return function(**kwargs)
    except CodeqError:
        raise
    except Exception as error:  # a registered class is the user's and can raise anything
        raise CodeqError(f"{what} cannot be made: {type(error).__name__}: {str(error)[:MAX_QUOTED]}") from error
