"""State of PyTorch that would change what a recording sees: compiled functions, and autocast."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_compiler() -> AbstractContextManager[Any]:
    """Run functions and modules inside the model that `torch.compile` compiled as they were written."""
    compiled = "torch._dynamo" in sys.modules  # it takes seconds to import, and without it nothing is compiled
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def leave_autocast() -> None:
    """Compute in the precision of the recording although the forward has entered `torch.autocast`."""
    torch.set_autocast_enabled("cpu", False)
