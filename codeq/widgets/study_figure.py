"""Scatter plot of runs for `StudyExplorer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.plots.axes import log_axis, spans_decades
from codeq.plots.names import distinct_labels, literal, shortened
from codeq.plots.style import HEAT, figure_class, styled
from codeq.plots.theme import ink
from codeq.plots.tradeoff import MARKERS, RUN_COLORS
from codeq.widgets.figures import DPI, SMALL, WIDTH

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CATEGORIES = 14  # of more values, a column of numbers has a colour scale
MAX_TEXT = 40  # characters
LINE = 0.18  # inches, of a legend


@styled
def scatter(table: pd.DataFrame, x: str, y: str, color: str | None, selected: int | None) -> Figure:
    """Draw each run as a point.

    Parameters
    ----------
    table : DataFrame
        One row per run.
    x, y : str
        Columns of numbers.
    color : str, optional
        Column that colours the points.
    selected : int, optional
        Index label of the run with a ring.

    Examples
    --------
    >>> import pandas as pd
    >>> figure = scatter(pd.DataFrame({"a": [1, 2], "b": [3, 4]}), "a", "b", None, 1)
    >>> figure.axes[0].get_xlabel()
    'a'
    """
    numbers = color is not None and table[color].dtype.kind in "iuf" and table[color].nunique() > MAX_CATEGORIES
    texts = [] if color is None or numbers else _texts(table[color])
    height = 4.6 + LINE * max(len(set(texts)) - MAX_CATEGORIES, 0) / 2  # for a legend of two columns
    figure = figure_class()(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    if color is None:
        axes.scatter(table[x], table[y], s=30, color=RUN_COLORS[0], zorder=3)
    elif numbers:
        _scale(axes, table, x, y, color)
    else:
        _categories(axes, table, x, y, color, texts)
    if selected is not None:
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": ink(), "linewidths": 1.6, "zorder": 4}
        axes.scatter(table.loc[[selected], x], table.loc[[selected], y], s=150, **ring)
    axes.set_xlabel(literal(shortened(x, MAX_TEXT)), fontsize=10)
    axes.set_ylabel(literal(shortened(y, MAX_TEXT)), fontsize=10)
    for which, column in (("x", x), ("y", y)):
        if spans_decades(table[column]):
            log_axis(axes, which)  # type: ignore[arg-type]
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure


def _texts(values: pd.Series) -> list[str]:
    texts = [f"{value:.10g}" if isinstance(value, float) else str(value) for value in values.tolist()]
    return distinct_labels(texts, MAX_TEXT)


def _scale(axes: Axes, table: pd.DataFrame, x: str, y: str, color: str) -> None:
    """Draw points on a scale of colours; those without a finite value are hollow."""
    values = table[color].astype(float)
    known = np.isfinite(values)
    title = literal(shortened(color, MAX_TEXT))
    points = axes.scatter(table[x][known], table[y][known], s=30, c=values[known], cmap=HEAT, zorder=3)
    figure: Any = axes.figure
    figure.colorbar(points, ax=axes, label=title)
    if not known.all():
        hollow: dict[str, Any] = {"facecolors": "none", "edgecolors": ink(), "linewidths": 0.8, "zorder": 3}
        axes.scatter(table[x][~known], table[y][~known], s=30, **hollow, label=f"{title}: none or infinite")
        figure.legend(loc="outside lower center", fontsize=SMALL, frameon=False)


def _categories(axes: Axes, table: pd.DataFrame, x: str, y: str, color: str, values: list[str]) -> None:
    texts = np.array(values)
    for k, text in enumerate(dict.fromkeys(texts.tolist())):
        rows = table[texts == text]
        look: dict[str, Any] = {"color": RUN_COLORS[k % len(RUN_COLORS)], "label": text}
        axes.scatter(rows[x], rows[y], s=30, marker=MARKERS[k // len(RUN_COLORS) % len(MARKERS)], zorder=3, **look)
    figure: Any = axes.figure
    title = literal(shortened(color, MAX_TEXT))
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False, title=title, title_fontsize=SMALL)
