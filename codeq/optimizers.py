"""Optimizers by name, built for groups of parameters, and the schedules of the learning rate."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from codeq.common.checks import check_choice
from codeq.common.errors import CodeqError, quote
from codeq.common.registry import Registry

OPTIMIZERS: Registry[type[torch.optim.Optimizer]] = Registry("optimizer")
OPTIMIZERS["adamw"] = torch.optim.AdamW
OPTIMIZERS["adam"] = torch.optim.Adam
OPTIMIZERS["sgd"] = torch.optim.SGD

# Ratios of ``one_cycle``: largest to first learning rate, first to last; those of torch's OneCycleLR.
ONE_CYCLE_RISE = 25.0
ONE_CYCLE_FALL = 1e4

Scheduler = Literal["cosine", "step", "constant", "one_cycle"]
Group = tuple[list[nn.Parameter], Mapping[str, float]]


def build_optimizer(name: str, kwargs: Mapping[str, Any], groups: list[Group]) -> torch.optim.Optimizer:
    """Build the optimizer `name`, fused unless `kwargs` or a complex parameter exclude it.

    A fused optimizer updates all parameters in one kernel and can skip a batch whose loss is not finite.

    Parameters
    ----------
    name : str
        In `OPTIMIZERS`.
    kwargs : mapping
        Arguments of its constructor.
    groups : list of (list of Parameter, mapping)
        Parameters and their settings (``lr``, ``weight_decay``, …), the weights first. Groups without parameters are
        left out; a setting that only the first group has, keeps the optimizer's default in the others.

    Raises
    ------
    CodeqError
        If a step of the optimizer fails, on parameters like those of the groups.

    Examples
    --------
    >>> weight, logit = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
    >>> optimizer = build_optimizer("adam", {"betas": [0.8, 0.9]}, [([weight], {"lr": 0.1}), ([logit], {"lr": 0.2})])
    >>> [group["lr"] for group in optimizer.param_groups], is_fused(optimizer)
    ([0.1, 0.2], True)
    """
    trial = _build(OPTIMIZERS[name], kwargs, [(_samples(parameters), settings) for parameters, settings in groups])
    try:
        trial.step()
    except Exception as error:  # the optimizer can be a user's, and torch refuses some arguments only here
        raise CodeqError(f"optimizer {name!r} with kwargs {quote(dict(kwargs))} cannot train: {error}") from error
    return _build(OPTIMIZERS[name], kwargs, groups)


def try_optimizer(name: str, kwargs: Mapping[str, Any], settings: list[Mapping[str, float]]) -> None:
    """Build the optimizer `name` with groups of these `settings`, to find errors before there is a model.

    Examples
    --------
    >>> try_optimizer("sgd", {"nesterov": True}, [{"lr": 0.1, "momentum": 0.9}])
    >>> try_optimizer("sgd", {"nesterov": True}, [{"lr": 0.1}])
    Traceback (most recent call last):
    ...
    ValueError: Nesterov momentum requires a momentum and zero dampening
    """
    cls = OPTIMIZERS[name]
    if cls.add_param_group is torch.optim.Optimizer.add_param_group:
        # The decorator of this method imports torch._dynamo, which takes seconds.
        undecorated = {"add_param_group": inspect.unwrap(cls.add_param_group)}
        cls = type(cls.__name__, (cls,), undecorated)
    _build(cls, kwargs, [([nn.Parameter(torch.zeros(1))], group) for group in settings])


def _build(cls: type[torch.optim.Optimizer], kwargs: Mapping[str, Any], groups: list[Group]) -> torch.optim.Optimizer:
    parameters = inspect.signature(cls).parameters
    # The constructor checks its arguments together (Nesterov's method needs a momentum), so it takes the settings of
    # the weights as its defaults.
    first = {key: value for key, value in groups[0][1].items() if key in parameters}
    defaults = {key: parameters[key].default for key in first}
    plain = kwargs.get("foreach") or kwargs.get("differentiable")
    plain = plain or not all(p.is_floating_point() for tensors, _ in groups for p in tensors)
    fused = {"fused": True} if "fused" in parameters and not plain else {}
    make: Any = cls
    return make(
        [{"params": tensors, **defaults, **settings} for tensors, settings in groups if tensors],
        **first | fused | dict(kwargs),
    )


def _samples(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Return a parameter with a gradient for each device and type of `parameters`."""
    kinds = {(p.device, p.dtype): p for p in parameters}
    samples = [nn.Parameter(torch.zeros_like(p.detach().flatten()[:1])) for p in kinds.values()]
    for sample in samples:
        sample.grad = torch.zeros_like(sample)
    return samples


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's step is one kernel, which respects ``found_inf``."""
    return all(group.get("fused") for group in optimizer.param_groups)


def lr_factor(
    position: int, total: int, name: Scheduler, warmup: int = 0, step_size: int | None = None, gamma: float = 0.1
) -> float:
    """Return the factor of all learning rates at a position of the training, in epochs or in batches.

    Parameters
    ----------
    position, total : int
        0-based epoch and the number of epochs, or 0-based batch of the whole training and the number of batches;
        `warmup` and `step_size` have the same unit.
    name : {"cosine", "step", "constant", "one_cycle"}
        ``(1 + cos(π t)) / 2``, with `t` the elapsed fraction after the warm-up; ``gamma ** (e // step_size)``, with `e`
        the positions since the warm-up; 1; half a cosine up from 1/25 to 1 over the warm-up, then half a cosine down to
        4e-6 at the last position (Smith & Topin, arXiv 1708.07120, with the ratios of torch's `OneCycleLR`).
    warmup : int
        Length of the growth, which is linear except in ``one_cycle``; the factor is 1 at the first position after it.
    step_size : int, optional
        Distance between two steps of ``step``; default: a third of what follows the warm-up.
    gamma : float
        Factor of one step of ``step``.

    Raises
    ------
    CodeqError
        For another `name`.

    Examples
    --------
    >>> [round(lr_factor(epoch, 4, "cosine"), 3) for epoch in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    >>> [lr_factor(epoch, 5, "constant", warmup=3) for epoch in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    >>> [round(lr_factor(epoch, 5, "one_cycle", warmup=2), 3) for epoch in range(5)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    check_choice("name", name, Scheduler)
    if name == "one_cycle":
        return _one_cycle(position, total, warmup)
    if position < warmup:
        return (position + 1) / (warmup + 1)
    done, rest = position - warmup, max(total - warmup, 1)
    if name == "cosine":
        return (1 + math.cos(math.pi * done / rest)) / 2
    return gamma ** (done // (step_size or max(rest // 3, 1))) if name == "step" else 1.0


def _one_cycle(position: int, total: int, peak: int) -> float:
    start, end = 1 / ONE_CYCLE_RISE, 1 / (ONE_CYCLE_RISE * ONE_CYCLE_FALL)
    if position < peak:
        return 1 + (start - 1) * (1 + math.cos(math.pi * position / peak)) / 2
    fraction = (position - peak) / max(total - 1 - peak, 1)
    return end + (1 - end) * (1 + math.cos(math.pi * fraction)) / 2
