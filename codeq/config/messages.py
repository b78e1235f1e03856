"""Validation of a configuration with one message for all errors: a line each, with key, value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from codeq.common.errors import MAX_QUOTED, CodeqError, nearest, quote
from codeq.config.serialize import keys

T = TypeVar("T")

MAX_LINES = 100  # errors in one message

# Keys of mappings that people leave out, and the type of their values, for examples in messages.
MAIN_KEYS = {"name": str, "type": str, "teacher": str, "bits": int, "relative_bops": float}

# The text for each type of error of pydantic; names in braces are pydantic's details of the error.
REQUIREMENTS = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be finite",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "dataclass_type": "must be a mapping",
    "callable_type": "must be a function",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le}",
}


def validate(
    schema: type[T], content: Mapping[str, Any], source: str, aliases: Mapping[str, str], found: Sequence[str] = ()
) -> T:
    """Convert `content` to a `schema`, or raise a `CodeqError` with one line for each error.

    Parameters
    ----------
    schema : type
        A dataclass whose annotations define the legal values.
    content, source : mapping, str
        A user's input and its origin, for the message: a file, a class.
    aliases : mapping of str to str
        Names beside those of the schema, and the names to suggest for them: the same ones where aliases are legal.
    found : sequence of str
        Lines about errors found before.

    Examples
    --------
    >>> from codeq.config.optimizer import ParamGroup
    >>> validate(ParamGroup, {"lr": 1}, "base", {}).lr
    1.0
    >>> validate(ParamGroup, {"lr": -1, "wight_decay": "0"}, "base", {})
    Traceback (most recent call last):
    ...
    codeq.CodeqError: base has 2 problems:
      lr=-1: must be above 0
      wight_decay='0': unknown key. Did you mean 'weight_decay'? Allowed: lr, weight_decay, momentum, ...
    """
    problems, count = list(found), len(found)
    try:
        valid = _adapter(schema).validate_python(content)  # type: ignore[arg-type]  # mypy: a class is not hashable
    except ValidationError as error:
        count += error.error_count()
        problems += [_line(schema, details, aliases) for details in error.errors(include_url=False)[:MAX_LINES]]
    if not problems:
        return valid
    if count == 1:
        raise CodeqError(f"{source}: {problems[0]}")
    if count > len(problems):
        problems.append(f"… and {count - len(problems)} more")
    raise CodeqError("\n  ".join([f"{source} has {count} problems:", *problems]))


@cache  # building an adapter takes longer than the rest of a validation
def _adapter(schema: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(schema)


def requirement(error: ErrorDetails) -> str:
    """Return the text for an error of pydantic: what the value must be, and the nearest legal name."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "literal_error":
        legal = re.findall(r"'(\w+)'", context["expected"])
        guess = nearest(value, legal) if isinstance(value, str) else None
        return f"must be one of {', '.join(legal)}" + (f". Did you mean {guess!r}?" if guess else "")
    text = REQUIREMENTS[kind].format(**context) if kind in REQUIREMENTS else error["msg"]
    if kind == "list_type" and isinstance(value, str):
        text += f", e.g. [{value[:MAX_QUOTED]}]"
    if kind == "string_type" and value is not None and not isinstance(value, list | dict):
        text += " (quotes make text of it in YAML)"
    return text


def _line(schema: type, error: ErrorDetails, aliases: Mapping[str, str]) -> str:
    kind, value = error["type"], error["input"]
    # pydantic marks a wrong key of a free mapping by an additional last step.
    path = ".".join(str(step) for step in error["loc"] if step != "[key]")
    path = path if len(path) <= MAX_QUOTED else path[: MAX_QUOTED - 1] + "…"
    if kind == "missing":
        return f"{path}: is missing"
    # Errors of a check in a mapping name the entry themselves.
    bare = kind == "invalid_key" or (kind == "value_error" and not isinstance(value, str | int | float | None))
    subject = path if bare else f"{path}={quote(value)}"
    if kind == "value_error":
        return f"{subject}: {error['ctx']['error']}"
    if kind in ("unexpected_keyword_argument", "invalid_key"):
        return f"{subject}: {_unknown_key(schema, error['loc'], aliases)}"
    return f"{subject}: {requirement(error)}{_example(schema, error)}"


def _example(schema: type, error: ErrorDetails) -> str:
    """Return an example for a value in the place of a mapping that has one of its kind: ``optimizer: {type: sgd}``."""
    location, value = error["loc"], error["input"]
    if error["type"] != "dataclass_type":
        return ""
    legal = keys(_part_at(schema, location))
    key = next((key for key, kind in MAIN_KEYS.items() if key in legal and type(value) is kind), None)
    if key is None:
        return ""
    example = f"{{{key}: {str(value)[:MAX_QUOTED]}}}"
    return f", e.g. `{location[-1]}: {example}`" if isinstance(location[-1], str) else f", e.g. `{example}`"


def _unknown_key(schema: type, location: Sequence[int | str], aliases: Mapping[str, str]) -> str:
    *parents, key = location
    legal = [*keys(_part_at(schema, parents))]
    instead = aliases if not parents else {}
    guess = nearest(str(key), [*legal, *instead])
    hint = f" Did you mean {instead.get(guess, guess)!r}?" if guess else ""
    legal += [name for name, meaning in instead.items() if name == meaning]
    return f"unknown key.{hint} Allowed: {', '.join(legal)}"


def _part_at(schema: type, location: Sequence[int | str]) -> type:
    """Return the dataclass that describes the value at `location` inside a `schema`."""
    named = False  # whether the step is a name in a mapping of parts, which stays with their dataclass as an index does
    for step in location:
        if isinstance(step, str) and not named:
            hints = [*_flatten(get_type_hints(schema)[keys(schema)[step]])]
            schema = next(part for part in hints if isinstance(part, type) and is_dataclass(part))
            named = any(get_origin(part) is dict for part in hints)
        else:
            named = False
    return schema


def _flatten(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in get_args(hint):
        yield from _flatten(argument)
