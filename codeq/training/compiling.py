"""Compilation of the forward pass with `torch.compile`, with one clear error where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from codeq.common.errors import CodeqError


def check_compiler(device: torch.device) -> None:
    """Compile a tiny function, so that a missing compiler is found before a training begins.

    Raises
    ------
    CodeqError
        If that fails, as without a C++ compiler on a CPU or without Triton on a GPU.
    """

    def successor(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    try:
        torch.compile(successor, dynamic=False)(torch.zeros(1, device=device))
    except Exception as error:  # of compilers that torch starts; of a Python or a platform that it does not support
        raise _refusal(f"torch.compile does not work for device '{device}' of this machine", error) from error


@contextmanager
def compiled(wanted: bool) -> Iterator[None]:
    """Name the setting in errors of the compiler, if it is wanted, as long as the context lasts.

    Raises
    ------
    CodeqError
        For a model that cannot be compiled.

    Examples
    --------
    >>> with compiled(False):
    ...     torch.ones(1) + 1
    tensor([2.])
    """
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    try:
        yield
    except TorchDynamoException as error:
        raise _refusal("torch.compile cannot compile this training", error) from error


def _refusal(what: str, error: Exception) -> CodeqError:
    reason = f"{type(error).__name__}: {str(error)[:300]}"
    return CodeqError(f"use_compile=True: {what}; set use_compile: false. {reason}")
