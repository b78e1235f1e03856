"""Texts inside of nested settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Place = tuple[str | int, ...]  # keys and indices, from the outside


def map_texts(value: Any, change: Callable[[Place, str], str], place: Place = ()) -> Any:
    """Return nested mappings and lists with each text replaced by ``change(place, text)``; keys stay.

    Examples
    --------
    >>> map_texts({"teacher": ["a", "b"], "alpha": 0.5}, lambda place, text: f"{text} at {place}")
    {'teacher': ["a at ('teacher', 0)", "b at ('teacher', 1)"], 'alpha': 0.5}
    """
    if isinstance(value, str):
        return change(place, value)
    if isinstance(value, dict):
        return {key: map_texts(entry, change, (*place, key)) for key, entry in value.items()}
    if isinstance(value, list):
        return [map_texts(entry, change, (*place, k)) for k, entry in enumerate(value)]
    return value


def texts(value: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Yield the texts of nested mappings and lists with their places.

    Examples
    --------
    >>> list(texts({"teacher": ["a", "b"], "alpha": 0.5}))
    [(('teacher', 0), 'a'), (('teacher', 1), 'b')]
    """
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(entry, (*place, key))
