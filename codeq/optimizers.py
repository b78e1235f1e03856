"""Optimizers by name, the three parameter groups (base / dz / bit), and the course of their learning rates."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from codeq.common.registry import Registry

OPTIMIZERS: Registry[type[torch.optim.Optimizer]] = Registry("optimizer")
OPTIMIZERS["adamw"] = torch.optim.AdamW
OPTIMIZERS["adam"] = torch.optim.Adam
OPTIMIZERS["sgd"] = torch.optim.SGD

Group = tuple[list[nn.Parameter], Mapping[str, float]]


def build_optimizer(name: str, kwargs: Mapping[str, Any], groups: list[Group]) -> torch.optim.Optimizer:
    """Build the optimizer `name`, fused where it can be.

    Fused ones update all parameters in one kernel, and can be told to skip a batch whose loss is not finite.

    Parameters
    ----------
    name : str
        In `OPTIMIZERS`.
    kwargs : mapping
        Arguments of its constructor.
    groups : list of (list of Parameter, mapping)
        Parameters and their own settings (``lr``, ``weight_decay``, …); groups without parameters are left out.

    Examples
    --------
    >>> weight, logit = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))
    >>> optimizer = build_optimizer("adam", {"betas": [0.8, 0.9]}, [([weight], {"lr": 0.1}), ([logit], {"lr": 0.2})])
    >>> [group["lr"] for group in optimizer.param_groups], is_fused(optimizer)
    ([0.1, 0.2], True)
    """
    cls = OPTIMIZERS[name]
    fused = {"fused": True} if "fused" in inspect.signature(cls).parameters else {}
    make: Any = cls
    return make([{"params": parameters, **own} for parameters, own in groups if parameters], **fused, **kwargs)


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's step is one kernel, which heeds ``found_inf``."""
    return all(group.get("fused") for group in optimizer.param_groups)


def lr_factor(
    epoch: int, epochs: int, name: str, warmup: int = 0, step_size: int | None = None, gamma: float = 0.1
) -> float:
    """Return what all learning rates are multiplied by in an epoch.

    Parameters
    ----------
    epoch, epochs : int
        0-based epoch, and how many there are.
    name : {"cosine", "step", "constant"}
        ``(1 + cos(π t)) / 2`` over the fraction `t` of the epochs after the warm-up that has passed;
        ``gamma ** (e // step_size)`` of the epochs `e` after it; 1.
    warmup : int
        Epochs over which the factor grows linearly, to 1 in the first epoch after them.
    step_size : int, optional
        Default: a third of the epochs after the warm-up.
    gamma : float
        Of ``step``.

    Examples
    --------
    >>> [round(lr_factor(epoch, 4, "cosine"), 3) for epoch in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    >>> [lr_factor(epoch, 5, "constant", warmup=3) for epoch in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if epoch < warmup:
        return (epoch + 1) / (warmup + 1)
    done, rest = epoch - warmup, max(epochs - warmup, 1)
    if name == "cosine":
        return (1 + math.cos(math.pi * done / rest)) / 2
    return gamma ** (done // (step_size or max(rest // 3, 1))) if name == "step" else 1.0
