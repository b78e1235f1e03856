"""Trail of tried settings: a picture of accuracy and cost, and controls that return to them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
import numpy as np

from codeq.plots.axes import log_axis, spans_decades
from codeq.plots.style import figure_class, styled
from codeq.plots.theme import ink
from codeq.widgets.clicks import nearest, places
from codeq.widgets.figures import AFTER, BITS, DPI, SMALL, WIDTH
from codeq.widgets.panel import PictureCache, render_located, slider
from codeq.widgets.picture import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNTRIED = "–"  # position of the slider while the current setting was not tried
NO_OPTIONS = ((UNTRIED, ""), (UNTRIED + " ", ""))  # a slider with one position is an error in the browser


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
    axes.scatter(x[:1], y[:1], s=40, marker="s", color=ink(), zorder=3)
    axes.scatter(x[1:], y[1:], s=30, color=AFTER, zorder=3)
    if current is not None:
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": ink(), "linewidths": 1.6, "zorder": 4}
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


class Trail(ipywidgets.Box):
    """Tried settings as a picture, whose points can be clicked, and as a list with a slider that moves through it.

    Parameters
    ----------
    choose : callable
        Called with the key of the setting that was selected.

    Attributes
    ----------
    points : SelectionSlider
        The current setting; at its first position if that was not tried.
    image : Picture
        The picture, as PNG.
    list : HTML
        All tried settings.
    """

    def __init__(self, choose: Callable[[Any], object]) -> None:
        self._choose = choose
        self._updating = False
        self._image = PictureCache(64, lambda *state: render_located(trail_figure, _places, *state))
        self._places: list[tuple[float, float]] = []
        self._keys: list[Any] = []
        self.points = slider(ipywidgets.SelectionSlider, "return to", options=NO_OPTIONS)
        self.points.observe(self._on_select, "value")
        column = ipywidgets.VBox([self.points])
        column.add_class("codeq-controls")
        self.image = Picture(self._on_click)
        self.list = ipywidgets.HTML(layout={"margin": "0"})
        self.list.add_class("codeq-summary")
        super().__init__([column, self.image, self.list])
        self.add_class("codeq-grid")
        self.update({}, None)

    def update(self, tried: Mapping[Any, TriedPoint], current: Hashable) -> None:
        """Show the tried settings, hidden if there are none, and mark the current one if it is among them."""
        tried = dict(tried)  # a measurement in the background may add to it
        self._keys, points = list(tried), tuple(tried.values())
        position = self._keys.index(current) if current in tried else None
        (self.remove_class if points else self.add_class)("codeq-hidden")
        image, self._places = self._image(points, position) if points else (b"", [])
        self.image.show(image, f"Accuracy against relative BOPs of {len(points)} tried settings, listed beside it.")
        rows = [f"<b>{escape(str(p))}</b>" if k == position else escape(str(p)) for k, p in enumerate(points)]
        self.list.value = f"<ol style='margin:0;line-height:1.5'>{''.join(f'<li>{row}</li>' for row in rows)}</ol>"
        self._updating = True  # not a selection by the user
        try:
            numbered = enumerate(tried.items(), 1)
            options = (
                (UNTRIED, ""),
                *((f"{number}: {point.accuracy:.2%}", key) for number, (key, point) in numbered),
            )
            options = options if points else NO_OPTIONS
            # New options select the first one. During a selection by the user, the browser would be left with that,
            # because the index that it sent itself is not sent back.
            if self.points.options != options:
                self.points.options = options
            self.points.index = 0 if position is None else position + 1
        finally:
            self._updating = False

    def _on_select(self, change: Any) -> None:
        if not self._updating and change["new"] != "":
            self._choose(change["new"])

    def _on_click(self, x: float, y: float) -> None:
        found = nearest(self._places, x, y)
        if found is not None:
            self._choose(self._keys[found])


def _places(figure: Figure) -> list[tuple[float, float]]:
    axes = figure.axes[0]
    return places(axes, np.asarray(axes.lines[0].get_xydata()))
