"""Lower bound of the cost that θ can come to within a training, to warn of a target below it before the training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from codeq.common.modes import evaluation_mode
from codeq.config import ExperimentConfig
from codeq.metrics import QuantizationComparison
from codeq.metrics.budget import cost_figure
from codeq.quantizer.attach import split_param_groups
from codeq.training.controller import LIMIT
from codeq.training.rates import rate_factor


def lowest_logits(config: ExperimentConfig, batches: int) -> dict[str, tuple[float, float]] | None:
    """Return how far a training can lower the logits: for ``dz`` and ``bit`` a factor and what is taken off after it.

    A step of Adam moves a logit by its learning rate at most, as long as its gradient is steady. Decoupled weight decay
    multiplies it as well, by up to 100 times the configured one (see `TargetController`). Of other optimizers nothing
    is known: `None`.

    Parameters
    ----------
    config : ExperimentConfig
        The experiment.
    batches : int
        Of an epoch.

    Examples
    --------
    >>> config = ExperimentConfig("x", epochs=2, lr_scheduler="constant", lr_dz=0.01)
    >>> lowest_logits(config, batches=10)["dz"]
    (1.0, 0.2)
    """
    optimizer = config.optimizer.theta or config.optimizer
    if optimizer.type not in ("adam", "adamw"):
        return None
    factor, ways = rate_factor(config, batches), {}
    for kind in ("dz", "bit"):
        group, last = getattr(config.optimizer.param_groups, kind), getattr(config.freeze_last, kind)
        rates = group.lr * sum(factor(e, b) for e in range(config.epochs - last) for b in range(batches))
        decay = group.weight_decay if config.theta_regularizer == "decoupled" else 0.0
        ways[kind] = math.exp(-math.exp(LIMIT) * decay * rates), round(rates, 12)
    return ways


def lowest_figure(
    config: ExperimentConfig, model: nn.Module, comparison: QuantizationComparison, batches: int
) -> float | None:
    """Return the cost figure of the target for the weights of `model` and the lowest logits that it can come to.

    The weights change, too, so the figure is no strict bound. Sparsity terms remove weights in another way, and
    structured MACs fall with the weights: `None`, as where the optimizer is not Adam.
    """
    assert config.target is not None
    ways = lowest_logits(config, batches)
    if ways is None or config.target.figure == "structured_macs" or any(term.lambda_ for term in config.loss_terms):
        return None
    _, dz, bit = split_param_groups(model)
    with torch.no_grad(), _restored([*dz, *bit]), evaluation_mode(model):
        for kind, logits in (("dz", dz), ("bit", bit)):
            shrink, way = ways[kind]
            for logit in logits:
                if logit.requires_grad:
                    logit.copy_(logit.sign() * (logit.abs() * shrink - way).clamp(min=0))
        return cost_figure(config.target.figure, model, comparison)


@contextmanager
def _restored(parameters: list[nn.Parameter]) -> Iterator[None]:
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
