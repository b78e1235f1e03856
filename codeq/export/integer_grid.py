"""The integer grid `scale × integer` that holds the weights of a channel exactly, or as nearly as 8 bits can."""

from __future__ import annotations

import numpy as np

LARGEST = 127  # of a signed code of 8 bits, symmetric
# Where 8 bits are not exact anyway, 7 are used: kernels for AVX2 add two products of 8 bits in 16, 2 · 255 · 64 fits.
NEAREST = 64
EXACT = 1e-6  # relative to the largest weight of the channel: a few roundings of float32


def integer_grid(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the scale of each output channel, such that weights are near ``scale × integer``, integers up to ±127.

    The largest weight of the channel is one of its levels, ``n × scale``. The smallest `n` that holds all weights of
    the channel is taken; it exists for affine grids with ``m + Q ≤ 127`` (see `affine_offset`). Wider ones
    have none, nor has the dead-zone grid ``s q + δ sign(q)``: there the `n` of at most 64 with the smallest squared
    error is taken.

    Parameters
    ----------
    weight : array
        float32, any shape.
    axis : int
        Dimension of the output channels.

    Returns
    -------
    tuple of array
        Scales `[c_out]`, float32, and the integers `n` of the largest weights, `[c_out]`.

    Examples
    --------
    >>> scales, largest = integer_grid(np.array([[0.5, -1.5, 0.0], [0.3, 0.7, 0.1]], dtype=np.float32), axis=0)
    >>> [round(float(scale), 4) for scale in scales], largest.tolist()
    ([0.5, 0.1], [3, 7])
    """
    rows = np.moveaxis(np.asarray(weight, dtype=np.float64), axis, 0).reshape(weight.shape[axis], -1)
    top = np.abs(rows).max(axis=1, initial=0)
    safe = np.where(top > 0, top, 1.0)
    best, error = np.ones(len(rows), dtype=np.int64), np.full(len(rows), np.inf)
    open_rows = np.flatnonzero(top > 0)
    for n in range(1, LARGEST + 1):
        codes = rows[open_rows] * (n / safe[open_rows, None])
        distance = np.abs(codes - codes.round()) / n  # relative to the largest weight
        squared, exact = (distance**2).sum(axis=1), distance.max(axis=1) <= EXACT
        better = exact | ((squared < error[open_rows]) & (n <= NEAREST))
        best[open_rows[better]], error[open_rows[better]] = n, squared[better]
        open_rows = open_rows[~exact]
        if not len(open_rows):
            break
    # A channel of zeros takes a scale like its neighbours': runtimes multiply it with the scale of the input to store
    # the bias in.
    scales = np.where(top > 0, top / best, 0.0)
    scales[top == 0] = np.median(scales[top > 0]) if (top > 0).any() else 1e-3
    return scales.astype(np.float32), best


def integer_codes(weight: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """Return the nearest integers, in the shape of `weight`."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.clip((weight / scales.reshape(shape)).round(), -LARGEST, LARGEST).astype(np.int64)


def grid_error(weight: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference relative to the largest weight; 0 below `EXACT`.

    Examples
    --------
    >>> grid_error(np.array([1.0, 0.5]), np.array([1.0, 0.4])).round(3)
    np.float64(0.1)
    """
    top = np.abs(weight).max(initial=0)
    error = np.abs(weight - found).max(initial=0) / top if top else 0.0
    return error if error > 2 * EXACT else 0.0
