"""What a training minimizes: cross-entropy, a teacher's predictions, the regularizer on θ, and sparsity terms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.config.term_names import term_names
from codeq.optimizers import Group
from codeq.quantizer.attach import quantizer_parameters_detached, split_param_groups
from codeq.training.distillation import Teacher

logger = logging.getLogger(__name__)


class Diverged(CodeqError):
    """A loss that is not finite: the training stops before it spoils the weights."""


Theta = list[tuple[list[nn.Parameter], float]]


def parameter_groups(config: ExperimentConfig, model: nn.Module) -> tuple[list[Group], Theta]:
    """Split the parameters of `model` into weights, dead-zone logits and bit-width logits, with their settings.

    Returns
    -------
    tuple
        The groups for `build_optimizer`; and for the loss the parameters θ with the λ of their ``λ Σ θ²``. Under
        ``theta_regularizer="decoupled"`` λ is the optimizer's weight decay instead, and 0 in the loss.

    Examples
    --------
    >>> from codeq.models import build_model
    >>> config = ExperimentConfig(name="demo", weight_decay_dz=0.1)
    >>> model = build_model("resnet20", 10, {}, quantizer=config.quantizer)
    >>> groups, theta = parameter_groups(config, model)
    >>> [settings["weight_decay"] for _, settings in groups], [factor for _, factor in theta]
    ([0.0, 0.0, 0.0], [0.1, 0.01])
    """
    base, dz, bit = split_param_groups(model)
    settings = config.optimizer.param_groups
    in_loss = config.theta_regularizer == "l2"
    groups: list[Group] = []
    for parameters, own, is_theta in ((base, settings.base, False), (dz, settings.dz, True), (bit, settings.bit, True)):
        group = {"lr": own.lr, "weight_decay": 0.0 if is_theta and in_loss else own.weight_decay}
        groups.append((parameters, group if own.momentum is None else {**group, "momentum": own.momentum}))
    theta = [(dz, settings.dz.weight_decay), (bit, settings.bit.weight_decay)] if in_loss else []
    return groups, theta


class SparsityTerm:
    """One sparsity loss of a training: ``lambda · schedule(epoch) · loss(model)``.

    Parameters
    ----------
    name : str
        What logs call it.
    loss : callable
        ``fn(model) -> scalar``; with ``proximal_step(model, amount)`` if `step` is ``"proximal"``.
    factor : float
        Lambda.
    schedule : callable
        ``(epoch, total_epochs) -> float``.
    step : {"gradient", "proximal"}
        Whether the term is added to the loss, or applied to the latent weights after the optimizer's step.
    detach_quantizer : bool
        Whether its gradient stops at the latent weights instead of reaching the quantizers' parameters, too.
    """

    def __init__(
        self,
        name: str,
        loss: Callable[[nn.Module], Tensor],
        factor: float,
        schedule: Callable[[float, int], float],
        step: Literal["gradient", "proximal"],
        detach_quantizer: bool,
    ) -> None:
        self.name = name
        self.loss = loss
        self.factor = factor
        self.schedule = schedule
        self.step = step
        self.detach_quantizer = detach_quantizer

    def coefficient(self, epoch: int, total_epochs: int) -> float:
        """Return ``lambda · schedule(epoch)``."""
        return self.factor * self.schedule(epoch, total_epochs)


def build_terms(config: ExperimentConfig, model: nn.Module, input_size: tuple[int, int, int]) -> list[SparsityTerm]:
    """Build the configured sparsity terms for `model`, and try each once.

    Raises
    ------
    CodeqError
        For a loss that returns something other than a 0-d tensor.
    """
    terms: list[SparsityTerm] = []
    names = term_names([term.name for term in config.loss_terms])
    for name, term in zip(names, config.loss_terms, strict=True):
        loss, schedule = term.build(model, input_size), term.schedule.build()
        _try_loss(name, loss, model)
        terms.append(SparsityTerm(name, loss, term.lambda_, schedule, term.step, term.detach_quantizer))
    return terms


def _try_loss(name: str, loss: Callable[[nn.Module], Tensor], model: nn.Module) -> None:
    value: Any = loss(model)
    if not isinstance(value, Tensor) or value.ndim != 0:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise CodeqError(f"sparsity term {name!r} returned {what}; it must return a 0-d tensor, e.g. by .sum()")
    if not value.requires_grad:
        logger.warning("sparsity term %s does not act: it finds no layer of %s", name, type(model).__name__)


class Objective:
    """The loss of one batch, and the proximal steps after the optimizer's.

    Parameters
    ----------
    model : Module
        With its quantizers.
    terms : sequence of SparsityTerm
        Any number.
    theta : sequence of (list of Parameter, float)
        Quantizer parameters and the λ of their ``λ Σ θ²`` in the loss, paper eq. (16) and (19).
    label_smoothing : float
        Of the cross-entropy, in [0, 1).
    teacher : Teacher, optional
        Whose predictions take a share of the cross-entropy's place.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: Sequence[SparsityTerm],
        theta: Sequence[tuple[Sequence[nn.Parameter], float]],
        label_smoothing: float = 0.0,
        teacher: Teacher | None = None,
    ) -> None:
        self.model = model
        self.terms = terms
        self.theta = [(list[Tensor](parameters), factor) for parameters, factor in theta if parameters and factor]
        self.label_smoothing = label_smoothing
        self.teacher = teacher
        self.parts = ["cross-entropy", "distillation", "theta regularizer", *(term.name for term in terms)]

    def backward(
        self,
        forward: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        coefficients: Sequence[float],
        weight: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of a batch and its gradients.

        Parameters
        ----------
        forward : callable
            The model, perhaps compiled.
        x, y : Tensor
            `[B, C, H, W]` and labels `[B]`.
        coefficients : sequence of float
            One for each term, in force in this epoch.
        weight : float
            Of the batch's own part of the loss, for unequal parts of a batch on several devices.

        Returns
        -------
        tuple of Tensor
            Logits `[B, classes]`, and what was added up, in the order of `parts`.
        """
        gradient_terms = [
            (k, term)
            for k, (term, coefficient) in enumerate(zip(self.terms, coefficients, strict=True))
            if coefficient and term.step == "gradient"
        ]
        parts = [torch.zeros((), device=x.device)] * len(self.parts)
        share = self.teacher.alpha if self.teacher else 0.0
        with parametrize.cached():  # each weight is quantized once for the forward pass and all terms
            logits = forward(x)
            logits = logits.float() if logits.dtype == torch.bfloat16 else logits
            labels = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
            parts[0] = weight * (1 - share) * labels
            if self.teacher:
                parts[1] = weight * share * self.teacher.loss(x, logits)
            parts[2] = sum((factor * torch.stack(p).square().sum() for p, factor in self.theta), start=parts[2])
            for k, term in gradient_terms:
                if not term.detach_quantizer:
                    parts[3 + k] = coefficients[k] * term.loss(self.model)
        with quantizer_parameters_detached(self.model), parametrize.cached():
            for k, term in gradient_terms:
                if term.detach_quantizer:
                    parts[3 + k] = coefficients[k] * term.loss(self.model)
        stacked = torch.stack(parts)
        stacked.sum().backward()
        return logits.detach(), stacked.detach()

    def proximal_steps(self, coefficients: Sequence[float], lr: float) -> None:
        """Apply the proximal terms to the latent weights, each by ``lr · coefficient``."""
        for term, coefficient in zip(self.terms, coefficients, strict=True):
            if coefficient and term.step == "proximal":
                cast(Any, term.loss).proximal_step(self.model, lr * coefficient)

    def describe(self, parts: Tensor) -> str:
        """Name the values of the parts of a loss that `backward` returned."""
        used = [self.teacher is not None or name != "distillation" for name in self.parts]
        values = zip(self.parts, parts.tolist(), used, strict=True)
        return ", ".join(f"{name} = {value:.6g}" for name, value, shown in values if shown)


class FiniteGuard:
    """Stops a training whose loss is not finite, without waiting for the device at every batch.

    Parameters
    ----------
    every : int
        Read the flag after so many batches; until then, fused optimizers skip the update of a bad batch.
    """

    def __init__(self, objective: Objective, every: int) -> None:
        self.objective = objective
        self.every = every
        self.batch = torch.tensor(-1)
        self.parts = torch.zeros(len(objective.parts))

    def watch(self, optimizer: torch.optim.Optimizer, parts: Tensor, epoch: int, batch: int) -> None:
        """Look at the parts of the loss of one batch, before the optimizer's step.

        Raises
        ------
        Diverged
            With the epoch, the batch and the parts of the loss (all 1-based), if one of them is not finite.
        """
        self.batch, self.parts = self.batch.to(parts.device), self.parts.to(parts.device)
        finite = parts.isfinite().all()
        first = ~finite & (self.batch < 0)
        self.batch = torch.where(first, batch, self.batch)
        self.parts = torch.where(first, parts, self.parts)
        cast(Any, optimizer).found_inf = (~finite).float()  # what a GradScaler tells a fused step
        if (batch + 1) % self.every == 0:
            self.check(epoch)

    def check(self, epoch: int) -> None:
        """Raise `Diverged` if a batch since the last look was bad."""
        batch = int(self.batch)
        if batch >= 0:
            parts = self.objective.describe(self.parts)
            raise Diverged(f"the loss is not finite in epoch {epoch + 1}, batch {batch + 1}: {parts}")
