"""Conversion of a configuration's dataclasses to the mappings and lists of a file, and dotted assignment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from pydantic import ConfigDict

from codeq.common.errors import CodeqError, quote

OWN = "own:"  # prefix of the name of a loss or schedule that is a user's callable, in no registry
MAX_VALUES = 10_000  # far above any real configuration; nested YAML aliases expand to billions


class Part:
    """Base of the dataclasses of a configuration: unknown keys are errors, and defaults are checked, too."""

    __pydantic_config__ = ConfigDict(extra="forbid", validate_default=True)


def keys(part: Any) -> dict[str, str]:
    """Return the keys of a part of a configuration (class or instance) in a file, with the field of each.

    Examples
    --------
    >>> from codeq.config.parts import LossTerm
    >>> keys(LossTerm)["lambda"]
    'lambda_'
    """
    # No file can store a callable. `lambda` is a keyword of Python, so its field ends in an underscore.
    return {f.name.removesuffix("_"): f.name for f in fields(part) if f.name != "function"}


def serialize(value: Any, *, functions: bool = True) -> Any:
    """Return `value` with parts as mappings, sequences as lists, and paths and NumPy scalars as built-in types.

    The result shares no container with `value`.

    Parameters
    ----------
    value : object
        A configuration, or any value in one.
    functions : bool
        Whether to keep users' callables, which no file can store.

    Raises
    ------
    CodeqError
        For more than 10,000 values and for a container that contains itself.

    Examples
    --------
    >>> from codeq.config.optimizer import ThetaGroup
    >>> serialize({"dz": ThetaGroup(lr=0.1), "exclude": ("conv1", "bn")})
    {'dz': {'lr': 0.1, 'weight_decay': 0.01}, 'exclude': ['conv1', 'bn']}
    """
    try:
        return _copy(value, functions, iter(range(MAX_VALUES)))
    except RecursionError:
        raise CodeqError("lists or mappings contain themselves or are nested too deeply") from None


def _copy(value: Any, functions: bool, budget: Iterator[int]) -> Any:
    if next(budget, None) is None:
        raise CodeqError(f"more than {MAX_VALUES} values, with those that YAML aliases repeat")
    if isinstance(value, Part):
        content = {key: getattr(value, name) for key, name in keys(value).items()}
        # Settings that not every optimizer has, and one whose default depends on the model.
        for key in ("momentum", "nesterov", "exclude_layers"):
            if content.get(key, 0) is None:
                del content[key]
        function = getattr(value, "function", None)  # `None` for a registered function, which its name identifies
        if functions and function is not None:
            content["function"] = function
        value = content
    if isinstance(value, Mapping):
        return {key: _copy(item, functions, budget) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_copy(item, functions, budget) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def put(content: Any, path: str, value: Any, *, replace: bool) -> None:
    """Assign `value` at a dotted `path` in nested mappings and lists, in place, with new mappings for missing parents.

    With `replace`, the path may have a value already, and a parent that is `None` becomes a mapping. An index out of
    range, a parent that is no container and a value that may not be replaced raise a `CodeqError`.

    Examples
    --------
    >>> content = {"terms": [{"lambda": 1.0}]}
    >>> put(content, "terms.0.schedule.name", "constant", replace=True)
    >>> content
    {'terms': [{'lambda': 1.0, 'schedule': {'name': 'constant'}}]}
    """
    steps = path.split(".")
    for depth, step in enumerate(steps):
        parent, key = ".".join(steps[:depth]), step
        if isinstance(content, list):
            if step not in map(str, range(len(content))):
                raise CodeqError(f"{parent} has {len(content)} entries, counted from 0: {quote(step)} is none of them")
            key = int(step)  # type: ignore[assignment]
        elif not isinstance(content, dict):
            raise CodeqError(f"{parent} is {quote(content)}, so nothing in it can be set")
        elif depth < len(steps) - 1 and (step not in content or (replace and content[step] is None)):
            content[step] = {}
        elif depth == len(steps) - 1 and step in content and not replace:
            raise CodeqError(f"{path} is given too: give only one of them")
        if depth == len(steps) - 1:
            content[key] = value
        else:
            content = content[key]
