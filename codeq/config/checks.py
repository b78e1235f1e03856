"""What types alone cannot say about a configuration: names in registries, their arguments, and fields that must agree.

Each check sits on one field of `codeq.config.schema`, sees the fields before it (those of them that are valid) and
raises `CodeqError`; pydantic gathers the errors of all fields.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BeforeValidator, ValidationInfo
from torch import nn

from codeq.common.errors import CodeqError
from codeq.common.registry import Registry, check_kwargs
from codeq.config.derived import default_exclude_layers
from codeq.config.device import parse_device
from codeq.config.serialize import OWN, serialize
from codeq.data import known_num_classes
from codeq.models import MODELS
from codeq.optimizers import OPTIMIZERS
from codeq.quantizer import QUANTIZERS
from codeq.schedules import SCHEDULES
from codeq.sparsity import LOSSES, check_loss, supports_proximal


def _storable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _storable(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_storable(item) for item in value)
    return value is None or type(value) in (str, int, float, bool)


def _check_storable(kwargs: dict[str, Any]) -> dict[str, Any]:
    for name, value in kwargs.items():
        if not _storable(value):
            raise CodeqError(
                f"{name}={value!r}: must be text, a number, true, false, null, or lists or mappings of them"
            )
    return kwargs


Kwargs = Annotated[dict[str, Any], AfterValidator(_check_storable)]


def registered(registry: Registry[Any], *, or_own: bool = False) -> AfterValidator:
    """Check that a name is in `registry`, or, if allowed, stands for a callable of the user's own."""

    def check(name: str) -> str:
        if not (or_own and name.startswith(OWN)):
            registry[name]
        return name

    return AfterValidator(check)


def _check_kinds(function: Callable[..., Any], kwargs: Kwargs) -> None:
    """Raise a `CodeqError` for an argument that is not of the kind of its default.

    ``learnable_bit: no`` is a string, and strings count as true: nothing would fail, only the results would be wrong.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        value, default = kwargs.get(name, parameter.default), parameter.default
        if isinstance(default, bool) and not isinstance(value, bool):
            raise CodeqError(f"{name}={value!r}: must be true or false")
        if type(default) in (int, float) and type(value) not in (int, float):
            raise CodeqError(f"{name}={value!r}: must be a number")


def _check_made(what: str, function: Callable[..., Any], kwargs: Kwargs) -> None:
    """Raise a `CodeqError` if `function` cannot be called with `kwargs`, or refuses their values."""
    check_kwargs(what, function, kwargs)
    _check_kinds(function, kwargs)
    try:
        function(**kwargs)
    except CodeqError:
        raise
    except Exception as error:  # a registered class is the user's: it may raise anything
        raise CodeqError(f"{what} cannot be made: {type(error).__name__}: {error}") from error


def _is_own(name: str, kwargs: Kwargs) -> bool:
    if name.startswith(OWN) and kwargs:
        raise CodeqError(f"{name!r} is a callable of your own: bind its arguments yourself (functools.partial)")
    return name.startswith(OWN)


def quantizer_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check the arguments of a quantizer by making one."""
    if name := info.data.get("name"):
        _check_made(f"quantizer {name!r}", QUANTIZERS[name], kwargs)
    return kwargs


def schedule_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check the arguments of a schedule by making one."""
    name = info.data.get("name")
    if name and not _is_own(name, kwargs):
        _check_made(f"schedule {name!r}", SCHEDULES[name], kwargs)
    return kwargs


def loss_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check the arguments of a loss, which only a model can make."""
    name = info.data.get("name")
    if name and not _is_own(name, kwargs):
        check_loss(name, kwargs)
        _check_kinds(LOSSES[name], kwargs)
    return kwargs


