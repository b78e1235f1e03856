"""Exact quantiles of several tensors at once, by selection instead of sorting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from codeq.common.default_device import cpu_by_default
from codeq.quantizer.scale import QUANTILE, absmax

ALIGNED_BUDGET = 2**22  # values of the padded table; above, layers are large enough to fill a GPU one by one


@torch.no_grad()
def joint_absmax(magnitudes: Sequence[Tensor]) -> Tensor:
    """Compute the robust magnitude `R` of several layers: for each the 0.99 quantile of its magnitudes (paper §6.1).

    Parameters
    ----------
    magnitudes : sequence of Tensor
        ``|w|`` of each layer, `[n]`, not empty, on one device and of one dtype.

    Returns
    -------
    Tensor
        `[len(magnitudes)]`, in the unit of the weights; the same values as `absmax` of each layer.

    Examples
    --------
    >>> joint_absmax([torch.arange(101.0), torch.tensor([2.0])]).tolist()
    [99.0, 2.0]
    """
    kind, dtype = magnitudes[0].device.type, magnitudes[0].dtype
    if kind == "cpu" and dtype in (torch.float32, torch.float64):
        return _partitioned(magnitudes)
    if kind == "cuda" and _width([len(m) for m in magnitudes]) * len(magnitudes) <= ALIGNED_BUDGET:
        return _aligned(magnitudes)
    return torch.stack([absmax(magnitude) for magnitude in magnitudes])


def _position(size: int) -> float:
    """Return the place of the quantile among `size` sorted values, between two of them."""
    return QUANTILE * (size - 1)


def _partitioned(magnitudes: Sequence[Tensor]) -> Tensor:
    below, above, fractions = [], [], []
    for magnitude in magnitudes:
        position = _position(len(magnitude))
        low = int(position)
        # NumPy selects one element with vector instructions, eight times as fast as `Tensor.topk` on a CPU; selecting
        # two neighbours is slow there, but the second is the least of what lies above the first.
        parted = np.partition(magnitude.numpy(), low)
        below.append(parted[low])
        above.append(parted[low + 1 :].min(initial=np.inf) if low + 1 < len(parted) else parted[low])
        fractions.append(position - low)
    values = torch.from_numpy(np.array([below, above]))
    return torch.lerp(values[0], values[1], torch.tensor(fractions, dtype=values.dtype, device="cpu"))


def _aligned(magnitudes: Sequence[Tensor]) -> Tensor:
    """Select in all rows of one table at once: each row is padded so that its quantile has the same place."""
    first = magnitudes[0]
    index, place, fractions = _alignment(tuple(len(m) for m in magnitudes), first.dtype, first.device)
    # Filled on the device: a copy from the host would make it wait.
    padding = (torch.full_like(first[:1], -torch.inf), torch.full_like(first[:1], torch.inf))
    table = torch.cat([*magnitudes, *padding])[index]
    below = table.kthvalue(place + 1, dim=1).values
    above = table.kthvalue(place + 2, dim=1).values
    # A layer of so few weights that the quantile is its largest has padding above it.
    return torch.lerp(below, torch.where(fractions > 0, above, below), fractions)


def _width(sizes: Sequence[int]) -> int:
    """Return the columns of the table: the most values below a quantile, the most above one, and two between."""
    lows = [int(_position(size)) for size in sizes]
    return max(lows) + max(size - low for size, low in zip(sizes, lows, strict=True)) + 1


@lru_cache(maxsize=64)
@cpu_by_default()
@torch.inference_mode(False)  # a training could not use its tensors
def _alignment(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, int, Tensor]:
    """Return the index of each value of the table in the joined vectors, the quantile's column, and its fractions."""
    total, start = sum(sizes), 0
    place = max(int(_position(size)) for size in sizes)
    index = torch.full((len(sizes), _width(sizes)), total + 1)
    for row, size in zip(index, sizes, strict=True):
        shift = place - int(_position(size))
        row[:shift] = total
        row[shift : shift + size] = torch.arange(start, start + size)
        start += size
    fractions = torch.tensor([_position(size) - int(_position(size)) for size in sizes], dtype=dtype)
    return index.to(device), place, fractions.to(device)
