"""Tracking of the elements that an operation moves, by running it on their numbers in place of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from codeq.flow.values import FIXED, Value

SAMPLE = 2.0**40  # offset between the two inputs of the batch: elements that mix inputs are recognized by it
SHIFT = 2.0**32  # offset of the second run: elements that shift by it are moved ones, the others are constants


def track_elements(
    run: Callable[[Callable[[Value], Tensor]], Any], sources: Sequence[Value], results: Sequence[Value]
) -> tuple[list[Value], list[np.ndarray]] | None:
    """Return the results of an operation that only moves elements, and the origin of each element.

    Parameters
    ----------
    run : callable
        Function that runs the operation, given a function from each value to the tensor to run it on.
    sources : sequence of Value
        Values whose elements are moved. Other arguments, such as an index, are used unchanged.
    results : sequence of Value
        Results of the operation, with correct data where they do not depend on the input. Their units are ignored.

    Returns
    -------
    tuple or None
        The results with their units, and for each the origins of its elements: indices into the flattened, concatenated
        sources, or -1 for a constant. `None` if the operation computes with elements, or mixes those of several inputs.
    """
    offsets = np.cumsum([0, *(value.data.numel() for value in sources)])
    first_number = dict(zip(sources, offsets.tolist(), strict=False))

    def numbered(value: Value, shift: float) -> Tensor:
        if value not in first_number:
            return value.batched()
        numbers = torch.arange(value.data.numel(), dtype=torch.float64).reshape(value.data.shape)
        spread = value.spread(numbers + (first_number[value] + shift))
        if value.batch is not None:
            spread.select(value.batch, 1).add_(SAMPLE)
        return spread

    plain, shifted = (pytree.tree_leaves(run(partial(numbered, shift=shift))) for shift in (0.0, SHIFT))
    units = np.append(
        np.concatenate([value.units.ravel() for value in sources]), FIXED
    )  # the last entry is that of origin -1
    batchless = torch.cat([torch.full((value.data.numel(),), value.batch is None) for value in sources])
    tracked: list[Value] = []
    origins: list[np.ndarray] = []
    for value, a, b in zip(results, plain, shifted, strict=True):
        if value.batch is None or value.folded:
            return None
        first, second = a.unbind(value.batch)
        moved = b.select(value.batch, 0) - first
        origin = torch.where(moved == SHIFT, first, -1.0).long()
        if not bool(((moved == SHIFT) | (moved == 0)).all()) or bool((origin >= len(batchless)).any()):
            return None
        difference = torch.where((origin < 0) | batchless[origin.clamp(min=0)], 0.0, SAMPLE)
        if not torch.equal(second - first, difference):
            return None
        moved_units = units[origin.numpy()]
        data = value.data
        if data.is_floating_point():
            data = torch.where(torch.from_numpy(np.array(moved_units != FIXED)), 0.0, data)
        tracked.append(Value(data, moved_units, value.batch))
        origins.append(origin.numpy())
    return tracked, origins
