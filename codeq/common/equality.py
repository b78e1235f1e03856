"""Differences of results relative to their size, where some of the results are not computed but set."""

from __future__ import annotations

import numpy as np

REACH = 1e8  # how many times larger a value may be to belong to the scale of another
NATURAL = 1e-6  # size below which values may be what rounding leaves of larger ones


def relative_error(expected: np.ndarray, error: np.ndarray) -> float:
    """Return the largest error of `expected`, relative to the largest value of its scale.

    For each value that is the largest one that exceeds it at most `REACH` times: a mask of ``-1e30`` among logits does
    not hide their errors. The errors themselves are returned if all values are zero, as nothing tells their scale.

    Parameters
    ----------
    expected, error : ndarray
        Finite values and their absolute errors, of one shape.

    Examples
    --------
    >>> relative_error(np.array([1.0, -4.0]), np.array([1.0, 0.0]))
    0.25
    >>> relative_error(np.array([1.0, -4.0, -1e30]), np.array([1.0, 0.0, 0.0]))
    0.25
    """
    sizes, wrong = np.abs(expected, dtype=np.float64).ravel(), error.ravel() > 0
    if not wrong.any():
        return 0.0
    errors = error.ravel()[wrong].astype(np.float64)
    floor = min(NATURAL, sizes.max())
    if not floor:
        return float(errors.max())
    own, ordered = np.maximum(sizes[wrong] + errors, floor), np.sort(sizes)
    scales = ordered[np.searchsorted(ordered, REACH * own, side="right") - 1]
    return float((errors / np.maximum(scales, floor)).max())
