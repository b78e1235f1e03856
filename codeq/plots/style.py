"""Colours, and figure and axes factories shared by all figures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from codeq.common.errors import CodeqError
from codeq.plots.glyphs import without_glyph_warnings
from codeq.plots.names import literal, shortened
from codeq.plots.theme import theme_settings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

# Okabe & Ito's palette, one colour per meaning, distinguishable with red-green colour blindness.
COLORS = {
    "accuracy": "#009E73",
    "training": "#7FCEB9",
    "unstructured": "#0072B2",
    "structured": "#D55E00",
    "dense": "#B8B8B8",
    "bits": "#CC79A7",
    "dead_zone": "#E69F00",
    "coefficient": "#7A7A7A",
    "alive": "#FFFFFF",
    "dead": "#000000",
    "kept_alive": "#56B4E9",  # dead filter whose channel a skip connection keeps alive
    "idle": "#AA4499",  # filter that reads null channels only
    "dead_input": "#8C8C8C",
}
PADDING = "#B8B8B8"
EDGE = "#808080"  # around white and black areas, visible on both
HEAT = "cividis"  # perceptually uniform, also in greyscale print
LIFE = "gray"  # black: zero or dead, white: non-zero or alive

DRAWING = threading.RLock()  # the settings of matplotlib are global, and JupyterLab handles widgets in another thread
_in_style: ContextVar[bool] = ContextVar("in_style", default=False)


@contextmanager
def default_style() -> Iterator[None]:
    """Apply matplotlib's default settings and the theme: a user's ``text.usetex`` without LaTeX breaks no figure.

    Characters that the font does not have are drawn as boxes without a warning, see `codeq.plots.glyphs`. Other threads
    wait: two that restored the settings in another order than they took them would leave those of the first in force.

    Examples
    --------
    >>> import matplotlib
    >>> with matplotlib.rc_context({"text.usetex": True}), default_style():
    ...     matplotlib.rcParams["text.usetex"]
    False
    """
    import matplotlib

    if _in_style.get():  # figures that are saved are also drawn, and the defaults take 5 ms to set
        yield
        return
    before = _in_style.set(True)
    try:
        with DRAWING, matplotlib.rc_context(), without_glyph_warnings():
            _set_defaults()
            yield
    finally:
        _in_style.reset(before)


def _set_defaults() -> None:
    import matplotlib

    matplotlib.rcdefaults()
    matplotlib.rcParams["svg.hashsalt"] = "codeq"  # equal figures give equal files
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text, in the fonts of the reader
    matplotlib.rcParams["pdf.fonttype"] = 42  # TrueType, which journals require
    # Directly above the axes: looking for what is in the way there takes a tenth of the time of all figures.
    matplotlib.rcParams["axes.titley"] = 1.0
    matplotlib.rcParams.update(theme_settings())


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a drawing function so that it runs in `default_style`."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with default_style():
            return draw(*args, **kwargs)

    return drawn


@cache
def figure_class() -> type[Figure]:
    """Return the class of all figures, which also renders in `default_style`: ticks are created at that time."""
    from matplotlib.figure import Figure

    class StyledFigure(Figure):
        draw = styled(Figure.draw)
        savefig = styled(Figure.savefig)

    return StyledFigure


def new_figure(title: str, width: float = 8.0, height: float = 4.5) -> tuple[Figure, Axes]:
    """Return an empty figure of `width` × `height` inches and its axes.

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
    figure = figure_class()(figsize=(width, height), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **settings)
    for axes in grid.flat:
        axes.tick_params(labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def heading(figure: Figure, title: str, note: str = "") -> None:
    """Write `title` above a figure with several axes, and a small `note` at the right."""
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", fontweight="bold")
    if note:
        figure.text(0.99, 0.995, note, fontsize=9, ha="right", va="top")


@styled
def footnote(figure: Figure, notes: Sequence[str]) -> Figure:
    """Write below the axes of a figure what its numbers leave out or assume, and return the figure.

    Parameters
    ----------
    figure : Figure
        Unchanged if there are no notes.
    notes : sequence of str
        As `codeq.metrics.ModelStats.notes`. The first is written, in one line, with the number of the others.

    Examples
    --------
    >>> figure = footnote(new_figure("BOPs")[0], ["layer 'fc' is never called", "layer 'conv' is never called"])
    >>> figure.legends[0].get_title().get_text()
    "Note: layer 'fc' is never called (and 1 more)"
    """
    if notes:
        more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        room = int(14 * figure.get_figwidth()) - len(more)  # characters of this size in one line
        # As the title of a legend below the axes it has room of its own in the layout.
        below = figure.legends or [figure.legend(handles=[], loc="outside lower center", frameon=False)]
        below[0].set_title(literal(f"Note: {shortened(notes[0], room)}{more}"))
        below[0].get_title().set_fontsize(8)
    return figure


def legend(axes: Axes, **settings: Any) -> None:
    """Place the legend below the axes, where it covers no data."""
    figure: Any = axes.figure
    handles, labels = axes.get_legend_handles_labels()
    defaults = {"handles": handles, "labels": labels, "loc": "outside lower center", "ncols": 4}
    figure.legend(**defaults | settings, fontsize=9, frameon=False)


def require_columns(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    """Raise a `CodeqError` if the table called `name` lacks one of `columns` or has no rows."""
    for column in columns:
        if column not in table:
            raise CodeqError(f"{name} has no column {column!r}; required: {', '.join(columns)}")
    if not len(table):
        raise CodeqError(f"{name} has no rows yet: no epoch has been recorded")
