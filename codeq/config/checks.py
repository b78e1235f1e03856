"""Checks beyond types: names in registries, their arguments, and fields that depend on each other.

Each check belongs to one field of the schema, has access to the valid ones of the fields before it and
raises `CodeqError`; pydantic collects the errors of all fields.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, get_args

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from codeq.common.errors import CodeqError, quote
from codeq.common.registry import Registry, check_kwargs
from codeq.config.arguments import Kwargs, check_call, check_types
from codeq.config.derived import default_exclude_layers
from codeq.config.device import parse_device
from codeq.config.serialize import OWN, serialize
from codeq.config.term_names import term_names
from codeq.data import known_num_classes
from codeq.metrics.budget import Figure
from codeq.models import MODELS
from codeq.quantizer import QUANTIZERS
from codeq.schedules import SCHEDULES
from codeq.sparsity import LOSSES, check_loss, supports_proximal


def registered(registry: Registry[Any], *, or_own: bool = False) -> AfterValidator:
    """Return a check that a name is in `registry` or, if allowed, belongs to a user's callable."""

    def check(name: str) -> str:
        if not (or_own and name.startswith(OWN)):
            registry[name]
        return name

    return AfterValidator(check)


def _is_own(name: str, kwargs: Kwargs) -> bool:
    if name.startswith(OWN) and kwargs:
        raise CodeqError(f"{quote(name)} is a callable of your own: bind its arguments yourself (functools.partial)")
    return name.startswith(OWN)


def quantizer_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check the arguments of a quantizer, at last by building one."""
    if name := info.data.get("name"):
        _build(f"quantizer {name!r}", QUANTIZERS[name], kwargs)
    return kwargs


def schedule_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check the arguments of a schedule, at last by building one."""
    name = info.data.get("name")
    if name and not _is_own(name, kwargs):
        _build(f"schedule {name!r}", SCHEDULES[name], kwargs)
    return kwargs


def _build(what: str, function: Callable[..., Any], kwargs: Kwargs) -> None:
    check_kwargs(what, function, kwargs)
    check_types(function, kwargs)
    check_call(what, function, kwargs)


def loss_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check the arguments of a loss, which cannot be built without the model."""
    name = info.data.get("name")
    if name and not _is_own(name, kwargs):
        check_loss(name, kwargs)
        check_types(LOSSES[name], kwargs)
    return kwargs


def loss_terms(terms: list[Any]) -> list[Any]:
    """Check that each term has log keys of its own."""
    term_names([term.name for term in terms])
    return terms


def model_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check the arguments of a model without building it, which can take seconds."""
    for key in ("num_classes", "pretrained", "img_size"):
        if key in kwargs:
            raise CodeqError(f"{key} is a key of the configuration itself, not one of model_kwargs")
    if name := info.data.get("model"):
        check_kwargs(f"model {name!r}", MODELS[name], {**kwargs, "num_classes": 1})
        check_types(MODELS[name], kwargs)
    return kwargs


def pretrained(value: bool, info: ValidationInfo) -> bool:
    """Refuse published weights for a model that has none."""
    name = info.data.get("model")
    if value and name and "pretrained" not in inspect.signature(MODELS[name]).parameters:
        raise CodeqError(f"model {name!r} has no published weights")
    return value


def init_from(source: str | None, info: ValidationInfo) -> str | None:
    """Refuse two origins of the initial weights. The source itself is not needed once a training has begun."""
    if source is not None and info.data.get("pretrained"):
        raise CodeqError("pretrained: true gives initial weights, too: give only one of them")
    return source


def freeze_last(value: Any, info: ValidationInfo) -> Any:
    """Refuse more frozen epochs than the training has."""
    epochs = info.data.get("epochs")
    for key in ("dz", "bit"):
        if epochs and getattr(value, key) > epochs:
            raise CodeqError(f"{key}={getattr(value, key)}: must be at most epochs={epochs}")
    return value


