"""Common relative change of the settings of many layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codeq.common.bisection import least


def scale_to_mean(values: Sequence[float], mean: float, low: float, high: float) -> list[float]:
    """Multiply `values` by the one factor that gives them this mean, each limited to `low` … `high`.

    Values that are all equal become the mean. A value of 0 stays 0 beside others.

    Parameters
    ----------
    values : sequence of float
        In `low` … `high`, at least 0.
    mean : float
        In `low` … `high`.

    Examples
    --------
    >>> [round(value, 2) for value in scale_to_mean([0.1, 0.3], 0.1, 0, 1)]
    [0.05, 0.15]
    >>> [round(value, 2) for value in scale_to_mean([2, 4, 8], 6, 2, 8)]
    [3.33, 6.67, 8.0]
    """
    before = np.asarray(values, dtype=float)
    if before.min() == before.max():
        return [float(mean)] * len(before)
    factor = least(lambda f: (before * f).clip(low, high).mean() >= mean, 0.0, high / before[before > 0].min())
    return [float(value) for value in (before * factor).clip(low, high)]
