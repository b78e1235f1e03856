"""BatchNorm over the whole batch of several GPUs, in place of BatchNorm over the part of each."""

from __future__ import annotations

import copy
import sys
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from codeq.common.errors import CodeqError


def synchronize_norms(model: nn.Module) -> None:
    """Make the BatchNorms of `model` normalize by the batch of all processes, where these use GPUs; in place.

    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` builds new layers instead: it loses hooks, and replaces a subclass
    that does more than BatchNorm, such as timm's with an activation function, by a layer that does not.

    Raises
    ------
    CodeqError
        For a layer of another class that normalizes by the batch.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    >>> synchronize_norms(net)
    >>> net[1]
    SyncBatchNorm(4, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    counterparts = _counterparts()
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    for name, norm in norms.items():
        own = "forward" in vars(norm) or type(norm) not in counterparts
        # One that its `train` keeps in evaluation mode normalizes by stored statistics, the same in every process.
        if own and not isinstance(norm, nn.SyncBatchNorm) and copy.deepcopy(norm).train().training:
            raise CodeqError(
                f"{name} ({type(norm).__name__}) cannot normalize by the batch of several GPUs: train on one, or use "
                "torch.nn.BatchNorm1d, BatchNorm2d, BatchNorm3d or SyncBatchNorm itself, not a subclass"
            )
    for norm in norms.values():
        if type(norm) in counterparts:
            # The same module with the same state, in which another `forward` computes.
            cast(Any, norm).__class__, cast(Any, norm).process_group = counterparts[type(norm)], None


def _counterparts() -> dict[type[nn.Module], type[nn.Module]]:
    """Return the class that computes over several GPUs for each class that has one."""
    kinds: dict[type[nn.Module], type[nn.Module]] = dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), nn.SyncBatchNorm
    )
    if layers := sys.modules.get("timm.layers"):  # a network of timm has imported it
        kinds[layers.BatchNormAct2d] = layers.SyncBatchNormAct
    return kinds
