"""Forward pass of a user's model, with one clear error where it fails."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from codeq.common.batches import described
from codeq.common.errors import CodeqError


def forward(model: nn.Module, x: Tensor, mode: str = "") -> Any:
    """Return what `model` computes for `x`.

    Parameters
    ----------
    model : Module
        In any mode.
    x : Tensor
        Inputs `[N, …]`.
    mode : str
        Named after the verb of the message, such as ``" in training mode"``.

    Raises
    ------
    CodeqError
        If the model fails, with dtype and shape of `x`, which often are the reason.

    Examples
    --------
    >>> import torch
    >>> forward(nn.Linear(4, 2).double(), torch.zeros(1, 4))
    Traceback (most recent call last):
    ...
    codeq.CodeqError: Linear fails on inputs of float32 [1, 4]: RuntimeError: ...
    """
    try:
        return model(x)
    except CodeqError:
        raise
    except Exception as error:  # whatever a model raises
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CodeqError(f"{type(model).__name__} fails{mode} on inputs of {described(x)}: {reason}") from error
