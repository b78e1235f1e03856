"""Positions in a drawn figure: what lies where a picture was clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Region:
    """Place of axes with linear scales in their figure.

    Parameters
    ----------
    left, top, right, bottom : float
        Fractions of the figure's width and height, from the upper left corner.
    xlim, ylim : tuple of float
        Data at the left and right, and at the bottom and top.

    Examples
    --------
    >>> region = Region(0.5, 0.0, 1.0, 0.5, xlim=(0.0, 10.0), ylim=(0.0, 1.0))
    >>> region.data_at(0.75, 0.25), region.data_at(0.2, 0.25)
    ((5.0, 0.5), None)
    """

    left: float
    top: float
    right: float
    bottom: float
    xlim: tuple[float, float]
    ylim: tuple[float, float]

    def data_at(self, x: float, y: float) -> tuple[float, float] | None:
        """Return the data coordinates of a position in the figure, or `None` outside of the axes."""
        if not (self.left <= x <= self.right and self.top <= y <= self.bottom):
            return None
        across, up = (x - self.left) / (self.right - self.left), (self.bottom - y) / (self.bottom - self.top)
        (x0, x1), (y0, y1) = self.xlim, self.ylim
        return x0 + across * (x1 - x0), y0 + up * (y1 - y0)


def region(axes: Axes) -> Region:
    """Return the place of axes in their figure."""
    box = axes.get_position()
    return Region(box.x0, 1 - box.y1, box.x1, 1 - box.y0, axes.get_xlim(), axes.get_ylim())


def places(axes: Axes, points: np.ndarray) -> list[tuple[float, float]]:
    """Return where points `[N, 2]` in data coordinates were drawn, as fractions from the upper left corner.

    The figure must have been drawn, because layouts are computed then.
    """
    figure: Any = axes.figure
    drawn = figure.transFigure.inverted().transform(axes.transData.transform(points))
    return [(float(x), float(1 - y)) for x, y in drawn]


def nearest(places: Sequence[tuple[float, float]], x: float, y: float) -> int | None:
    """Return the index of the place next to a position, or `None` if none is near: within 4 % of the width.

    Examples
    --------
    >>> nearest([(0.2, 0.2), (0.5, 0.5)], 0.51, 0.49), nearest([(0.2, 0.2)], 0.9, 0.9)
    (1, None)
    """
    distances = [float(np.hypot(x - across, y - down)) for across, down in places]
    found = int(np.argmin(distances)) if distances else None
    return found if found is not None and distances[found] <= 0.04 else None
