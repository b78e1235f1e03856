"""Axes of figures: epochs, logarithms, grids, and what a logarithmic axis cannot show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def epoch_axis(axes: Axes, epochs: pd.Series) -> None:
    """Label the x axis with epochs, counted from 1 on screen."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", fontsize=10)
    axes.set_xlim(epochs.iloc[0] + 0.5, epochs.iloc[-1] + 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # one epoch: not 0.5, 0.6, …
    axes.grid(alpha=0.3, linewidth=0.6)


def single_point(table: pd.DataFrame) -> dict[str, Any]:
    """Return the settings of a line over the rows of `table`: of a single row, nothing but a marker is visible.

    Examples
    --------
    >>> import pandas as pd
    >>> single_point(pd.DataFrame({"epoch": [0]})), single_point(pd.DataFrame({"epoch": [0, 1]}))
    ({'marker': 'o', 'markersize': 4}, {})
    """
    return {"marker": "o", "markersize": 4} if len(table) == 1 else {}


def off_log_axis(values: np.ndarray | pd.Series) -> str:
    """Return what a legend adds to a name where some of its values are 0, which a logarithmic axis does not show.

    Examples
    --------
    >>> off_log_axis(np.array([0.0, 0.0])), off_log_axis(np.array([2.0, 0.0])), off_log_axis(np.array([2.0]))
    (' (0 %, off the log axis)', ' (0 % in 1 of 2 epochs, off the log axis)', '')
    """
    count = int((values == 0).sum())
    if not count:
        return ""
    epochs = "" if count == len(values) else f" in {count} of {len(values)} epochs"
    return f" (0 %{epochs}, off the log axis)"


def from_zero(axes: Axes) -> None:
    """Start the y axis at 0, and end it at 1 if all values are 0, so that rounding errors are not magnified."""
    axes.set_ylim(0, max(1.0 if axes.dataLim.y1 == 0 else 0.0, axes.get_ylim()[1]))


def horizontal_grid(axes: Axes) -> None:
    """Draw light horizontal grid lines behind the data."""
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)


def spans_decades(values: np.ndarray | pd.Series) -> bool:
    """Return whether positive values differ by so large a factor (30) that an axis is better logarithmic."""
    return bool(len(values) and values.min() > 0 and values.max() / values.min() > 30)


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic with ticks at 1, 2, 5, 10, 20, …; at 1, 10, 100 on a y axis with values far apart.

    Without a finite value above 0, which a logarithmic axis needs, it stays as it is.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    least = axes.dataLim.minposx if which == "x" else axes.dataLim.minposy
    if not np.isfinite(least):
        return
    axes.set(**{f"{which}scale": "log"})
    axis: Any = getattr(axes, f"{which}axis")
    low, high = axes.dataLim.intervaly
    crowded = which == "y" and low > 0 and high / low > 100  # labels one above the other would overlap
    axis.set_major_locator(LogLocator(subs=(1,) if crowded else (1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
