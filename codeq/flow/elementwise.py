"""Rule of channel flow for operations that broadcast their operands and combine them element by element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from codeq.flow.values import FIXED, Units, Value, compressed


def aligned_shape(operand: Value, result: Value) -> tuple[int, ...] | None:
    """Return the shape of an operand, without the batch, padded to the rank of the result that it is broadcast to.

    Returns `None` if the batch is another dimension of the operand than of the result.
    """
    shape = list(operand.data.shape)
    rank, at = result.data.ndim, cast(int, result.batch)
    if operand.batch is None:
        from_right = rank - at  # dimensions of the result to the right of the batch
        if len(shape) > from_right:
            if shape[len(shape) - 1 - from_right] != 1:
                return None
            del shape[len(shape) - 1 - from_right]
    elif operand.data.ndim - operand.batch != rank - at:
        return None
    return (1,) * (rank - len(shape)) + tuple(shape)


def elementwise_units(units: Units, operands: Sequence[Value], result: Value, multiplies: bool) -> np.ndarray | None:
    """Return the units of the result, or `None` if the batch is another dimension of an operand than of the result.

    An element with one operand that depends on the input belongs to that operand's unit; with several, to a unit
    computed from all of them. A product with a fixed 0 is 0.

    Parameters
    ----------
    units : Units
        Units of the network so far.
    operands : sequence of Value
        Tensors that are combined, without scalars.
    result : Value
        Value of the shape of the result; its data and units are ignored.
    multiplies : bool
        Whether the operation is a product.

    Examples
    --------
    >>> import torch
    >>> units = Units()
    >>> def value(*of):
    ...     return Value(torch.zeros(len(of)), np.array(of), batch=0)
    >>> a, b = units.fresh([]), units.fresh([])
    >>> elementwise_units(units, [value(a, a, 0), value(b, 0, 0)], value(0, 0, 0), multiplies=False).tolist()
    [3, 1, 0]
    >>> elementwise_units(units, [value(a, a, 0), value(b, 0, 0)], value(0, 0, 0), multiplies=True).tolist()
    [4, 0, 0]
    """
    if result.batch is None or result.folded:
        return None
    shapes = [aligned_shape(operand, result) for operand in operands]
    if any(shape is None for shape in shapes):
        return None
    # Dimensions along which the units are equal are compressed: sorting whole feature maps would be slow.
    operand_units = [compressed(v.units.reshape(shape)) for v, shape in zip(operands, shapes, strict=True)]
    zeros = [np.zeros((1,) * result.data.ndim, dtype=bool)]
    if multiplies:
        zeros = [
            compressed(((v.units == FIXED) & (v.data.numpy() == 0)).reshape(shape))
            for v, shape in zip(operands, shapes, strict=True)
        ]
    everything = np.broadcast_arrays(*operand_units, *zeros)
    rows = np.stack(everything[: len(operand_units)], axis=-1)
    dead = np.logical_or.reduce(everything[len(operand_units) :])
    merged = _merged(units, np.where(dead[..., None], FIXED, rows))
    return np.broadcast_to(merged, result.data.shape)


def _merged(units: Units, rows: np.ndarray) -> np.ndarray:
    """Return the unit of each combination of operands, `[..., operands]` → `[...]`."""
    distinct, place = np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)
    merged = np.empty(len(distinct), dtype=np.int64)
    for i, row in enumerate(distinct):
        live = np.unique(row[row != FIXED])
        merged[i] = FIXED if not len(live) else live[0] if len(live) == 1 else units.fresh(live)
    return merged[place.ravel()].reshape(rows.shape[:-1])
