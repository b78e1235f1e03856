"""Evaluation mode of a model for a while, and the modes of its modules afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, without gradients, and restore the mode of each one afterwards.

    Examples
    --------
    >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluation_mode(net):
    ...     net[0].training
    False
    >>> [module.training for module in net.modules()]
    [True, True, False]
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        _restore(modes)


def _restore(modes: dict[nn.Module, bool]) -> None:
    if any(modes.values()):
        for module, training in modes.items():
            # `train` may do more than to set the mode, such as to merge weights and to separate them again (LoRA).
            if type(module).train is not nn.Module.train:
                module.train(training)
    for module, training in modes.items():
        if module.training != training:
            module.training = training
