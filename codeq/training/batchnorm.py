"""BatchNorm statistics of the present weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Any]) -> None:
    """Estimate the running statistics of all BatchNorms anew, as means over `batches`.

    BatchNorms that `model.train()` leaves in evaluation mode are frozen, and keep theirs; so do those that none of the
    batches reaches, as in a block that is left out at random.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(1)
    >>> recalibrate_batchnorm(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
    >>> norm.running_mean.tolist(), norm.running_var.tolist()
    ([4.0], [2.0])
    """
    was_training = model.training
    model.train()
    kept = {m: [b.clone() for b in m.buffers(recurse=False)] for m in model.modules() if isinstance(m, _BatchNorm)}

    def restore(norms: Iterable[_BatchNorm]) -> None:
        for norm in norms:
            for buffer, value in zip(norm.buffers(recurse=False), kept[norm], strict=True):
                buffer.copy_(value)

    def with_frozen_kept() -> Iterator[Any]:
        restore(norm for norm in kept if not norm.training)
        yield from batches

    update_bn(with_frozen_kept(), model)  # it resets all, and then asks for the first batch
    restore(norm for norm in kept if not norm.num_batches_tracked)
    model.train(was_training)