def model_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check the arguments of a model without making it, which can take seconds."""
    if "num_classes" in kwargs:
        raise CodeqError("num_classes is a key of the configuration itself, not one of model_kwargs")
    for own in ("pretrained", "img_size"):
        if own in kwargs:
            raise CodeqError(f"{own} is a key of the configuration itself, not one of model_kwargs")
    if name := info.data.get("model"):
        check_kwargs(f"model {name!r}", MODELS[name], {**kwargs, "num_classes": 1})
        _check_kinds(MODELS[name], kwargs)
    return kwargs


def pretrained(value: bool, info: ValidationInfo) -> bool:
    """Refuse published weights of a model that has none."""
    name = info.data.get("model")
    if value and name and "pretrained" not in inspect.signature(MODELS[name]).parameters:
        raise CodeqError(f"model {name!r} has no published weights")
    return value


def optimizer_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check the arguments of an optimizer by making one; what belongs to a group of parameters stands there."""
    for own in ("lr", "weight_decay", "momentum"):
        if own in kwargs:
            raise CodeqError(f"{own} is a key of param_groups, not one of kwargs")
    if name := info.data.get("type"):
        parameter = nn.Parameter(torch.zeros(1))
        _check_made(f"optimizer {name!r}", functools.partial(OPTIMIZERS[name], [parameter]), kwargs)
    return kwargs


def num_classes(value: int | None, info: ValidationInfo) -> int | None:
    """Take the number of classes from the data set, where it is known before loading; refuse another one."""
    dataset = info.data.get("dataset")
    known = known_num_classes(dataset) if dataset else None
    if known is not None and value not in (None, known):
        raise CodeqError(f"data set {dataset!r} has {known} classes; num_classes can be left out")
    return value if known is None else known


def device(name: str | None) -> str | None:
    """Check that `name` is a device, here or on another machine."""
    if name is not None:
        parse_device(name)
    return name


def step(value: str, info: ValidationInfo) -> str:
    """Refuse a proximal step of a loss that has none."""
    name = info.data.get("name")
    if value == "proximal" and name and (name.startswith(OWN) or not supports_proximal(name)):
        able = ", ".join(sorted(name for name in LOSSES if supports_proximal(name)))
        raise CodeqError(f"loss {name!r} has no proximal step. Those that have one: {able}")
    return value


def momentum_is_known(groups: Any, info: ValidationInfo) -> Any:
    """Refuse a momentum of an optimizer without one, which would have no effect."""
    optimizer = info.data.get("type", "sgd")
    for name in ("base", "dz", "bit"):
        momentum = getattr(groups, name).momentum
        if momentum is not None and "momentum" not in inspect.signature(OPTIMIZERS[optimizer]).parameters:
            raise CodeqError(f"{name}.momentum={momentum!r}: {optimizer} has no momentum, sgd has")
    return groups


def with_default_exclusions(quantizer: Any, info: ValidationInfo) -> Any:
    """Fill in the layers that a quantizer leaves out by default, which depend on the model."""
    if isinstance(quantizer, dict) and "exclude_layers" not in quantizer:
        return {**quantizer, "exclude_layers": default_exclude_layers(info.data.get("model"))}
    return quantizer


def from_callable(registry: Registry[Any]) -> BeforeValidator:
    """Let a callable, alone or as ``function`` beside other keys, stand for its registered name and arguments."""

    def expand(value: Any) -> Any:
        if callable(value):
            value = {"function": value}
        if not isinstance(value, dict) or not callable(value.get("function")):
            return value
        given = dict(value)
        function = given.pop("function")
        found, name = _reference(function, registry), given.get("name")
        if name in (None, found["name"]):
            return given | found
        if not isinstance(name, str):
            return value
        if name in registry:
            raise CodeqError(f"{registry.kind} {name!r} is another function: give only one of name and function")
        return given | {"name": name if name.startswith(OWN) else OWN + name, "function": function}

    return BeforeValidator(expand)


def _reference(function: Callable[..., Any], registry: Registry[Any]) -> dict[str, Any]:
    """Return what stands for `function` in a configuration: a registered name with its arguments, or an own one."""
    name, kwargs = getattr(function, "name", None), getattr(function, "kwargs", None)
    if isinstance(name, str) and name in registry and isinstance(kwargs, dict):
        return {"name": name, "kwargs": serialize(kwargs)}
    for name, entry in registry.items():
        if entry is function:
            return {"name": name}
    # Without its address, a callable has the same name in every process.
    described = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(function))
    return {"name": OWN + getattr(function, "__name__", described), "function": function}
