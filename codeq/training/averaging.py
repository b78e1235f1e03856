"""Moving average of the weights of a training, which is evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """Exponential moving average of all parameters and buffers of a model.

    The running statistics of BatchNorm are averaged as well: those of the trained model belong to other weights. What
    has no mean is that of the trained model: counters, indices and other buffers that are no floating-point numbers,
    and infinite values, such as those of an attention mask.

    Parameters
    ----------
    model : Module
        The trained model.
    decay : float
        Of the average per update, in (0, 1).
    keep_zeros : bool
        Whether a weight that is exactly zero in the model is so in the average, at once. Proximal steps set the weights
        of dead channels to zero, to which an average comes close, but which it never reaches: no channel would be dead.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> average = MovingAverage(model, decay=0.75, keep_zeros=True)
    >>> for values in ([4.0, 4.0], [8.0, 0.0]):
    ...     model.weight.data = torch.tensor([values])
    ...     average.update_parameters(model)
    >>> average.module.weight.tolist()
    [[5.0, 0.0]]
    """

    def __init__(self, model: nn.Module, decay: float, keep_zeros: bool) -> None:
        super().__init__(model, multi_avg_fn=_averaging(decay), use_buffers=True)
        self.keep_zeros = keep_zeros

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of `model` after a step into the average."""
        super().update_parameters(model)
        for averaged, trained in zip(self.module.buffers(), model.buffers(), strict=True):
            if averaged.is_floating_point():  # the mean of infinite values is NaN
                torch.where(averaged.isnan(), trained, averaged, out=averaged)
        if self.keep_zeros:
            for averaged, trained in zip(self.module.parameters(), model.parameters(), strict=True):
                averaged.mul_(trained != 0)

    @torch.no_grad()
    def copy_from(self, model: nn.Module, frozen: set[int]) -> None:
        """Take the values of those parameters of `model` whose ids are in `frozen`, instead of averages."""
        for averaged, trained in zip(self.module.parameters(), model.parameters(), strict=True):
            if id(trained) in frozen:
                averaged.copy_(trained)


def _averaging(decay: float) -> Callable[[PARAM_LIST, PARAM_LIST, Tensor | int], None]:
    """Return the update of several averages of one type by the current values."""
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: PARAM_LIST, current: PARAM_LIST, count: Tensor | int) -> None:
        if averaged[0].is_floating_point() or averaged[0].is_complex():
            average(averaged, current, count)
        else:
            torch._foreach_copy_(averaged, current)

    return update
