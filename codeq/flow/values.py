"""Tensors of channel flow: the dependence of each element on the input, and the values of independent elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codeq.graph.calls import BATCH

FIXED = 0  # the unit of every element that does not depend on the input


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor of the network, for a single input.

    Elements that are kept or removed together share a *unit*: a channel of a layer's result is one unit, and the
    elements that ReLU, slicing or flattening compute from it belong to the same unit.

    Parameters
    ----------
    data : Tensor
        The tensor without the batch dimension, in float64: exact where it is fixed, 0 where it depends on the input.
    units : array of int
        Unit of each element, of the same shape; `FIXED` where the element does not depend on the input.
    batch : int or None
        Batch dimension of the real tensor; `None` if it has none (a parameter).
    folded : bool
        Whether the batch is merged into one dimension with something else (windows of an image), or into every element
        (a mean over the batch). Then `data` and `units` have the real shape, for a batch of `BATCH`.
    """

    data: Tensor
    units: np.ndarray
    batch: int | None
    folded: bool = False

    @property
    def live(self) -> bool:
        """Whether any element depends on the input."""
        return bool((self.units != FIXED).any())

    def batched(self) -> Tensor:
        """Return a new tensor with the real shape, for a batch of `BATCH` equal inputs."""
        return self.spread(self.data)

    def spread(self, data: Tensor) -> Tensor:
        """Return `data`, of the shape of this value, repeated along the batch dimension."""
        if self.batch is None or self.folded:
            return data.clone()
        return torch.stack([data] * BATCH, dim=self.batch)


class Units:
    """Units of a network and the units that each is computed from, in order of execution.

    Examples
    --------
    >>> units = Units()
    >>> a, b = units.fresh([]), units.fresh([])
    >>> c = units.fresh([b])
    >>> units.needed(np.array([c])).tolist()  # FIXED, a, b, c
    [False, False, True, True]
    """

    def __init__(self) -> None:
        self._reads: list[np.ndarray] = [np.empty(0, dtype=np.int64)]

    def fresh(self, reads: Sequence[int] | np.ndarray) -> int:
        """Add a unit that is computed from the units `reads`, and return its number."""
        self._reads.append(np.asarray(reads, dtype=np.int64))
        return len(self._reads) - 1

    def needed(self, output: np.ndarray) -> np.ndarray:
        """Return for every unit whether one of the units `output` depends on it, directly or indirectly.

        `FIXED` is never needed: elements that do not depend on the input need not be computed.
        """
        needed = np.zeros(len(self._reads), dtype=bool)
        needed[output] = True
        for unit in range(len(self._reads) - 1, FIXED, -1):
            if needed[unit]:
                needed[self._reads[unit]] = True
        needed[FIXED] = False
        return needed

    def merge(self, rows: np.ndarray) -> np.ndarray:
        """Return the unit of a result computed from all elements of each row, `[rows, elements]` → `[rows]`.

        A row of a single unit keeps that unit; rows that mix the same units share one new unit.

        Examples
        --------
        >>> units = Units()
        >>> a, b = units.fresh([]), units.fresh([])
        >>> units.merge(np.array([[a, a], [a, b], [b, a]])).tolist()
        [1, 3, 3]
        """
        merged = rows[:, 0].copy() if rows.shape[1] else np.zeros(len(rows), dtype=np.int64)
        merged_units: dict[tuple[int, ...], int] = {}
        for i in np.flatnonzero((rows != merged[:, None]).any(axis=1)):
            reads = np.unique(rows[i])
            key = tuple(reads[reads != FIXED].tolist())
            if key not in merged_units:
                merged_units[key] = self.fresh(key)
            merged[i] = merged_units[key]
        return merged


def compressed(array: np.ndarray) -> np.ndarray:
    """Return `array` with each dimension along which all entries are equal reduced to size 1.

    Examples
    --------
    >>> compressed(np.array([[1, 1], [2, 2]])).tolist()
    [[1], [2]]
    """
    for axis in range(array.ndim):
        first = array.take([0], axis) if array.shape[axis] else array
        if array.shape[axis] > 1 and (array == first).all():
            array = first
    return array
