"""Checks of the optimizers and their groups of parameters, see `codeq.config.checks`."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from pydantic import ValidationInfo

from codeq.common.errors import CodeqError
from codeq.common.registry import check_kwargs
from codeq.config.arguments import Kwargs, check_call, check_types
from codeq.config.serialize import serialize
from codeq.optimizers import OPTIMIZERS, try_optimizer

GROUP_SETTINGS = frozenset({"lr", "weight_decay", "momentum"})


def optimizer_kwargs(kwargs: Kwargs, info: ValidationInfo) -> Kwargs:
    """Check names and types of the arguments of an optimizer; `optimizer` checks their values with the groups."""
    for key in GROUP_SETTINGS:
        if key in kwargs:
            raise CodeqError(f"{key} is a key of param_groups, not one of kwargs")
    if name := info.data.get("type"):
        known = dict.fromkeys(inspect.signature(OPTIMIZERS[name]).parameters.keys() & GROUP_SETTINGS)
        check_kwargs(f"optimizer {name!r}", OPTIMIZERS[name], kwargs | known, given=1)
        check_types(OPTIMIZERS[name], kwargs)
    return kwargs


def param_groups(groups: Any, info: ValidationInfo) -> Any:
    """Refuse settings that the optimizer does not have, which would have no effect."""
    weights = info.data.get("type", "sgd")
    theta = info.data["theta"].type if info.data.get("theta") else weights
    given = {f"{group}.momentum": getattr(groups, group).momentum for group in ("base", "dz", "bit")}
    given |= {"base.weight_decay": groups.base.weight_decay or None, "base.nesterov": groups.base.nesterov}
    for path, value in given.items():
        group, _, key = path.partition(".")
        name = weights if group == "base" else theta
        if value is not None and key not in inspect.signature(OPTIMIZERS[name]).parameters:
            raise CodeqError(f"{path}={value!r}: {name} has no {key}, sgd has")
    return groups


def optimizer(config: Any, info: ValidationInfo) -> Any:
    """Check that the settings of the optimizers fit together, by building them as a training does."""
    groups = config.param_groups
    if info.data.get("quantizer") and info.data.get("theta_regularizer") == "decoupled":
        _check_decay_of_theta((config.theta or config).type, groups)
    if groups.base.nesterov is not None and "nesterov" in config.kwargs:
        raise CodeqError("nesterov is in kwargs and in param_groups.base: give only one of them")
    base, *theta = (serialize(group) for group in (groups.base, groups.dz, groups.bit))
    base.pop("decay_norms_and_biases")  # of the division into groups, not of the optimizer
    divided = [(config, [base]), (config.theta, theta)] if config.theta else [(config, [base, *theta])]
    for part, settings in divided:
        build = functools.partial(try_optimizer, part.type, part.kwargs)
        check_call(f"optimizer {part.type!r}", build, {"settings": settings})
    return config


def _check_decay_of_theta(name: str, groups: Any) -> None:
    """Refuse a decoupled regularizer that the optimizer of θ would ignore."""
    parameters = inspect.signature(OPTIMIZERS[name]).parameters
    if "weight_decay" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for group in ("dz", "bit"):
        if value := getattr(groups, group).weight_decay:
            raise CodeqError(
                f"param_groups.{group}.weight_decay={value!r}: {name} has no weight_decay, adamw has; with "
                "theta_regularizer: l2 it is part of the loss"
            )
