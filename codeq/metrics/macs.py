"""MACs of one layer, computed from its weights and null channels."""

from __future__ import annotations

from math import prod

from torch import Tensor

from codeq.metrics.nulls import NullChannels, groups_of


def effective_macs(weight: Tensor, null_in: NullChannels, null_out: NullChannels, m_h: int, m_w: int) -> int:
    """Count the MACs that remain when null channels are removed (the structured formula of DJPQ).

    ``(1 - p_in) c_in · (1 - p_out) c_out · k_h k_w m_h m_w``, group by group for a grouped convolution; zeros inside
    live channels still count.

    Parameters
    ----------
    weight : Tensor
        `[c_out, c_in / groups, ...]`; only its shape matters.
    null_in, null_out : NullChannels
        Of the `c_in` input and `c_out` output channels.
    m_h, m_w : int
        Height and width of the output.

    Returns
    -------
    int
        MACs of one input.

    Examples
    --------
    >>> import torch
    >>> effective_macs(torch.ones(4, 2, 3, 3), NullChannels.none(2), NullChannels.none(4), 4, 4)
    1152
    """
    groups = groups_of(weight, null_in)
    live_in = (~null_in.mask()).reshape(groups, -1).sum(axis=1)
    live_out = (~null_out.mask()).reshape(groups, -1).sum(axis=1)
    return int(live_in @ live_out) * prod(weight.shape[2:]) * m_h * m_w


def unstructured_macs(weight: Tensor, m_h: int, m_w: int) -> int:
    """Count the MACs of the non-zero weights, paper eq. (21).

    Examples
    --------
    >>> import torch
    >>> unstructured_macs(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), 4, 4)
    32
    """
    return int(weight.count_nonzero()) * m_h * m_w
