"""Short texts for parts of configurations that vary as a whole, such as ``quantizer`` or ``loss_terms``."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from codeq.runs.settings import last_parts
from codeq.studies.dotted import leaves


def short_labels(values: Sequence[Any], text: Callable[[Any], str]) -> list[str]:
    """Return a text for each value of a column of `codeq.studies.collect`; different values have different ones.

    Mappings and lists, which are JSON in the table, are called by the names in them, and by those of their other
    settings that differ between values of the same names.

    Parameters
    ----------
    values : sequence
        The column.
    text : callable
        Text of one value, for all others and for settings.

    Examples
    --------
    >>> uniform, *deadzone = [
    ...     {"name": "uniform", "kwargs": {"bitwidth": 4}},
    ...     *({"name": "deadzone", "kwargs": {"max_bits": bits, "learnable_bit": True}} for bits in (4, 8)),
    ... ]
    >>> short_labels([None, json.dumps(uniform), *map(json.dumps, deadzone)], str)
    ['None', 'uniform', 'deadzone(max_bits=4)', 'deadzone(max_bits=8)']
    """
    plain = [text(value) for value in values]
    settings = [_settings(value) for value in values]
    names = ["+".join(str(one[key]) for key in one if key.rpartition(".")[2] == "name") for one in settings]
    keys: dict[str, set[str]] = defaultdict(set)
    for name, one in zip(names, settings, strict=True):
        keys[name] |= one.keys()
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, one in zip(names, settings, strict=True):
        for key in keys[name]:
            found[name, key].add(text(one.get(key)))
    short = []
    for full, name, one in zip(plain, names, settings, strict=True):
        differing = [key for key in one if len(found[name, key]) > 1]
        pairs = [f"{end}={text(one[key])}" for key, end in zip(differing, last_parts(differing), strict=True)]
        short.append(f"{name}({', '.join(pairs)})" if name and pairs else name or full)
    return short if len(set(short)) == len(set(plain)) else plain


def _settings(value: Any) -> dict[str, Any]:
    """Return the settings in a text of JSON by dotted key; none for any other value."""
    if not (isinstance(value, str) and value[:1] in ("{", "[")):
        return {}
    try:
        return leaves(json.loads(value), lists=True)
    except ValueError:
        return {}
