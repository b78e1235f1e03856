"""Sparsity terms of the loss: a loss, its factor and its schedule."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from codeq.common.errors import CodeqError, listed
from codeq.config.parts import LossTerm
from codeq.config.term_names import term_names
from codeq.quantizer.attach import quantizer_parameters_detached
from codeq.quantizer.layers import named_quantizations
from codeq.schedules import coefficients
from codeq.sparsity import LossFunction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SparsityTerm:
    """One sparsity loss of a training: ``lambda · schedule(epoch) · loss(model)``.

    Parameters
    ----------
    name : str
        Name in the log, different for each term.
    loss : callable
        ``fn(model) -> scalar``; with ``proximal_step(model, amount)`` if `step` is ``"proximal"``.
    factor : float
        Lambda.
    schedule : callable
        ``(epoch, total_epochs) -> float``.
    step : {"gradient", "proximal"}
        Whether the term is added to the loss, or applied to the latent weights after the optimizer's step.
    detach_quantizer : bool
        Whether the term's gradient stops at the latent weights instead of reaching the quantizers' parameters as well.
    """

    name: str
    loss: LossFunction
    factor: float
    schedule: Callable[[float, int], float]
    step: Literal["gradient", "proximal"] = "gradient"
    detach_quantizer: bool = False

    def coefficient(self, epoch: int, total_epochs: int) -> float:
        """Return ``lambda · schedule(epoch)``."""
        return self.factor * float(self.schedule(epoch, total_epochs))


def build_terms(settings: Sequence[LossTerm], model: nn.Module, input_size: tuple[int, int, int]) -> list[SparsityTerm]:
    """Build the configured sparsity terms for `model`, evaluate each once, and try proximal steps on a copy.

    Raises
    ------
    CodeqError
        For a loss that fails or does not return a finite, real 0-d tensor, for one whose name the log uses itself, and
        for a proximal step that the layers of `model` do not allow.
    """
    terms: list[SparsityTerm] = []
    for name, term in zip(term_names([term.name for term in settings]), settings, strict=True):
        loss = term.build(model, input_size)
        # What does not act on the quantizers' parameters has no effect where these alone train.
        detached = term.detach_quantizer or term.step == "proximal"
        with quantizer_parameters_detached(model) if detached else nullcontext():
            value = _first_value(name, loss, model)
        _check_loss_value(name, value)
        if term.step == "proximal":
            cast(Any, loss).proximal_step(copy.deepcopy(model), 0.0)
        terms.append(SparsityTerm(name, loss, term.lambda_, term.schedule.build(), term.step, term.detach_quantizer))
    return terms


def _first_value(name: str, loss: LossFunction, model: nn.Module) -> Any:
    try:
        return loss(model)
    except CodeqError:
        raise
    except Exception as error:  # whatever a user's loss raises
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CodeqError(f"sparsity term {name!r} fails on {type(model).__name__}: {reason}") from error


def _check_loss_value(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim != 0:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:200]
        raise CodeqError(f"sparsity term {name!r} returned {what}; it must return a 0-d tensor, e.g. by .sum()")
    if value.is_complex():
        raise CodeqError(f"sparsity term {name!r} returned a complex number, {value.item()}; it must be real")
    if not value.isfinite():
        raise CodeqError(f"sparsity term {name!r} is {value.item()} for the initial weights; it must be finite")
    if not value.requires_grad:
        logger.warning(
            "sparsity term %s has no effect: its value has no gradient, because no layer that it counts is trainable, "
            "or because it is detached, rounded to integers or a comparison",
            name,
        )


def check_schedules(terms: Sequence[SparsityTerm], epochs: int, model: nn.Module) -> None:
    """Try the schedule of each term in all epochs, and warn of coefficients that are always 0 or fall to 0 too early.

    What a proximal step has set to 0 is kept there by further steps alone, or by the dead-zone of a quantizer: the
    optimizer's momentum moves float weights on.

    Raises
    ------
    CodeqError
        See `codeq.schedules.coefficients`.
    """
    quantized = {name for name, _ in named_quantizations(model)}
    for term in terms:
        values = coefficients(term.schedule, epochs, f"sparsity term {term.name!r}")
        if not term.factor or not any(values):
            logger.warning("sparsity term %s has no effect: its coefficient is 0 in all %d epochs", term.name, epochs)
        elif floats := _released(term, values, quantized):
            logger.warning(
                "sparsity term %s ends %d epochs before the training, and no quantizer holds zeros of %s: what it "
                "pruned there comes back; quantize these layers, or let the term last until the end, run "
                "`codeq compact --trainable`, and train that on",
                term.name, len(values) - 1 - max(i for i, value in enumerate(values) if value), listed(floats, 4),
            )  # fmt: skip


def _released(term: SparsityTerm, values: Sequence[float], quantized: Collection[str]) -> list[str]:
    """Return the layers without a quantizer that a proximal term prunes, if it ends before the training."""
    if term.step != "proximal" or values[-1]:
        return []
    return [name for name in cast(Any, term.loss).pruned_layers if name not in quantized]
