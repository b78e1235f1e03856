"""Bisection of a condition that holds from some value on."""

from __future__ import annotations

from collections.abc import Callable

HALVINGS = 60  # beyond the precision of a float


def least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return the smallest value in ``low … high`` for which a monotone condition holds; `high` if none is known to.

    Unlike the root finders of SciPy, it never returns a value on the other side, except `high`, which is not tried.

    Examples
    --------
    >>> least(lambda x: x * x >= 2, 0.0, 2.0)
    1.414213562373095...
    >>> least(lambda x: False, 0.0, 1.0)
    1.0
    """
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
