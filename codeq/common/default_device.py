"""PyTorch's default device, and what codeq computes on the CPU regardless of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Make the CPU the device of new tensors without one, instead of that of `torch.set_default_device`.

    Examples
    --------
    >>> with torch.device("meta"), cpu_by_default():
    ...     torch.zeros(1).device
    device(type='cpu')
    """
    if torch.get_default_device().type == "cpu":  # a mode of PyTorch slows down every call
        yield
        return
    with torch.device("cpu"):
        yield
