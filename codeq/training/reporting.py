"""Metrics of a training: one row per epoch, the value of every sparsity term, and the summary at the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from codeq.evaluator import EvalResult
from codeq.metrics import ModelStats
from codeq.quantizer.activations import named_activation_quantizers
from codeq.quantizer.attach import collapsed_layers
from codeq.runs.tables import chosen_by
from codeq.training.objective import CROSS_ENTROPY, DISTILLATION, THETA_REGULARIZER
from codeq.training.terms import SparsityTerm

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def epoch_metrics(
    epoch: int, lr: float, losses: dict[str, float], accuracy: float, result: EvalResult
) -> dict[str, Any]:
    """Return the row of one epoch, without the sparsity terms.

    Parameters
    ----------
    epoch : int
        0-based.
    lr : float
        Learning rate of the weights at the first batch of this epoch.
    losses : dict of str to float
        Means of the parts of the loss over the epoch, by name.
    accuracy : float
        Fraction of correct predictions in training.
    result : EvalResult
        Result of the evaluation after the epoch.
    """
    metrics = {
        "epoch": epoch,
        "lr": lr,
        "train/ce_loss": losses[CROSS_ENTROPY],
        **({"train/distillation_loss": losses[DISTILLATION]} if DISTILLATION in losses else {}),
        "train/theta_loss": losses[THETA_REGULARIZER],
        "train/accuracy": accuracy,
        "eval/accuracy": result.test_accuracy,
        "eval/loss": result.test_loss,
        "sparsity/unstructured": result.unstructured_sparsity,
        "sparsity/structured": result.structured_sparsity,
        "quantizer/mean_bits": result.mean_bits,
        "compression/structured_bops_ratio": result.structured_bops_ratio,
        "compression/structured_mac_ratio": result.structured_mac_ratio,
        "compression/unstructured_bops_ratio": result.unstructured_bops_ratio,
        "compression/unstructured_mac_ratio": result.unstructured_mac_ratio,
    }
    for structured, unstructured in zip(result.structured_stats.layers, result.unstructured_stats.layers, strict=True):
        metrics[f"layers/{structured.name}/bitwidth"] = structured.bitwidth
        metrics[f"layers/{structured.name}/structured_pruning"] = structured.pruning_ratio
        metrics[f"layers/{structured.name}/unstructured_pruning"] = unstructured.pruning_ratio
    return metrics


def activation_metrics(model: nn.Module) -> dict[str, float]:
    """Return bits and step of the quantizer of each layer's input, where there is one."""
    metrics: dict[str, float] = {}
    for name, quantizer in named_activation_quantizers(model):
        metrics |= {
            f"layers/{name}/activation_bits": quantizer.bits,
            f"layers/{name}/activation_step": quantizer.positive_step().item(),
        }
    return metrics


@torch.no_grad()
def term_metrics(terms: list[SparsityTerm], coefficients: list[float], model: nn.Module) -> dict[str, Any]:
    """Return the value of every sparsity term on the weights at the end of the epoch, and their coefficients."""
    with parametrize.cached():
        values = [float(term.loss(model)) for term in terms]
    metrics: dict[str, Any] = {"train/sparsity_loss": sum(values), "train/sparsity_coeff": sum(coefficients)}
    for term, value, coefficient in zip(terms, values, coefficients, strict=True):
        metrics |= {f"train/{term.name}": value, f"train/{term.name}_coeff": coefficient}
    return metrics


def run_summary(
    history: pd.DataFrame, name: str, result: EvalResult, baseline: ModelStats, seconds: float
) -> dict[str, Any]:
    """Return the summary of a finished run from its table of epochs and its last evaluation.

    A compression ratio is `None` where it is infinite, because nothing is left: JSON has no infinity.
    """
    accuracies = history["eval/accuracy"].tolist()
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    tests = history["test/accuracy"].tolist() if "test/accuracy" in history else None
    summary = {
        "name": name,
        "epochs": len(accuracies),
        "accuracy_last": accuracies[-1],
        "accuracy_best": accuracies[best],
        "best_epoch": best,
        "best_chosen_by": chosen_by(history),
        **({"test_accuracy_last": tests[-1], "test_accuracy_at_best": tests[best]} if tests else {}),
        "unstructured_sparsity": result.unstructured_sparsity,
        "structured_sparsity": result.structured_sparsity,
        "mean_bits": result.mean_bits,
        "baseline_macs": baseline.total_macs,
        "baseline_bops": baseline.total_bops,
        "structured_macs": result.structured_stats.total_macs,
        "structured_bops": result.structured_stats.total_bops,
        "unstructured_macs": result.unstructured_stats.total_macs,
        "unstructured_bops": result.unstructured_stats.total_bops,
        "structured_bops_ratio": result.structured_bops_ratio,
        "structured_mac_ratio": result.structured_mac_ratio,
        "unstructured_bops_ratio": result.unstructured_bops_ratio,
        "unstructured_mac_ratio": result.unstructured_mac_ratio,
        "seconds": round(seconds, 1),
        "notes": list(result.notes),
    }
    return {key: None if value in (math.inf, -math.inf) else value for key, value in summary.items()}


def warn_of_notes(notes: Sequence[str]) -> None:
    """Warn of what the costs of a model leave out or assume."""
    for note in notes:
        logger.warning("costs of the model: %s", note)


def warn_of_collapsed_scales(model: nn.Module, known: set[str]) -> None:
    """Warn of layers with a collapsed scale (`collapsed_layers`) that are not in `known`, and add them to it."""
    fresh = set(collapsed_layers(model)) - known
    if fresh:
        logger.warning(
            "the scale R of %s is less than half the 0.99 quantile of its non-zero weights, because most latent "
            "weights are exactly zero; the quantizer option absmax_over='nonzero' avoids that",
            ", ".join(sorted(fresh)),
        )
        known |= fresh
