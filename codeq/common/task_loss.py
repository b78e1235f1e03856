"""The loss of the task, from the recorded metrics."""

from __future__ import annotations

from typing import Any


def task_loss(metrics: Any) -> Any:
    """Return what a training minimizes besides its regularizers: cross-entropy plus, if any, the distillation loss.

    Under distillation each of them is one share of the sum.

    Parameters
    ----------
    metrics : mapping or DataFrame
        Of one epoch, or ``metrics.csv`` of all.

    Examples
    --------
    >>> task_loss({"train/ce_loss": 0.5}), task_loss({"train/ce_loss": 0.5, "train/distillation_loss": 0.25})
    (0.5, 0.75)
    """
    return metrics["train/ce_loss"] + metrics.get("train/distillation_loss", 0.0)
