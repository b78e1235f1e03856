"""Groups of parameters (weights, dead-zone logits, bit-width logits) and their learning rates over the epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from codeq.common.errors import CodeqError
from codeq.config import ParamGroup, ParamGroups
from codeq.optimizers import Group
from codeq.quantizer.attach import split_param_groups

Theta = list[tuple[list[nn.Parameter], float]]


def parameter_groups(
    settings: ParamGroups, theta_regularizer: Literal["l2", "decoupled"], model: nn.Module
) -> tuple[list[Group], Theta]:
    """Split the trainable parameters of `model` into weights, dead-zone logits and bit-width logits.

    Returns
    -------
    tuple
        Groups with their settings, for `build_optimizer`; and parameters θ with the λ of their ``λ Σ θ²`` in the loss.
        Under ``theta_regularizer="decoupled"`` λ is the optimizer's weight decay instead, and the second part is empty.

    Raises
    ------
    CodeqError
        For a model without trainable parameters.

    Examples
    --------
    >>> from codeq.config.parts import ThetaGroup
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = attach_weight_quantizers(model, [], "deadzone", {})
    >>> settings = ParamGroups(dz=ThetaGroup(weight_decay=0.1))
    >>> groups, theta = parameter_groups(settings, "l2", model)
    >>> [options["weight_decay"] for _, options in groups], [factor for _, factor in theta]
    ([0.0, 0.0, 0.0], [0.1, 0.01])
    """
    base, dz, bit = split_param_groups(model)
    if not (base or dz or bit):
        raise CodeqError(f"{type(model).__name__} has no trainable parameters: all have requires_grad=False")
    in_loss = theta_regularizer == "l2"
    groups: list[Group] = [(base, _options(settings.base, settings.base.weight_decay))]
    for parameters, group in ((dz, settings.dz), (bit, settings.bit)):
        groups.append((parameters, _options(group, 0.0 if in_loss else group.weight_decay)))
    return groups, [(dz, settings.dz.weight_decay), (bit, settings.bit.weight_decay)] if in_loss else []


def _options(group: ParamGroup, weight_decay: float) -> dict[str, float]:
    momentum = {} if group.momentum is None else {"momentum": group.momentum}
    return {"lr": group.lr, "weight_decay": weight_decay, **momentum}


class LearningRates:
    """Learning rates of all groups over the epochs: those at the start times a common factor.

    Parameters
    ----------
    optimizer : Optimizer
        With the rates at the start.
    base : float
        Rate of the weights at the start.
    factor : callable
        ``epoch -> factor``, see `codeq.optimizers.lr_factor`.

    Examples
    --------
    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    >>> rates = LearningRates(optimizer, base=0.5, factor=lambda epoch: 0.1**epoch)
    >>> rates.apply(1)
    >>> optimizer.param_groups[0]["lr"] == rates.base(1) == 0.05
    True
    """

    def __init__(self, optimizer: torch.optim.Optimizer, base: float, factor: Callable[[int], float]) -> None:
        self._optimizer = optimizer
        self._initial = [group["lr"] for group in optimizer.param_groups]
        self._base = base
        self._factor = factor

    def base(self, epoch: int) -> float:
        """Return the rate of the weights in `epoch`, by which proximal steps are scaled."""
        return self._base * self._factor(epoch)

    def apply(self, epoch: int) -> None:
        """Set the rates of `epoch` in the optimizer."""
        for group, initial in zip(self._optimizer.param_groups, self._initial, strict=True):
            group["lr"] = initial * self._factor(epoch)
