"""Re-estimates BatchNorm's running statistics for the weights as they are now."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codeq.graph.tracing import BATCH_NORM


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running mean and variance of every BatchNorm by their average over `batches`.

    The running statistics trail the weights by some ten steps. Where quantizers and a proximal step change the weights
    of all layers at once, that lag alone can ruin the evaluation of a network whose training batches it still
    classifies; see Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576), §3.

    Parameters
    ----------
    model : Module
        In training mode; only BatchNorm's buffers change. A model without BatchNorm is left alone.
    batches : iterable of Tensor
        Training inputs `[B, ...]`, as training sees them.

    Examples
    --------
    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> recalibrate_batchnorm(net, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    >>> net[0].running_mean.item()
    4.0
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORM) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    try:
        with parametrize.cached():
            for x in batches:
                model(x)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
