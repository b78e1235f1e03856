"""Finds out where an operation moves elements by moving their numbers instead of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from codeq.flow.values import FIXED, Value

SAMPLE = 2.0**40  # numbers of the elements of the first input lie below it, those of the second above
SHIFT = 2.0**32  # what moves with the numbers is moved; what stays is a constant of the operation


def movements(
    run: Callable[[Callable[[Value], Tensor]], Any], sources: Sequence[Value], results: Sequence[Value]
) -> tuple[list[Value], list[np.ndarray]] | None:
    """Return the results of an operation that only moves elements, and where each element comes from.

    Parameters
    ----------
    run : callable
        Runs the operation, given the tensor to put in the place of each value.
    sources : sequence of Value
        Values whose elements are moved. Others, such as an index, are taken as they are.
    results : sequence of Value
        What the operation returns, with the right data where it does not depend on the input, and any units.

    Returns
    -------
    tuple or None
        The results with their units, and for each the numbers of its elements in the sources, one after the other, or
        -1 for a constant. `None` if the operation computes with elements, or mixes those of several inputs.
    """
    starts = np.cumsum([0, *(value.data.numel() for value in sources)])
    first_number = dict(zip(sources, starts.tolist(), strict=False))

    def numbered(value: Value, shift: float) -> Tensor:
        if value not in first_number:
            return value.batched()
        numbers = torch.arange(value.data.numel(), dtype=torch.float64).reshape(value.data.shape)
        spread = value.spread(numbers + (first_number[value] + shift))
        if value.batch is not None:
            spread.select(value.batch, 1).add_(SAMPLE)
        return spread

    low, high = (pytree.tree_leaves(run(partial(numbered, shift=shift))) for shift in (0.0, SHIFT))
    units = np.append(np.concatenate([value.units.ravel() for value in sources]), FIXED)  # the last serves origin -1
    batchless = torch.cat([torch.full((value.data.numel(),), value.batch is None) for value in sources])
    made: list[Value] = []
    origins: list[np.ndarray] = []
    for value, a, b in zip(results, low, high, strict=True):
        if value.batch is None or value.folded:
            return None
        first, second = a.unbind(value.batch)
        moved = b.select(value.batch, 0) - first
        origin = torch.where(moved == SHIFT, first, -1.0).long()
        if not bool(((moved == SHIFT) | (moved == 0)).all()) or bool((origin >= len(batchless)).any()):
            return None
        apart = torch.where((origin < 0) | batchless[origin.clamp(min=0)], 0.0, SAMPLE)
        if not torch.equal(second - first, apart):
            return None
        of = units[origin.numpy()]
        made.append(Value(torch.where(torch.from_numpy(of != FIXED), 0.0, value.data), of, value.batch))
        origins.append(origin.numpy())
    return made, origins
