"""Arguments of calls in a graph as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from codeq.common.errors import CodeqError

_NAMED = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


def encode(argument: Any, numbers: Mapping[fx.Node, int]) -> Any:
    """Return an argument as lists, dictionaries, numbers and strings; a node is written as its number.

    Raises
    ------
    CodeqError
        For any other type.

    Examples
    --------
    >>> encode((slice(None, 2), torch.float32), {})
    {'tuple': [{'slice': [None, 2, None]}, {'dtype': 'float32'}]}
    """
    match argument:
        case None | bool() | int() | float() | str() if type(argument) in (type(None), bool, int, float, str):
            return argument
        case fx.Node():
            return {"node": numbers[argument]}
        case slice():
            return {"slice": [encode(part, numbers) for part in (argument.start, argument.stop, argument.step)]}
        case tuple():
            return {"tuple": [encode(item, numbers) for item in argument]}
        case list():
            return [encode(item, numbers) for item in argument]
        case dict() if all(isinstance(key, str) for key in argument):
            return {"dict": {key: encode(value, numbers) for key, value in argument.items()}}
        case torch.device():
            return {"device": str(argument)}
    if argument is ...:
        return {"ellipsis": True}
    for kind, cls in _NAMED.items():
        if isinstance(argument, cls):
            return {kind: str(argument).removeprefix("torch.")}
    raise CodeqError(f"a call of the compacted network has an argument {argument!r:.200}, which cannot be saved")


def decode(data: Any, nodes: Sequence[fx.Node]) -> Any:
    """Return the argument that `encode` wrote.

    Raises
    ------
    CodeqError
        For anything else.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return [decode(item, nodes) for item in data]
    ((kind, value),) = data.items()
    match kind:
        case "node" if 0 <= value < len(nodes):
            return nodes[value]
        case "slice":
            return slice(*(decode(part, nodes) for part in value))
        case "tuple":
            return tuple(decode(item, nodes) for item in value)
        case "dict" if all(key.isidentifier() for key in value):  # PyTorch writes names into the code of the forward
            return {key: decode(item, nodes) for key, item in value.items()}
        case "device":
            return torch.device(value)
        case "ellipsis":
            return ...
        case _ if kind in _NAMED and isinstance(found := getattr(torch, value, None), _NAMED[kind]):
            return found
    raise CodeqError(f"{data!r:.200} is not an argument of a compacted network")
