"""Norms of groups of weights, with gradients that stay finite where a group is all zero."""

from __future__ import annotations

import torch
from torch import Tensor


def root_of_squares(squares: Tensor) -> Tensor:
    """Return the square root with gradient 0 at 0, where autograd's would be infinite and then NaN.

    Examples
    --------
    >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
    >>> root_of_squares(x).sum().backward()
    >>> x.grad.tolist()
    [0.0, 0.25]
    """
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def filter_norms(weight: Tensor) -> Tensor:
    """Return ``‖W[c]‖₂`` of every output filter: `[c_out, ...]` → `[c_out]`.

    Examples
    --------
    >>> filter_norms(torch.ones(2, 4, 3, 3)).tolist()
    [6.0, 6.0]
    """
    return torch.linalg.vector_norm(weight.flatten(1), dim=1)
