"""How a training computes: deterministic algorithms, compilation, mixed precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms alone, if wanted, for as long as the context lasts.

    Examples
    --------
    >>> with deterministic(True):
    ...     torch.are_deterministic_algorithms_enabled()
    True
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class Autocast(nn.Module):
    """A model whose forward pass computes in bfloat16 where that is safe; parameters and quantizers stay float32.

    Parameters
    ----------
    model : Module
        Whose outputs may then be bfloat16.
    device : torch.device
        Where it runs.

    Examples
    --------
    >>> Autocast(nn.Linear(2, 2), torch.device("cpu"))(torch.zeros(1, 2)).dtype
    torch.bfloat16
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        self.kind = device.type

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to what the model returns."""
        with torch.autocast(self.kind, torch.bfloat16):
            return self.model(x)


def training_forward(model: nn.Module, device: torch.device, *, use_compile: bool, amp: bool) -> nn.Module:
    """Return what training calls in place of `model`; both have the same parameters."""
    compiled = cast(nn.Module, torch.compile(model)) if use_compile else model
    return Autocast(compiled, device) if amp else compiled
