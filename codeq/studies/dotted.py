"""Dotted keys of nested settings, such as ``loss_terms.0.lambda``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def look_up(content: Any, key: str, default: Any = None) -> Any:
    """Return the value at a dotted `key`, or `default` where there is none.

    Examples
    --------
    >>> settings = {"loss_terms": [{"lambda": 2}], "quantizer": None}
    >>> look_up(settings, "loss_terms.0.lambda"), look_up(settings, "quantizer.name", "absent")
    (2, 'absent')
    """
    for step in key.split("."):
        if isinstance(content, list):
            content = {str(k): entry for k, entry in enumerate(content)}
        if not isinstance(content, Mapping) or step not in content:
            return default
        content = content[step]
    return content


def leaves(content: Mapping[str, Any] | Sequence[Any], lists: bool = False, above: str = "") -> dict[str, Any]:
    """Return the values inside nested mappings, and inside `lists` where asked, by dotted key below `above`.

    Examples
    --------
    >>> leaves({"name": "l1", "schedule": {"lambdas": [1, 2]}, "kwargs": {}})
    {'name': 'l1', 'schedule.lambdas': [1, 2], 'kwargs': {}}
    >>> leaves([{"name": "l1"}], lists=True)
    {'0.name': 'l1'}
    """
    found: dict[str, Any] = {}
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        nested = isinstance(value, dict) or (lists and isinstance(value, list))
        found |= leaves(value, lists, f"{above}{key}.") if nested and value else {f"{above}{key}": value}
    return found
