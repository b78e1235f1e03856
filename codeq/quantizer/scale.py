"""The scale of a quantizer: the robust magnitude `R` of its weights."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from codeq.common.errors import CodeqError

QUANTILE = 0.99

AbsmaxOver = Literal["all", "nonzero"]
Granularity = Literal["layer", "channel"]
Scale = Literal["absmax", "learned"]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse a value that is not one of a `Literal`'s."""
    allowed = get_args(choices)
    if value not in allowed:
        raise CodeqError(f"{name}={value!r}: must be {' or '.join(map(repr, allowed))}")


def absmax(w: Tensor, over: AbsmaxOver = "all", granularity: Granularity = "layer") -> Tensor:
    """The robust magnitude `R`: the 0.99 quantile of ``|w|``, linearly interpolated (paper §6.1). Carries no gradient.

    Parameters
    ----------
    w : Tensor
        Weights of any shape.
    over : {"all", "nonzero"}
        All weights (the paper's), or only those that are not exactly zero. When a recipe sets most latent weights to
        zero, the quantile over all of them collapses towards 0 and takes every level with it.
    granularity : {"layer", "channel"}
        One `R` for all weights (the paper's), or one for each index of the first dimension: an output channel of a
        conv or linear layer.

    Returns
    -------
    Tensor
        ``[]``, or ``[c_out, 1, …]`` with as many dimensions as `w`, in the unit of the weights.

    Raises
    ------
    CodeqError
        For another `over` or `granularity`, and for an empty tensor.

    Examples
    --------
    >>> absmax(torch.arange(101.0)).item()
    99.0
    >>> absmax(torch.tensor([0.0, 0.0, 0.0, 2.0]), over="nonzero").item()
    2.0
    >>> absmax(torch.tensor([[1.0, -1.0], [3.0, 3.0]]), granularity="channel").tolist()
    [[1.0], [3.0]]
    """
    check_choice("absmax_over", over, AbsmaxOver)
    check_choice("granularity", granularity, Granularity)
    if not w.numel():
        raise CodeqError("a layer without weights has no absmax")
    kept = () if granularity == "layer" else (len(w), *(1,) * (w.dim() - 1))
    magnitude = w.detach().abs().reshape(*kept, -1)
    size = magnitude.shape[-1]
    if over == "nonzero":
        # Sorting keeps the count of zeros on the device; a boolean mask would wait for a GPU, and so would an index.
        ordered = magnitude.sort().values
        zeros = (magnitude == 0).sum(-1, keepdim=True)
        place = zeros + QUANTILE * (size - zeros - 1).clamp(min=0).double()
        place = place.clamp(max=size - 1)
        below = place.floor().long()
        above = (below + 1).clamp(max=size - 1)
        weight = (place - below).to(magnitude.dtype)
        return torch.lerp(ordered.gather(-1, below), ordered.gather(-1, above), weight).squeeze(-1)
    position = QUANTILE * (size - 1)
    low = int(position)
    # Only the top hundredth is ordered: an order of magnitude faster than `torch.quantile`, and without its size limit.
    top = magnitude.topk(size - low).values
    return torch.lerp(top[..., -1], top[..., max(size - low - 2, 0)], position - low)
