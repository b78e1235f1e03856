"""Null channels: those of a tensor that are zero for every input, by the ``"weights"`` accounting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from codeq.common.errors import CodeqError
from codeq.graph.channels import live_kernels


@dataclass(frozen=True)
class NullChannels:
    """The channels of a tensor that are zero for every input.

    Parameters
    ----------
    indices : set of int
        Null channels, each in ``range(total)``.
    total : int
        Number of channels.

    Raises
    ------
    CodeqError
        For an index outside ``range(total)``.

    Examples
    --------
    >>> nulls = NullChannels({2, 3}, 4)
    >>> nulls.count, nulls.ratio, nulls.intersect(NullChannels({3}, 4)).indices == {3}
    (2, 0.5, True)
    """

    indices: set[int] | frozenset[int]
    total: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", frozenset(self.indices))
        if any(not 0 <= index < self.total for index in self.indices):
            raise CodeqError(f"indices={sorted(self.indices)}: must lie in 0 … {self.total - 1}")

    @property
    def count(self) -> int:
        """Number of null channels."""
        return len(self.indices)

    @property
    def ratio(self) -> float:
        """Fraction of channels that are null; 0 of no channels is 0."""
        return self.count / self.total if self.total else 0.0

    def intersect(self, other: NullChannels) -> NullChannels:
        """Return the channels that are null in both, as after a residual sum.

        Raises
        ------
        CodeqError
            If the two have different numbers of channels.
        """
        if self.total != other.total:
            raise CodeqError(f"null channels of {self.total} and of {other.total} channels do not combine")
        return NullChannels(self.indices & other.indices, self.total)

    @classmethod
    def none(cls, total: int) -> NullChannels:
        """Return `total` channels of which none is null."""
        return cls(frozenset(), total)

    @classmethod
    def all(cls, total: int) -> NullChannels:
        """Return `total` channels that are all null."""
        return cls(frozenset(range(total)), total)

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> NullChannels:
        """Return the channels where the boolean array `mask` is true."""
        return cls(frozenset(np.flatnonzero(mask).tolist()), len(mask))

    def mask(self) -> np.ndarray:
        """Return a boolean array `[total]`, true for null channels."""
        mask = np.zeros(self.total, dtype=bool)
        mask[list(self.indices)] = True
        return mask


def nonzero_kernels(weight: Tensor) -> np.ndarray:
    """Return a mask of the kernels with a non-zero element: `[c_out, c_in / groups, ...]` → `[c_out, c_in / groups]`.

    Examples
    --------
    >>> import torch
    >>> nonzero_kernels(torch.tensor([[0.0, 1.0]])).tolist()
    [[False, True]]
    """
    nonzero = weight.detach() != 0
    return (nonzero if nonzero.ndim == 2 else nonzero.flatten(2).any(2)).cpu().numpy()


def null_output_channels(weight: Tensor, null_in: NullChannels) -> NullChannels:
    """Return the filters whose weights on all non-null input channels are zero.

    Parameters
    ----------
    weight : Tensor
        `[c_out, c_in / groups, ...]`, quantized.
    null_in : NullChannels
        Of the `c_in` input channels; more of them than `weight` has columns means a grouped convolution.

    Examples
    --------
    >>> import torch
    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> sorted(null_output_channels(weight, NullChannels({0}, 2)).indices)
    [0]
    """
    live = live_kernels(nonzero_kernels(weight), groups_of(weight, null_in), null_in.mask())
    return NullChannels.from_mask(~np.any(live, axis=1))


def groups_of(weight: Tensor, null_in: NullChannels) -> int:
    """Return the number of groups of a convolution, from its weight and its number of input channels."""
    groups, rest = divmod(null_in.total, weight.shape[1])
    if rest or not groups:
        raise CodeqError(f"null_in.total={null_in.total}: must be a multiple of the weight's {weight.shape[1]} inputs")
    return groups
