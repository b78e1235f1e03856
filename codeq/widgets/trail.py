"""Trail of tried settings: a picture of accuracy and cost, and a list that returns to them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
import numpy as np

from codeq.plots.style import figure_class, log_axis, spans_decades, styled
from codeq.widgets.figures import AFTER, BITS, DPI, SMALL, WIDTH
from codeq.widgets.panel import DESCRIPTION, IMAGE_WIDTH, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 8  # of the list that are visible without scrolling


@dataclass(frozen=True)
class TriedPoint:
    """Accuracy and cost of one setting.

    Parameters
    ----------
    name : str
        Short description of the setting.
    relative_bops : float
        Unstructured BOPs / those of the dense 32-bit network, a fraction.
    accuracy : float
        Fraction of correct predictions.
    """

    name: str
    relative_bops: float
    accuracy: float

    def __str__(self) -> str:
        return f"{self.accuracy:.2%} at {100 * self.relative_bops:.2f} % BOPs, {self.name}"


@styled
def trail_figure(points: tuple[TriedPoint, ...], current: int | None) -> Figure:
    """Draw accuracy against relative BOPs of the tried settings, in their order.

    Parameters
    ----------
    points : tuple of TriedPoint
        The first one, as trained, is a square.
    current : int or None
        Position of the one with a ring.

    Examples
    --------
    >>> figure = trail_figure((TriedPoint("as trained", 0.04, 0.9), TriedPoint("3 bits", 0.02, 0.8)), 1)
    >>> figure.axes[0].lines[0].get_xydata().round(6).tolist()
    [[4.0, 90.0], [2.0, 80.0]]
    """
    figure = figure_class()(figsize=(WIDTH, 2.9), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    x = 100 * np.array([point.relative_bops for point in points])
    y = 100 * np.array([point.accuracy for point in points])
    axes.plot(x, y, color=BITS, linewidth=1)
    axes.scatter(x[:1], y[:1], s=40, marker="s", color="black", zorder=3)
    axes.scatter(x[1:], y[1:], s=30, color=AFTER, zorder=3)
    if current is not None:
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.6, "zorder": 4}
        axes.scatter(x[current], y[current], s=150, **ring)
    for number, at in enumerate(zip(x, y, strict=True), start=1):
        axes.annotate(str(number), at, xytext=(9, 4), textcoords="offset points", fontsize=SMALL)
    if spans_decades(x):
        log_axis(axes, "x")
    axes.set_title("Tried settings", fontsize=10, loc="left", fontweight="bold")
    axes.set_title("numbers as in the list · square: as trained · ring: current", fontsize=SMALL, loc="right")
    axes.set_xlabel("relative BOPs, unstructured (%)", fontsize=9)
    axes.set_ylabel("accuracy (%)", fontsize=9)
    axes.margins(0.08)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    return figure


class Trail(ipywidgets.HBox):
    """Tried settings as a picture, and as a list of which one can be selected by mouse or keyboard.

    Parameters
    ----------
    choose : callable
        Called with the key of the setting that was selected.

    Attributes
    ----------
    points : Select
        The list; nothing is selected if the current setting was not tried.
    image : Image
        The picture, as PNG.
    """

    def __init__(self, choose: Callable[[Any], object]) -> None:
        self._choose = choose
        self._updating = False
        wide = ipywidgets.Layout(width=f"{IMAGE_WIDTH}px", max_width="100%", object_fit="contain")
        self.image = ipywidgets.Image(format="png", layout=wide)
        narrow = ipywidgets.Layout(flex="1 1 220px", min_width="220px", max_width="640px", margin="0 0 0 12px")
        self.points = ipywidgets.Select(description="return to", rows=ROWS, style=DESCRIPTION, layout=narrow)
        self.points.observe(self._on_select, "value")
        super().__init__([self.image, self.points])
        self.layout = ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start", width="100%")
        self.update({}, None)

    def update(self, tried: Mapping[Any, TriedPoint], current: Hashable) -> None:
        """Show the tried settings, hidden if there are none, and mark the current one if it is among them."""
        keys = list(tried)
        position = keys.index(current) if current in tried else None
        self.layout.display = "flex" if keys else "none"
        self.image.value = render(trail_figure, tuple(tried.values()), position) if keys else b""
        self._updating = True  # not a selection by the user
        try:
            options = tuple((f"{number}: {point}", key) for number, (key, point) in enumerate(tried.items(), 1))
            # New options select the first one. During a selection by the user, the browser would be left with that,
            # because the index that it sent itself is not sent back.
            if self.points.options != options:
                self.points.options = options
            self.points.index = position
        finally:
            self._updating = False

    def _on_select(self, change: Any) -> None:
        if not self._updating and change["new"] is not None:
            self._choose(change["new"])
