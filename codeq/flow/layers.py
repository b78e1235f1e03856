"""Rule of channel flow for conv and linear layers: the units that each output channel depends on."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from codeq.flow.values import FIXED, Units, Value
from codeq.quantizer.transposed import TRANSPOSED_TYPES, swap_channels, transposed_groups

Borders = Literal["map", "live"]
EVEN = 1e-13  # largest relative spread of a map that counts as constant, which allows for rounding


def kernels(layer: nn.Module) -> np.ndarray:
    """Return `[c_out, c_in / groups]`, true for the kernels of a conv or linear layer with a non-zero weight.

    Examples
    --------
    >>> kernels(nn.ConvTranspose2d(4, 6, 3, groups=2)).shape
    (6, 2)
    """
    weight = cast(Tensor, layer.weight).detach() != 0
    nonzero = weight if weight.ndim == 2 else weight.flatten(2).any(2)
    return swap_channels(nonzero, transposed_groups(layer)).numpy()


def same_direction(layer: nn.Module | None, other: nn.Module | None) -> bool:
    """Return whether both are transposed convolutions, or none of them is."""
    return isinstance(layer, TRANSPOSED_TYPES) == isinstance(other, TRANSPOSED_TYPES)


def by_channel(layer: nn.Module, array: np.ndarray) -> np.ndarray:
    """Return an input or result of a layer, without the batch, as `[channels, elements]`."""
    array = np.moveaxis(array, -1, 0) if isinstance(layer, nn.Linear) else array
    return array.reshape(len(array), -1)


def spread_over_space(layer: nn.Module, channels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of one number for each channel, broadcast to the shape of the layer's result."""
    if isinstance(layer, nn.Linear):
        return np.broadcast_to(channels, shape)
    return np.broadcast_to(channels.reshape(-1, *[1] * (len(shape) - 1)), shape)


def uneven(layer: nn.Module, maps: Tensor) -> np.ndarray:
    """Return `[channels]`, true for the channels of a fixed result, without the batch, that vary over space."""
    rows = by_channel(layer, maps.numpy())
    scale = np.abs(rows).max(initial=0.0)
    return np.ptp(rows, axis=1) > EVEN * scale if rows.shape[1] else np.zeros(len(rows), dtype=bool)


def output_units(units: Units, nonzero: np.ndarray, groups: int, read: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Make a unit for every output channel that depends on the network's input.

    Parameters
    ----------
    units : Units
        Units of the network so far.
    nonzero : array of bool
        `[c_out, c_in / groups]`.
    groups : int
        Number of groups of the convolution.
    read : array of int
        `[c_in, elements]`, units of the input.
    extra : array of bool
        `[c_out]`, channels to make a unit for in any case.

    Returns
    -------
    array of int
        `[c_out]`, `FIXED` where a channel does not depend on the input.
    """
    result = np.full(len(nonzero), FIXED, dtype=np.int64)
    size = len(nonzero) // groups
    for group, rows in enumerate(nonzero.reshape(groups, size, -1)):
        group_units = read[group * rows.shape[1] : (group + 1) * rows.shape[1]]
        channel, unit = _pairs(group_units)
        order = np.argsort(unit, kind="stable")
        distinct, starts = np.unique(unit[order], return_index=True)
        if len(distinct):
            reads = np.logical_or.reduceat(rows[:, channel[order]], starts, axis=1)
        else:
            reads = np.zeros((size, 0), dtype=bool)
        for row in np.flatnonzero(reads.any(axis=1) | extra[group * size : (group + 1) * size]):
            result[group * size + row] = units.fresh(distinct[reads[row]])
    return result


def _pairs(read: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of a channel and a unit that occurs in it, without `FIXED`."""
    if (read == read[:, :1]).all():
        channel = np.flatnonzero(read[:, 0] != FIXED)
        return channel, read[channel, 0]
    found = [(c, u) for c, row in enumerate(read) for u in np.unique(row) if u != FIXED]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def positions(layer: nn.Module, x: tuple[int, ...], y: tuple[int, ...]) -> int:
    """Return the number of uses of each weight, given the shapes of one input and result without the batch.

    Examples
    --------
    >>> positions(nn.Conv2d(3, 8, 3), (3, 6, 6), (8, 4, 4)), positions(nn.Linear(3, 8), (5, 3), (5, 8))
    (16, 5)
    """
    if isinstance(layer, nn.Linear):
        return int(np.prod(y[:-1]))
    return int(np.prod(x[1:] if isinstance(layer, TRANSPOSED_TYPES) else y[1:]))


def borders_uneven(layer: nn.Module, value: Value) -> np.ndarray:
    """Return `[c_in]`, true for fixed channels whose contribution to some filter varies over space.

    This is typical of a constant channel in front of a zero-padded convolution, which contributes less at the borders.
    """
    fixed = (by_channel(layer, value.units) == FIXED).all(axis=1)
    varying = np.zeros(len(fixed), dtype=bool)
    if isinstance(layer, nn.Linear):
        return varying
    without_bias = {"bias": torch.zeros_like(cast(Tensor, layer.bias))} if layer.bias is not None else {}
    for channel in np.flatnonzero(fixed):
        single = torch.zeros_like(value.data)
        single[channel] = value.data[channel]
        if bool(single.any()):
            contribution = torch.func.functional_call(layer, without_bias, (single[None],))[0]
            varying[channel] = uneven(layer, contribution).any()
    return varying
