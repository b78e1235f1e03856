"""Detection of a loss that is not finite, without waiting for the device at every batch."""

from __future__ import annotations

from typing import Any, cast

import torch

from codeq.common.errors import CodeqError
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
        Batches between two reads of the flag; 1 for an optimizer that is not fused.
    """

    def __init__(self, sync_interval: int) -> None:
        self.sync_interval = sync_interval
        self._first_bad: tuple[torch.Tensor, LossParts] | None = None  # batch, 0-based or -1, and its parts

    def watch(self, optimizer: torch.optim.Optimizer, parts: LossParts, epoch: int, batch: int) -> None:
        """Look at the parts of the loss of one batch, before the optimizer's step.

        Raises
        ------
        Diverged
            With the epoch, the batch and the parts of the loss (1-based), if one of them is not finite.
        """
        values = parts.values
        bad_batch, bad = self._first_bad or (torch.full((), -1, device=values.device), parts)
        finite = values.isfinite().all()
        first = ~finite & (bad_batch < 0)
        bad = LossParts(parts.names, torch.where(first, values, bad.values))
        self._first_bad = torch.where(first, batch, bad_batch), bad
        cast(Any, optimizer).found_inf = (~finite).float()
        if (batch + 1) % self.sync_interval == 0:
            self.check(epoch)

    def check(self, epoch: int) -> None:
        """Raise `Diverged` if a batch since the last read was bad."""
        if self._first_bad is None:
            return
        batch, parts = self._first_bad
        if int(batch) >= 0:
            raise Diverged(f"the loss is not finite in epoch {epoch + 1}, batch {int(batch) + 1}: {parts}")
