"""Figures of the widgets: pure functions that return a matplotlib `Figure`.

The palettes (Okabe & Ito, Tol) are distinguishable with red-green colour blindness, and the text summary beside each
figure repeats what the colours show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codeq.plots import COLORS
from codeq.plots.layer_names import named_layers
from codeq.plots.names import literal
from codeq.plots.style import EDGE, figure_class, styled
from codeq.plots.theme import ink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AFTER = "#44AA99"
BITS = "#9A9A9A"
WIDTH, DPI = 6.4, 120  # inches, dots per inch; shown 600 pixels wide
SMALL = 8
TITLE_LEFT = 0.65  # inches, where a title begins at most
STEPS = [1, 2, 5, 10]  # of ticks
LETTER = 0.066  # inches, width of a letter of size SMALL


@styled
def message(text: str) -> Figure:
    """Return a figure with text only.

    Examples
    --------
    >>> message("no epoch yet").texts[0].get_text()
    'no epoch yet'
    """
    figure = figure_class()(figsize=(WIDTH, 1.2), dpi=DPI)
    figure.add_axes((0, 0, 1, 1)).set_axis_off()  # notebooks do not display a figure without axes
    figure.text(0.02, 0.5, literal(text), fontsize=10, va="center", wrap=True)
    return figure


def set_margins(figure: Figure, left: float, bottom: float, gap: float, panels: int) -> None:
    """Set margins in inches: constrained layout would draw everything twice."""
    width, height = figure.get_size_inches()
    right, top = 0.08, 0.24
    inner = (height - top - bottom - gap * (panels - 1)) / panels
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height, hspace=gap / inner
    )


def set_title(axes: Axes, title: str, note: str = "") -> None:
    """Write a title at the left and a note at the right.

    Beside long names of layers the axes are narrower than both: the title begins further to the left then.
    """
    figure: Any = axes.figure
    box = axes.get_position()
    room = max(box.x0 - TITLE_LEFT / figure.get_figwidth(), 0.0)
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold", x=-room / box.width)
    axes.set_title(note, fontsize=SMALL, loc="right")
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def bars(axes: Axes, x: np.ndarray, heights: Any, color: Any, width: Any = 0.7, bottom: float = 0.0) -> None:
    """Draw bars as one artist: `Axes.bar` creates one per bar, which takes half the time of a whole figure."""
    from matplotlib.collections import PolyCollection

    left, right = x - width / 2, x + width / 2
    low, high = np.full(len(x), bottom), bottom + np.asarray(heights, dtype=float)
    corners = np.stack([[left, low], [left, high], [right, high], [right, low]]).transpose(2, 0, 1)
    outline: dict[str, Any] = {"edgecolors": EDGE, "linewidths": 0.6}
    axes.add_collection(PolyCollection(list(corners), facecolors=color, snap=True, **outline), autolim=False)


def _by_layer(table: pd.DataFrame, panels: int) -> tuple[Figure, Any]:
    positions, labels, rule = named_layers(table["layer"].tolist())
    names = 0.87 * LETTER * max(map(len, labels)) + (0.15 if rule else 0)  # rotated by 60°
    figure = figure_class()(figsize=(WIDTH, 1.25 * panels + 0.54 + names), dpi=DPI)
    axes = figure.subplots(panels, sharex=True)
    set_margins(figure, left=0.6, bottom=0.15 + names, gap=0.35, panels=panels)
    for panel in axes[:-1]:
        panel.xaxis.set_visible(False)
    axes[-1].set_xticks(positions, labels, rotation=60, ha="right", rotation_mode="anchor")
    axes[-1].set_xlabel(rule, fontsize=SMALL)
    axes[-1].set_xlim(-0.7, len(table) - 0.3)
    return figure, axes


@styled
def what_if(now: pd.DataFrame, trained: pd.DataFrame) -> Figure:
    """Draw bits, density and dead filters of each layer after requantization, with marks at the trained values.

    Parameters
    ----------
    now, trained : DataFrame
        As `EvalResult.layers`: one row per layer, with `layer`, `bits`, `density`, `filters`, `dead_filters`.

    Examples
    --------
    >>> row = {"layer": ["a"], "bits": [4], "density": [0.5], "filters": [4], "dead_filters": [1]}
    >>> figure = what_if(pd.DataFrame(row), pd.DataFrame(row))
    >>> [float(axes.collections[0].get_paths()[0].vertices[:, 1].max()) for axes in figure.axes]
    [4.0, 50.0, 25.0]
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _by_layer(now, 3)
    x = np.arange(len(now))
    panels = [
        ("Bits of the weights", "bits", BITS, lambda t: t["bits"].astype(float)),
        ("Density: non-zero weights", "% of weights", COLORS["unstructured"], lambda t: 100 * t["density"]),
        ("Dead filters", "% of filters", COLORS["structured"], lambda t: 100 * t["dead_filters"] / t["filters"]),
    ]
    for panel, (title, unit, color, value) in zip(axes, panels, strict=True):
        set_title(panel, title)
        bars(panel, x, value(now), color)
        panel.hlines(value(trained), x - 0.45, x + 0.45, color=ink(), linewidth=2)
        panel.set_ylabel(unit, fontsize=9)
        panel.set_ylim(0, 105 if "%" in unit else 1.1 * max(8, now["bits"].max(), trained["bits"].max()))
        panel.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=STEPS))
        panel.grid(axis="y", alpha=0.3, linewidth=0.6)
        panel.set_axisbelow(True)
    axes[0].set_title("bars: current settings · lines: as trained", fontsize=SMALL, loc="right")
    return figure