def target(config: Any, info: ValidationInfo) -> Any:
    """Require one figure, and refuse a target where nothing can be steered, or a schedule steers already."""
    if config is None:
        return None
    figures = get_args(Figure)
    given = [name for name in figures if getattr(config, name) is not None]
    if len(given) != 1:
        raise CodeqError(f"needs exactly one of {', '.join(figures)}; given: {', '.join(given) or 'none'}")
    if info.data.get("quantizer", 0) is None:
        raise CodeqError("needs a quantizer whose dead-zone or bit-width is trained: quantizer is null")
    if info.data.get("theta_schedule") is not None:
        raise CodeqError("theta_schedule sets the factor of λ that a target steers: give only one of them")
    return config


def lr_scheduler_kwargs(kwargs: Any, info: ValidationInfo) -> Any:
    """Refuse a cycle without a rise, or without a fall."""
    epochs = info.data.get("epochs")
    if info.data.get("lr_scheduler") == "one_cycle" and epochs and not 1 <= kwargs.warmup < epochs:
        if epochs == 1:
            raise CodeqError("one_cycle needs at least two epochs, one to rise and one to fall; epochs=1")
        raise CodeqError(
            f"warmup={kwargs.warmup}: one_cycle needs a number of epochs from 1 to epochs - 1 = {epochs - 1}, in which "
            "the learning rate rises (usually 30 % of all epochs)"
        )
    return kwargs


def num_classes(value: int | None, info: ValidationInfo) -> int | None:
    """Return the number of classes of the data set if it is known before loading; refuse another number."""
    dataset = info.data.get("dataset")
    known = known_num_classes(dataset) if dataset else None
    if known is not None and value not in (None, known):
        raise CodeqError(f"data set {dataset!r} has {known} classes; num_classes can be left out")
    return value if known is None else known


def device(name: str | None) -> str | None:
    """Check that `name` is a device, on this machine or another."""
    if name is not None:
        parse_device(name)
    return name


def step(value: str, info: ValidationInfo) -> str:
    """Refuse a proximal step for a loss that has none."""
    name = info.data.get("name")
    if value == "proximal" and name and (name.startswith(OWN) or not supports_proximal(name)):
        able = ", ".join(sorted(name for name in LOSSES if supports_proximal(name)))
        raise CodeqError(f"loss {quote(name)} has no proximal step. Losses with one: {able}")
    return value


def with_default_exclusions(quantizer: Any, info: ValidationInfo) -> Any:
    """Add the default patterns of layers that stay float, which depend on the model."""
    if isinstance(quantizer, dict) and "exclude_layers" not in quantizer:
        return {**quantizer, "exclude_layers": default_exclude_layers(info.data.get("model"))}
    return quantizer


def from_callable(registry: Registry[Any]) -> BeforeValidator:
    """Replace a callable, alone or as ``function`` beside other keys, by its registered name and arguments."""

    def expand(value: Any) -> Any:
        if callable(value):
            value = {"function": value}
        if not isinstance(value, dict) or not callable(value.get("function")):
            return value
        given = dict(value)
        function = given.pop("function")
        found, name = _reference(function, registry), given.get("name")
        if name in (None, found["name"]):
            if kwargs := given.get("kwargs"):
                _check_bound(registry, kwargs, **found)
            return given | found
        if not isinstance(name, str):
            return value
        if name in registry:
            raise CodeqError(f"{registry.kind} {quote(name)} is another function: give only one of name and function")
        return given | {"name": name if name.startswith(OWN) else OWN + name, "function": function}

    return BeforeValidator(expand)


def _check_bound(registry: Registry[Any], given: Any, name: str, kwargs: Any = None, **_: Any) -> None:
    """Refuse arguments beside a function that was made with others, which would have no effect."""
    if kwargs not in (None, given):
        raise CodeqError(
            f"kwargs={quote(given)}: {registry.kind} {quote(name)} was made with {quote(kwargs)}: give only one of them"
        )


def _reference(function: Callable[..., Any], registry: Registry[Any]) -> dict[str, Any]:
    """Return the entry of a configuration for `function`: a registered name with arguments, or a user's callable."""
    name, kwargs = getattr(function, "name", None), getattr(function, "kwargs", None)
    if isinstance(name, str) and name in registry and isinstance(kwargs, dict):
        return {"name": name, "kwargs": serialize(kwargs)}
    for name, entry in registry.items():
        if entry is function:
            return {"name": name}
    # Without the address, the name of a callable is the same in every process.
    described = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(function))
    return {"name": OWN + getattr(function, "__name__", described), "function": function}
