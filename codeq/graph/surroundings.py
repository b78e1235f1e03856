"""State of PyTorch that a recording changes for a while, or that would change what it sees.

The default type, the random numbers and most switches of PyTorch belong to the process, not to a thread. Two threads
that set and restore them at the same time would leave what the other one had set, so they take turns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any

import torch

_TURN = RLock()


@contextmanager
def recording_state(dtype: torch.dtype) -> Iterator[None]:
    """Prepare for a recording in `dtype`, with calls as they are written.

    Gradients are switched on, so that a forward that switches them off is noticed; the tensors that are recorded need
    none.
    """
    with (
        default_dtype(dtype),
        restored_random_numbers(),
        _without_fast_path(),
        _without_compiler(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` the type of new tensors without one.

    Examples
    --------
    >>> with default_dtype(torch.float64):
    ...     torch.zeros(1).dtype
    torch.float64
    """
    with _TURN:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def restored_random_numbers() -> Iterator[None]:
    """Restore the random numbers of the CPU afterwards."""
    with _TURN, torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Compute Transformer layers by the calls inside them, not in one call."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _without_compiler() -> AbstractContextManager[Any]:
    """Run functions and modules inside the model that `torch.compile` compiled as they were written."""
    compiled = "torch._dynamo" in sys.modules  # it takes seconds to import, and without it nothing is compiled
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def leave_autocast() -> None:
    """Compute in the precision of the recording although the forward has entered `torch.autocast`."""
    torch.set_autocast_enabled("cpu", False)
