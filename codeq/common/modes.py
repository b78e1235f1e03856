"""Modes of a model and of PyTorch for a while, and those found before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from codeq.common.checks import check_model


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
    check_model(model)
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


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Compute in the number formats of the tensors, on the CPU and on `device`, whatever the caller has switched on.

    Examples
    --------
    >>> x = torch.ones(2, 2)
    >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(x.device):
    ...     (x @ x).dtype
    torch.float32
    """
    with ExitStack() as entered:
        for kind in {"cpu", device.type}:
            if torch.amp.is_autocast_available(kind):
                entered.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def training_modes(device: torch.device) -> Iterator[None]:
    """Compute gradients on `device`, without autocast, whatever the caller has switched on or off.

    Examples
    --------
    >>> with torch.inference_mode(), training_modes(torch.device("cpu")):
    ...     torch.ones(1, requires_grad=True).sum().requires_grad
    True
    """
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(device):
        yield
