"""The one style of all figures: colours that keep their meaning, axes, titles and legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from codeq.common.errors import CodeqError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, a colour for each meaning: people who do not see red and green can tell them apart.
COLORS = {
    "accuracy": "#009E73",
    "training": "#7FCEB9",
    "unstructured": "#0072B2",
    "structured": "#D55E00",
    "dense": "#B8B8B8",
    "bits": "#CC79A7",
    "dead_zone": "#E69F00",
    "coefficient": "#7A7A7A",
    "alive": "#56B4E9",
    "dead": "#000000",
    "dead_input": "#8C8C8C",
}
PADDING = "#B8B8B8"
HEAT = "cividis"  # rises evenly in brightness, so it reads the same in print and to colour-blind eyes
LIFE = "gray"  # black is zero or dead, white is full or alive, as in the pictures of single channels and weights
MOST_NAMES = 120  # layer names beside each other before they would overlap


def new_figure(title: str, width: float = 8.0, height: float = 4.5) -> tuple[Figure, Axes]:
    """Return an empty figure of `width` × `height` inches and its axes, in the one style of all figures.

    Examples
    --------
    >>> figure, axes = new_figure("Accuracy")
    >>> axes.get_title("left")
    'Accuracy'
    """
    figure, grid = new_grid(1, 1, width, height)
    axes = grid[0, 0]
    axes.set_title(title, fontsize=12, loc="left", fontweight="bold")
    return figure, axes


def new_grid(rows: int, columns: int, width: float, height: float, **settings: Any) -> tuple[Figure, np.ndarray]:
    """Return an empty figure and its axes `[rows, columns]`; `settings` as for ``Figure.subplots``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **settings)
    for axes in grid.flat:
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def heading(figure: Figure, title: str, words: str = "") -> None:
    """Put `title` above a figure of several axes, and `words` small beside it."""
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", fontweight="bold")
    if words:
        figure.text(0.99, 0.995, words, fontsize=9, ha="right", va="top")


def legend(axes: Axes, **settings: Any) -> None:
    """Put the legend under the axes, where it covers no data."""
    figure: Any = axes.figure
    handles, labels = axes.get_legend_handles_labels()
    place = {"handles": handles, "labels": labels, "loc": "outside lower center", "ncols": 4} | settings
    figure.legend(**place, fontsize=9, frameon=False)


def need(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise a `CodeqError` if `table` lacks one of `columns` or has no rows."""
    for column in columns:
        if column not in table:
            raise CodeqError(f"{what} has no column {column!r}; needed: {', '.join(columns)}")
    if not len(table):
        raise CodeqError(f"{what} has no rows yet: no epoch has been recorded")


def epoch_axis(axes: Axes, epochs: pd.Series) -> None:
    """Number the x axis by epochs as people count them, from 1."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", fontsize=10)
    axes.set_xlim(epochs.iloc[0] + 0.5, epochs.iloc[-1] + 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3, linewidth=0.6)


def from_zero(axes: Axes) -> None:
    """Let the y axis begin at 0, and end at 1 or above: what is 0 throughout is no reason to show its millionths."""
    axes.set_ylim(0, max(1.0 if axes.dataLim.y1 == 0 else 0.0, axes.get_ylim()[1]))


def name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Give every layer a place on the x axis, in the order of `names`, with its name under it while there is room."""
    step = -(-len(names) // MOST_NAMES)
    places = range(0, len(names), step)
    shown = [names[place] for place in places]
    axes.set_xticks(places, shown, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, and number it 1, 2, 5, 10, 20 and so on."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis: Any = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def width_for_layers(count: int) -> float:
    """Return the width in inches of a figure with a place for each of `count` layers."""
    return min(max(8.0, 2 + 0.4 * count), 30.0)


def layer_axis(layers: pd.DataFrame, title: str) -> tuple[Figure, Axes]:
    """Return a figure wide enough for a name under every layer."""
    figure, axes = new_figure(title, width=width_for_layers(len(layers)), height=5)
    name_layers(axes, layers["layer"].tolist())
    return figure, axes
