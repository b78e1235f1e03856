"""A configuration's parts, which are dataclasses, and the mappings and lists that a file holds in their place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from pydantic import ConfigDict

from codeq.common.errors import CodeqError

OWN = "own:"  # begins the name of a loss or schedule that is a user's own callable, in no registry


class Part:
    """Base of the dataclasses that make up a configuration: no other keys, and defaults are checked like the rest."""

    __pydantic_config__ = ConfigDict(extra="forbid", validate_default=True)


def keys(part: Any) -> dict[str, str]:
    """Return the keys that a part of a configuration (class or instance) has in a file, and the field behind each.

    Examples
    --------
    >>> from codeq.config.schema import LossTerm
    >>> keys(LossTerm)["lambda"]
    'lambda_'
    """
    # A callable is no part of any file. `lambda` is a word of Python's own, so its field ends in an underscore.
    return {f.name.removesuffix("_"): f.name for f in fields(part) if f.name != "function"}


def serialize(value: Any, *, functions: bool = True) -> Any:
    """Return `value` with parts as mappings, sequences as lists, and paths and NumPy scalars as Python's own kinds.

    The result shares no container with `value`.

    Parameters
    ----------
    value : object
        A configuration, or anything in one.
    functions : bool
        Whether to keep users' own callables, which no file can hold.

    Examples
    --------
    >>> from codeq.config.schema import ParamGroup
    >>> serialize({"base": ParamGroup(lr=0.1), "exclude": ("conv1", "bn")})
    {'base': {'lr': 0.1, 'weight_decay': 0.0}, 'exclude': ['conv1', 'bn']}
    """
    if isinstance(value, Part):
        content = {key: getattr(value, name) for key, name in keys(value).items()}
        if content.get("momentum", 0) is None:
            del content["momentum"]
        # What is registered is found by its name.
        function = getattr(value, "function", None)
        if functions and function is not None:
            content["function"] = function
        value = content
    if isinstance(value, Mapping):
        return {key: serialize(item, functions=functions) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [serialize(item, functions=functions) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def put(content: Any, path: str, value: Any, *, replace: bool) -> None:
    """Set `value` at a dotted `path` inside nested mappings and lists, making mappings on the way.

    Parameters
    ----------
    content : dict
        Changed in place.
    path : str
        Keys, and indices of list entries.
    value : object
        What to put there.
    replace : bool
        Whether there may be something already; then a part that is `None` becomes a mapping.

    Raises
    ------
    CodeqError
        For an index out of range, a path through something that holds nothing, and a value that may not be replaced.

    Examples
    --------
    >>> content = {"terms": [{"lambda": 1.0}]}
    >>> put(content, "terms.0.schedule.name", "constant", replace=True)
    >>> content
    {'terms': [{'lambda': 1.0, 'schedule': {'name': 'constant'}}]}
    """
    steps: list[Any] = path.split(".")
    for depth, step in enumerate(steps):
        here = ".".join(steps[:depth])
        if isinstance(content, list):
            if not step.isdecimal() or int(step) >= len(content):
                raise CodeqError(f"{here} has {len(content)} entries, counted from 0: {step!r} is none of them")
            step, given = int(step), True
        elif isinstance(content, dict):
            given = step in content
        else:
            raise CodeqError(f"{here} is {content!r}, so nothing in it can be set")
        if depth < len(steps) - 1:
            if not given or (replace and content[step] is None):
                content[step] = {}
            content = content[step]
        elif given and not replace:
            raise CodeqError(f"{path} is given too: give only one of them")
        else:
            content[step] = value
