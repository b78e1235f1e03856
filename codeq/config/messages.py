"""All problems of a configuration in one message: a line each, with the key, its value and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from codeq.common.errors import CodeqError, nearest
from codeq.config.serialize import keys

T = TypeVar("T")

# What pydantic's kinds of errors mean for the reader; in braces, pydantic's own details of the error.
REQUIREMENTS = {
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be finite",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "dataclass_type": "must be a mapping",
    "callable_type": "must be a function",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
}


def validate(
    schema: type[T], content: Mapping[str, Any], source: str, aliases: Mapping[str, str], found: Sequence[str] = ()
) -> T:
    """Make a `schema` of `content`, or report all that is wrong with it.

    Parameters
    ----------
    schema : type
        A dataclass whose annotations say what is allowed.
    content : mapping
        What a user wrote.
    source : str
        Where, for the message: a file, a class.
    aliases : mapping of str to str
        Names beside those of the schema, and what to write instead; themselves where they may be written.
    found : sequence of str
        Lines about problems known already.

    Raises
    ------
    CodeqError
        With a line for each problem.

    Examples
    --------
    >>> from codeq.config.schema import ParamGroup
    >>> validate(ParamGroup, {"lr": 1}, "base", {}).lr
    1.0
    >>> validate(ParamGroup, {"lr": -1, "wight_decay": "0"}, "base", {})
    Traceback (most recent call last):
    ...
    codeq.CodeqError: base has 2 problems:
      lr=-1: must be above 0
      wight_decay='0': unknown key. Did you mean 'weight_decay'? Allowed: lr, weight_decay, momentum
    """
    problems = list(found)
    try:
        valid = _reader(schema).validate_python(content)  # type: ignore[arg-type]  # mypy takes no class for hashable
    except ValidationError as error:
        problems += [_line(schema, details, aliases) for details in error.errors()]
    if not problems:
        return valid
    if len(problems) == 1:
        raise CodeqError(f"{source}: {problems[0]}")
    raise CodeqError("\n  ".join([f"{source} has {len(problems)} problems:", *problems]))


@cache  # building one takes longer than all the rest
def _reader(schema: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(schema)


def _line(schema: type, error: ErrorDetails, aliases: Mapping[str, str]) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    # pydantic marks a wrong key of a free mapping by a last step of its own.
    path = ".".join(str(step) for step in error["loc"] if step != "[key]")
    if kind == "missing":
        return f"{path}: is missing"
    bare = kind == "invalid_key" or (kind == "value_error" and isinstance(value, dict))
    subject = path if bare else f"{path}={value!r}"
    if kind == "value_error":
        return f"{subject}: {context['error']}"
    if kind in ("unexpected_keyword_argument", "invalid_key"):
        return f"{subject}: {_unknown_key(schema, error['loc'], aliases)}"
    if kind == "literal_error":
        legal = re.findall(r"'(\w+)'", context["expected"])
        guess = nearest(value, legal) if isinstance(value, str) else None
        return f"{subject}: must be one of {', '.join(legal)}" + (f". Did you mean {guess!r}?" if guess else "")
    requirement = REQUIREMENTS[kind].format(**context) if kind in REQUIREMENTS else error["msg"]
    if kind == "list_type" and isinstance(value, str):
        requirement += f", e.g. [{value}]"
    return f"{subject}: {requirement}"


def _unknown_key(schema: type, location: Sequence[int | str], aliases: Mapping[str, str]) -> str:
    *parents, key = location
    legal = [*keys(_part_at(schema, parents))]
    instead = aliases if not parents else {}
    guess = nearest(str(key), [*legal, *instead])
    hint = f" Did you mean {instead.get(guess, guess)!r}?" if guess else ""
    legal += [name for name, meaning in instead.items() if name == meaning]
    return f"unknown key.{hint} Allowed: {', '.join(legal)}"


def _part_at(schema: type, location: Sequence[int | str]) -> type:
    """Return the dataclass that describes what lies at `location` inside a `schema`."""
    for step in location:
        if isinstance(step, str):  # an index stays with the dataclass of the list's items
            hint = get_type_hints(schema)[keys(schema)[step]]
            schema = next(part for part in _flatten(hint) if isinstance(part, type) and is_dataclass(part))
    return schema


def _flatten(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in get_args(hint):
        yield from _flatten(argument)
