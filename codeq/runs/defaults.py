"""Arguments in force of the parts that a configuration names, also those that it leaves to their defaults."""

from __future__ import annotations

import inspect
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

# Keys of a configuration with named parts, or lists of them, at any depth.
HOLDERS = ("quantizer", "optimizer", "theta_schedule", "loss_terms", "model_kwargs")
# Arguments for which codeq sets another value than that of the signature where a configuration does not give them.
SET_BY_CODEQ = frozenset({"fused", "nesterov", "input_size"})

Found = tuple[str, str, Any, dict[str, Any]]  # place, kind of part, its name, its arguments


def with_defaults(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return settings of runs in which each argument of a part that one run gives has its value in all of them.

    A configuration stores the arguments that were given (``quantizer.kwargs``). Runs that give the default of an
    argument and runs that leave it out train alike, and are compared by that default. It is the one in the signature of
    the registered part; parts that are not registered in this process keep what their runs give.

    Examples
    --------
    >>> runs = [{"quantizer": {"name": "deadzone", "kwargs": kwargs}} for kwargs in ({}, {"max_bits": 4})]
    >>> [run["quantizer"]["kwargs"] for run in with_defaults(runs)]
    [{'max_bits': 8}, {'max_bits': 4}]
    """
    made = [{**run, **{key: deepcopy(run[key]) for key in HOLDERS if key in run}} for run in runs]
    found = [part for settings in made for part in _parts(settings)]
    given: dict[str, dict[str, None]] = defaultdict(dict)
    for place, _, _, arguments in found:
        given[place] |= dict.fromkeys(arguments)
    for place, kind, name, arguments in found:
        if missing := [argument for argument in given[place] if argument not in arguments]:
            defaults = _defaults(kind, name)
            arguments |= {argument: defaults[argument] for argument in missing if argument in defaults}
    return made


def _parts(settings: Mapping[str, Any]) -> Iterator[Found]:
    for key in HOLDERS:
        yield from _inside(settings.get(key), key, key)
    if isinstance(settings.get("model_kwargs"), dict):
        yield "model_kwargs", "model", settings.get("model"), settings["model_kwargs"]


def _inside(content: Any, place: str, kind: str) -> Iterator[Found]:
    if isinstance(content, list):
        for k, entry in enumerate(content):
            yield from _inside(entry, f"{place}.{k}", kind)
    elif isinstance(content, dict):
        if isinstance(content.get("kwargs"), dict):
            yield place, kind, content.get("type" if "type" in content else "name"), content["kwargs"]
        for key, value in content.items():
            yield from _inside(value, f"{place}.{key}", str(key))


def _defaults(kind: str, name: Any) -> dict[str, Any]:
    """Return the arguments with a default that a configuration can hold; none of what is not registered."""
    from codeq.models import MODELS  # with torch, which takes seconds
    from codeq.optimizers import OPTIMIZERS
    from codeq.quantizer import QUANTIZERS
    from codeq.schedules import SCHEDULES
    from codeq.sparsity import LOSSES

    registries: dict[str, Mapping[str, Any]] = {
        "model": MODELS, "quantizer": QUANTIZERS, "optimizer": OPTIMIZERS, "theta": OPTIMIZERS, "loss_terms": LOSSES,
        "schedule": SCHEDULES, "theta_schedule": SCHEDULES,
    }  # fmt: skip
    part = registries.get(kind, {}).get(name) if isinstance(name, str) else None
    if part is None:
        return {}
    defaults = {}
    for parameter in inspect.signature(part).parameters.values():  # the registry has seen that there is one
        if parameter.default is not parameter.empty and parameter.name not in SET_BY_CODEQ:
            with suppress(TypeError, ValueError):  # an object that no file holds
                defaults[parameter.name] = json.loads(json.dumps(parameter.default))  # tuples as a file holds them
    return defaults
