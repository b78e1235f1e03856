"""Comparison of the configuration of a run with the one that it is to be resumed with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from codeq.common.errors import CodeqError, listed, quote
from codeq.config import ExperimentConfig
from codeq.runs.settings import FREE_KEYS

MAX_SHOWN = 4  # differences in one message


def decisive(config: ExperimentConfig, teachers: bool = True) -> dict[str, Any]:
    """Return the settings that decide what a training computes, as built-in types; with or without its teachers."""
    settings = {key: value for key, value in config.to_dict().items() if key not in FREE_KEYS}
    if settings["distillation"] and not teachers:
        settings["distillation"] = {k: v for k, v in settings["distillation"].items() if k != "teacher"}
    return settings


def check_same_config(stored: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raise a `CodeqError` with the dotted keys that differ between two configurations; it begins with `what`.

    Examples
    --------
    >>> check_same_config({"optimizer": {"type": "sgd"}}, {"optimizer": {"type": "adam"}}, "the run was trained with")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: the run was trained with optimizer.type='sgd' instead of 'adam': a resumed run keeps its
    configuration
    """
    found = [f"{key}={quote(old)} instead of {quote(new)}" for key, old, new in differences(stored, wanted)]
    if found:
        raise CodeqError(f"{what} {listed(found, MAX_SHOWN, '; ')}: a resumed run keeps its configuration")


def differences(stored: Any, wanted: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key and both values where settings differ: the innermost ones, of lists of one length, too.

    Examples
    --------
    >>> list(differences({"terms": [{"lambda": 1}]}, {"terms": [{"lambda": 2}]}))
    [('terms.0.lambda', 1, 2)]
    """
    if isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        stored, wanted = dict(enumerate(stored)), dict(enumerate(wanted))
    if not (isinstance(stored, Mapping) and isinstance(wanted, Mapping) and stored and wanted):
        if stored != wanted and not (stored != stored and wanted != wanted):  # NaN is the same setting
            yield path, stored, wanted
        return
    for key in sorted(stored.keys() | wanted.keys()):
        yield from differences(stored.get(key), wanted.get(key), f"{path}.{key}" if path else str(key))
