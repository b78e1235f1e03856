"""Labels of points that overlap neither each other nor the points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DISTANCES = (7, 14, 22, 32, 44, 60)  # points between a point and its label, tried in this order
DIRECTIONS = (0, 90, 180, 270, 45, 135, 225, 315)  # degrees
LEADER = 10  # points, beyond which a line leads to the label
POINT = 4.0  # points around a mark that labels keep free


@dataclass(frozen=True)
class Label:
    """Text of a point, in the axes' coordinates of data."""

    text: str
    x: float
    y: float
    color: str


def place_labels(axes: Axes, labels: Sequence[Label], others: np.ndarray, size: float = 7.5) -> None:
    """Write each label at the nearest free place around its point, with a line to it if that is far.

    Call it last: it depends on the limits of the axes and on the layout of the figure. A label without a free place is
    written where it overlaps least.

    Parameters
    ----------
    axes : Axes
        Axes that show the points.
    labels : sequence of Label
        Labels in the order in which they choose their places.
    others : array
        `[N, 2]`, points that are not labelled but kept free, too.
    size : float
        Font size in points.
    """
    if not labels:
        return
    figure: Any = axes.figure
    figure.draw_without_rendering()  # sets the layout
    pixels = figure.dpi / 72
    marks = np.concatenate([np.array([(label.x, label.y) for label in labels]), others.reshape(-1, 2)])
    at = axes.transData.transform(marks)
    at = at[np.isfinite(at).all(axis=1)]  # nothing is at a cost of 0 on a logarithmic axis
    taken = np.concatenate([at - POINT * pixels, at + POINT * pixels], axis=1)  # left, bottom, right, top
    inside = axes.get_window_extent()
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": size, "ha": "center", "va": "center"}
    for label in labels:
        centre = axes.transData.transform((label.x, label.y))
        if not np.isfinite(centre).all():
            continue
        note = axes.annotate(label.text, (label.x, label.y), (0, 0), **look)
        text = note.get_window_extent()
        note.remove()
        half = np.array([text.width, text.height]) / 2 + pixels
        best, least = (0.0, 0.0), math.inf
        for distance in DISTANCES:
            for angle in map(math.radians, DIRECTIONS):
                direction = np.array([math.cos(angle), math.sin(angle)])
                shift = direction * (distance * pixels + np.abs(direction) * half)
                low, high = centre + shift - half, centre + shift + half
                sides = np.minimum(taken[:, 2:], high) - np.maximum(taken[:, :2], low)
                outside = np.maximum([inside.x0, inside.y0] - low, 0) + np.maximum(high - [inside.x1, inside.y1], 0)
                cost = np.prod(np.maximum(sides, 0), axis=1).sum() + outside.sum() * 2 * half.max()
                if cost < least:
                    best, least = (shift[0] / pixels, shift[1] / pixels), cost
            if not least:
                break
        box = centre + np.array(best) * pixels
        taken = np.concatenate([taken, [[*(box - half), *(box + half)]]])
        gap = np.hypot(*np.maximum(np.abs(best) - half / pixels, 0))
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": label.color, "shrinkA": 0, "shrinkB": 2}
        note = axes.annotate(
            label.text, (label.x, label.y), best, **look, color=label.color, zorder=5,
            arrowprops=line if gap > LEADER else None,
        )  # fmt: skip
        note.set_in_layout(False)
