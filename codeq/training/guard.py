"""Detection of a loss that is not finite, without waiting for the device at every batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from codeq.common.errors import CodeqError
from codeq.optimizers import is_fused
from codeq.training.objective import LossParts


class Diverged(CodeqError):
    """A loss that is not finite; the training stops before the weights are spoiled."""


class FiniteGuard:
    """Stops a training whose loss is not finite.

    The flag stays on the device and is read every `sync_interval` batches. Until then, fused optimizers skip the update
    of a bad batch (`found_inf`, as under a GradScaler).

    Parameters
    ----------
    sync_interval : int
        Batches between two reads of the flag; 1 lets an optimizer that is not fused skip the step of a bad batch, too.
    """

    def __init__(self, sync_interval: int) -> None:
        self.sync_interval = sync_interval
        self._bad: tuple[torch.Tensor, LossParts] | None = None  # first bad batch, 0-based or -1, and its parts

    def watch(self, optimizer: torch.optim.Optimizer, parts: LossParts, epoch: int, batch: torch.Tensor) -> None:
        """Look at the parts of the loss of one batch, before the optimizer's step; read the flag if the interval is 1.

        Parameters
        ----------
        optimizer : Optimizer
            Skips the step of a bad batch if it is fused.
        parts : LossParts
            Of the batch.
        epoch : int
            0-based.
        batch : Tensor
            0-based, `[]`, on the device.

        Raises
        ------
        Diverged
            As `check`.
        """
        values = parts.values
        if self._bad is None:
            self._bad = torch.full_like(batch, -1), LossParts(parts.names, values.clone())
        bad_batch, bad = self._bad
        finite = values.isfinite().all()
        first = ~finite & (bad_batch < 0)
        bad.values.copy_(torch.where(first, values, bad.values))
        bad_batch.copy_(torch.where(first, batch, bad_batch))
        if is_fused(optimizer):  # the other kernels of torch refuse the flag
            cast(Any, optimizer).found_inf = (~finite).float()
        if self.sync_interval == 1:
            self.check(epoch)

    def check_regularly(self, epoch: int, batches: int) -> None:
        """Check after every `sync_interval` of the `batches` of an epoch."""
        if batches % self.sync_interval == 0:
            self.check(epoch)

    def check(self, epoch: int) -> None:
        """Raise `Diverged`, with epoch, batch (1-based) and the parts of its loss, if a batch so far was bad."""
        if self._bad is None:
            return
        batch, parts = self._bad
        if int(batch) >= 0:
            raise Diverged(f"the loss is not finite in epoch {epoch + 1}, batch {int(batch) + 1}: {parts}")

    def check_weights(self, model: nn.Module, epoch: int) -> None:
        """Raise `Diverged` as `check`, and if a parameter of `model` is not finite, which the next loss would show.

        Such weights have no costs, and are not saved.
        """
        self.check(epoch)
        parameters = [p for p in model.parameters() if p.is_floating_point()]
        if torch.stack([p.detach().isfinite().all() for p in parameters]).all():  # one read of the device
            return
        name = next(name for name, p in model.named_parameters() if not p.isfinite().all())
        raise Diverged(
            f"{name} is not finite after a step in epoch {epoch + 1}: a gradient was not, though the loss was"
        )
