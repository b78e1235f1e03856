"""Norms of groups of weights, with gradients that stay finite where a group is all zero."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from codeq.common.checks import is_number
from codeq.common.errors import CodeqError, quote
from codeq.quantizer.functions import widen
from codeq.quantizer.patterns import match_factors


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
    """Return ``‖W[c]‖₂`` of every output filter: `[c_out, ...]` → `[c_out]`, float32 for half-precision weights.

    Examples
    --------
    >>> filter_norms(torch.ones(2, 4, 3, 3)).tolist()
    [6.0, 6.0]
    """
    return torch.linalg.vector_norm(widen(weight).flatten(1), dim=1)


def layer_factors(model: nn.Module, weights: Mapping[str, float] | None) -> dict[str, float]:
    """Return the factor of every conv and linear layer: that of the first pattern that matches its name, or 1.

    Parameters
    ----------
    model : Module
        Any model.
    weights : mapping of str to float, or None
        Factors, finite and not negative, by glob on the full dotted name of a layer.

    Raises
    ------
    CodeqError
        For something other than such a mapping, and for a pattern that is no text or matches no conv or linear layer.

    Examples
    --------
    >>> layer_factors(nn.Sequential(nn.Linear(1, 1)), {"0": "high"})
    Traceback (most recent call last):
    ...
    codeq.CodeqError: weights: '0': 'high' must be a finite number of at least 0
    """
    if not isinstance(weights, Mapping | None):
        raise CodeqError(f"weights={str(weights)[:200]}: must map layer patterns to factors, e.g. {{'layer1.*': 0.5}}")
    for pattern, factor in (weights or {}).items():
        if not is_number(factor) or not 0 <= float(factor) < math.inf:
            raise CodeqError(f"weights: {quote(pattern)}: {str(factor)[:200]!r} must be a finite number of at least 0")
    return match_factors(model, {pattern: float(factor) for pattern, factor in (weights or {}).items()})
