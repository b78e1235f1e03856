"""The loss of a training: cross-entropy, a teacher's predictions, the regularizer on θ, and sparsity terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeq.quantizer.attach import quantizer_parameters_detached
from codeq.quantizer.functions import widen
from codeq.quantizer.fused import fused_quantization
from codeq.training.distillation import Teacher
from codeq.training.terms import SparsityTerm

CROSS_ENTROPY = "cross-entropy"
DISTILLATION = "distillation"
THETA_REGULARIZER = "theta regularizer"


@dataclass(frozen=True)
class LossParts:
    """Named parts of a loss, in one tensor on the device.

    Parameters
    ----------
    names : tuple of str
        Names of the parts.
    values : Tensor
        Their values, `[parts]`.

    Examples
    --------
    >>> print(LossParts.of({"cross-entropy": torch.tensor(0.5), "lasso": torch.tensor(2.0)}))
    cross-entropy = 0.5, lasso = 2
    """

    names: tuple[str, ...]
    values: Tensor

    @classmethod
    def of(cls, parts: Mapping[str, Tensor]) -> LossParts:
        """Stack scalars by name."""
        return cls(tuple(parts), torch.stack(list(parts.values())))

    def to_dict(self) -> dict[str, float]:
        """Return the values by name; waits for the device."""
        return dict(zip(self.names, self.values.tolist(), strict=True))

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value:.6g}" for name, value in self.to_dict().items())


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
        Network whose predictions replace a share of the cross-entropy.
    bfloat16 : bool
        Whether the forward passes, the teacher's included, compute in bfloat16 where that is safe (`torch.autocast`);
        parameters, quantizers and losses stay float32.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: Sequence[SparsityTerm],
        theta: Sequence[tuple[Sequence[nn.Parameter], float]],
        *,
        label_smoothing: float = 0.0,
        teacher: Teacher | None = None,
        bfloat16: bool = False,
    ) -> None:
        self.model = model
        self.terms = terms
        self.theta = [(list[Tensor](parameters), factor) for parameters, factor in theta if parameters and factor]
        self.label_smoothing = label_smoothing
        self.teacher = teacher
        self.bfloat16 = bfloat16

    def zero(self, device: torch.device) -> LossParts:
        """Return parts of value 0, under the names that `backward` uses."""
        names = [CROSS_ENTROPY, *([DISTILLATION] if self.teacher else []), THETA_REGULARIZER]
        names += [term.name for term in self.terms]
        return LossParts(tuple(names), torch.zeros(len(names), device=device))

    def backward(
        self,
        forward: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        coefficients: Sequence[float],
        weight: float = 1.0,
    ) -> tuple[Tensor, LossParts]:
        """Compute the loss of a batch and its gradients; nothing waits for the device.

        Parameters
        ----------
        forward : callable
            The model, perhaps compiled.
        x, y : Tensor
            `[B, C, H, W]` and labels `[B]`.
        coefficients : sequence of float
            Coefficient of each term in this epoch.
        weight : float
            Weight of the part of the loss that depends on the batch, for unequal parts of a batch on several devices.

        Returns
        -------
        tuple of (Tensor, LossParts)
            Logits `[B, classes]`, and the summands of the loss.
        """
        zero = torch.zeros((), device=x.device)
        with fused_quantization(self.model):  # each weight is quantized once for the forward pass and all terms
            logits, parts = self._batch_loss(forward, x, y, weight)
            squares = (
                factor * torch.cat([t.reshape(-1) for t in theta]).square().sum() for theta, factor in self.theta
            )
            parts[THETA_REGULARIZER] = sum(squares, zero)
            parts |= dict.fromkeys((term.name for term in self.terms), zero)
            parts |= self._gradient_terms(coefficients, detached=False)
        if any(term.detach_quantizer for term in self.terms):
            with quantizer_parameters_detached(self.model), fused_quantization(self.model):
                parts |= self._gradient_terms(coefficients, detached=True)
        stacked = LossParts.of(parts)
        stacked.values.sum().backward()
        return logits.detach(), LossParts(stacked.names, stacked.values.detach())

    def _batch_loss(
        self, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits in at least float32, and the parts of the loss that depend on the batch."""
        kind = x.device.type if torch.amp.is_autocast_available(x.device.type) else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16):
            # The teacher is first: a model may overwrite its input.
            teacher_logits = self.teacher.predict(x) if self.teacher else None
            logits = widen(forward(x))
        # Inside another autocast, even one that is off, the casts of the weights would be those of all later batches.
        torch.clear_autocast_cache()
        share = self.teacher.alpha if self.teacher else 0.0
        labels = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        parts = {CROSS_ENTROPY: weight * (1 - share) * labels}
        if self.teacher and teacher_logits is not None:
            parts[DISTILLATION] = weight * share * self.teacher.loss(logits, teacher_logits)
        return logits, parts

    def _gradient_terms(self, coefficients: Sequence[float], detached: bool) -> dict[str, Tensor]:
        """Return the terms of the loss whose gradient stops before the quantizers' parameters, or those of the rest."""
        return {
            term.name: coefficient * term.loss(self.model)
            for term, coefficient in zip(self.terms, coefficients, strict=True)
            if coefficient and term.step == "gradient" and term.detach_quantizer == detached
        }

    def proximal_steps(self, coefficients: Sequence[float], lr: float | Tensor) -> None:
        """Apply the proximal terms to the latent weights, each by ``lr · coefficient``."""
        for term, coefficient in zip(self.terms, coefficients, strict=True):
            if coefficient and term.step == "proximal":
                cast(Any, term.loss).proximal_step(self.model, lr * coefficient)
