"""Learning rates and weight decay of θ over a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import nn

from codeq.config import ExperimentConfig, serialize
from codeq.optimizers import lr_factor
from codeq.quantizer.attach import split_param_groups
from codeq.schedules import coefficients
from codeq.training.objective import Objective

logger = logging.getLogger(__name__)


def rate_factor(config: ExperimentConfig, batches: int) -> Callable[[int, int], float]:
    """Return the factor of the learning rates as a function of the epoch and the batch in it, both 0-based.

    Parameters
    ----------
    config : ExperimentConfig
        Its `lr_schedule_unit` decides whether the factor changes with every epoch or with every batch.
    batches : int
        Batches of an epoch.

    Examples
    --------
    >>> config = ExperimentConfig("x", epochs=2, lr_schedule_unit="step")
    >>> [round(rate_factor(config, 2)(epoch, batch), 3) for epoch in (0, 1) for batch in (0, 1)]
    [1.0, 0.854, 0.5, 0.146]
    """
    name, course = config.lr_scheduler, serialize(config.lr_scheduler_kwargs)
    if config.lr_schedule_unit == "epoch":
        return lambda epoch, _: lr_factor(epoch, config.epochs, name, **course)
    course["warmup"] *= batches
    if course["step_size"] is not None:
        course["step_size"] *= batches
    return lambda epoch, batch: lr_factor(epoch * batches + batch, config.epochs * batches, name, **course)


def frozen_groups(config: ExperimentConfig, optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[int, int]:
    """Return the first epoch without updates of each group of `optimizer` that ``freeze_last`` stops, by its index."""
    _, *theta = split_param_groups(model)
    index = {id(group["params"][0]): position for position, group in enumerate(optimizer.param_groups)}
    first = {}
    for key, parameters in zip(("dz", "bit"), theta, strict=True):
        last = getattr(config.freeze_last, key)
        if last and parameters:
            first[index[id(parameters[0])]] = config.epochs - last
        elif last:
            logger.warning("freeze_last.%s has no effect: the model trains no logits of this kind", key)
    return first


class LearningRates:
    """Learning rates of all groups over a training: those at the start times a common factor, except where frozen.

    Parameters
    ----------
    optimizer : Optimizer
        With the rates at the start.
    base : float
        Rate of the weights at the start.
    factor : callable
        ``(epoch, batch) -> factor``, see `rate_factor`.
    frozen : mapping of int to int
        First epoch without updates by index of the group.

    Examples
    --------
    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    >>> rates = LearningRates(optimizer, base=0.5, factor=lambda epoch, batch: 0.1**epoch)
    >>> rates.apply(1, 0)
    >>> optimizer.param_groups[0]["lr"] == rates.base(1, 0) == 0.05
    True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        base: float,
        factor: Callable[[int, int], float],
        frozen: Mapping[int, int] | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._initial = [group["lr"] for group in optimizer.param_groups]
        self._base = base
        self._factor = factor
        self._frozen = frozen or {}

    def base(self, epoch: int, batch: int) -> float:
        """Return the rate of the weights for a batch of an epoch, by which proximal steps are scaled."""
        return self._base * self._factor(epoch, batch)

    def frozen(self, epoch: int) -> list[nn.Parameter]:
        """Return the parameters that are not updated in an epoch."""
        groups = enumerate(self._optimizer.param_groups)
        return [p for index, group in groups if epoch >= self._frozen.get(index, epoch + 1) for p in group["params"]]

    def apply(self, epoch: int, batch: int) -> None:
        """Set the rates for a batch of an epoch in the optimizer."""
        factor = self._factor(epoch, batch)
        for group, initial in zip(self._optimizer.param_groups, self._initial, strict=True):
            group["lr"] = initial * factor

    def drop_gradients(self, epoch: int) -> None:
        """Remove the gradients of the parameters that are frozen in an epoch, so that the optimizer leaves them out.

        A rate of 0 would not stop all optimizers: ASGD steps by the rate of the step before, Rprop by none.
        """
        for parameter in self.frozen(epoch):
            parameter.grad = None


class ThetaFactors:
    """λ of the regularizer on θ: those at the start times one factor for dead-zones and one for bit-widths.

    They act where the configuration puts λ, in the loss or in the weight decay of the optimizer's groups of θ.

    Parameters
    ----------
    optimizer : Optimizer
        With the weight decay at the start.
    objective : Objective
        With the factors of θ in the loss at the start.
    model : Module
        With its quantizers.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, objective: Objective, model: nn.Module) -> None:
        _, dz, bit = split_param_groups(model)
        kinds = dict.fromkeys(map(id, dz), "dz") | dict.fromkeys(map(id, bit), "bit")
        # By position: restoring the state of an optimizer replaces its groups.
        self._in_groups = {
            index: (kinds[id(group["params"][0])], group["weight_decay"])
            for index, group in enumerate(optimizer.param_groups)
            if "weight_decay" in group and id(group["params"][0]) in kinds
        }
        self._optimizer = optimizer
        self._objective = objective
        self._in_loss = [(kinds[id(parameters[0])], parameters, factor) for parameters, factor in objective.theta]

    @property
    def kinds(self) -> set[str]:
        """Those of ``dz`` and ``bit`` that train with a λ above 0."""
        return {kind for kind, initial in self._in_groups.values() if initial} | {kind for kind, *_ in self._in_loss}

    def apply(self, dz: float, bit: float) -> None:
        """Set λ to its value at the start times a factor, that of dead-zones and that of bit-widths."""
        factors = {"dz": dz, "bit": bit}
        for index, (kind, initial) in self._in_groups.items():
            self._optimizer.param_groups[index]["weight_decay"] = initial * factors[kind]
        self._objective.theta = [(parameters, initial * factors[kind]) for kind, parameters, initial in self._in_loss]


class ThetaDecay:
    """λ of the regularizer on θ over the epochs: those at the start times a schedule.

    Parameters
    ----------
    factors : ThetaFactors
        λ at the start.
    schedule : callable
        ``(epoch, total_epochs) -> coefficient``.
    """

    def __init__(self, factors: ThetaFactors, schedule: Callable[[float, int], float]) -> None:
        self._factors = factors
        self._schedule = schedule

    def coefficient(self, epoch: int, total_epochs: int) -> float:
        """Return the factor of λ in an epoch, a number whatever a user's schedule returns."""
        return float(self._schedule(epoch, total_epochs))

    def apply(self, epoch: int, total_epochs: int) -> None:
        """Set the λ of an epoch."""
        coefficient = self.coefficient(epoch, total_epochs)
        self._factors.apply(dz=coefficient, bit=coefficient)

    def check(self, epochs: int) -> None:
        """Try the schedule in all epochs, and warn if it is always 0, or there is no λ above 0 to which it applies.

        Raises
        ------
        CodeqError
            See `codeq.schedules.coefficients`.
        """
        values = coefficients(self._schedule, epochs, "the regularizer on theta")
        if not self._factors.kinds:
            logger.warning("theta_schedule has no effect: no parameter of a quantizer has a weight decay above 0")
        elif not any(values):
            logger.warning("the regularizer on theta has no effect: theta_schedule is 0 in all %d epochs", epochs)
