"""Histograms of values with their quantization levels, in small panels, one per layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.common.errors import CodeqError
from codeq.plots.names import layer_labels
from codeq.plots.style import COLORS, new_grid

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 120
MAX_LABEL = 22  # characters of the name of a layer
TITLE = 42  # characters of a line of a title


def new_panels(layers: Mapping[str, Any], row_height: float) -> tuple[Figure, np.ndarray]:
    """Return a figure with one visible panel per layer, in rows of `row_height` inches, and its axes.

    Raises
    ------
    CodeqError
        If there are no layers.
    """
    if not layers:
        raise CodeqError("layers contains no layer")
    columns = min(4 if len(layers) <= 48 else 8, len(layers))
    rows = -(-len(layers) // columns)
    figure, grid = new_grid(rows, columns, width=max(2.6 * columns, 5.0), height=1.2 + row_height * rows)
    for axes in grid.flat[len(layers) :]:
        axes.set_visible(False)
    return figure, grid.flat[: len(layers)]


def draw_levels(axes: Axes, levels: pd.DataFrame, width: float) -> None:
    """Draw a line of `width` points at each level."""
    style: dict[str, Any] = {"color": COLORS["structured"], "linewidth": width, "alpha": 0.8}
    style |= {"transform": axes.get_xaxis_transform(), "label": "quantization levels"}
    axes.vlines(levels["level"], 0, 1, **style)


def draw_counts(axes: Axes, values: np.ndarray, label: str) -> None:
    """Draw the histogram of some values on a logarithmic scale that contains 0."""
    # In double precision: values that differ by rounding span fewer numbers of float32 than there are bins.
    counts, edges = np.histogram(values.astype(np.float64), bins=BINS)
    axes.stairs(counts, edges, fill=True, color=COLORS["coefficient"], linewidth=0, label=label)
    axes.set_yscale("symlog", linthresh=1)  # a peak at 0 would hide the outliers on a linear scale
    axes.set_ylim(bottom=0)


def panel_labels(names: Iterable[str]) -> list[str]:
    """Return labels of layers that are short enough for the titles of panels."""
    return layer_labels(list(names), MAX_LABEL, MAX_LABEL)


def with_note(label: str, note: str, room: int) -> str:
    r"""Return the label of a layer and a note in a line of at most `room` characters, else on separate lines.

    Examples
    --------
    >>> with_note("conv1", "25 % zero", 20), with_note("layer1.0.conv1", "25 % zero", 20)
    ('conv1: 25 % zero', 'layer1.0.conv1\n25 % zero')
    """
    line = f"{label}: {note}"
    return line if len(line.split("\n")[0]) <= room else f"{label}\n{note}"


def label_panel(axes: Axes, label: str, note: str, ticks: int) -> None:
    """Give a panel a title, at most `ticks` intervals on the axis of the values, and no numbers on the other."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(with_note(label, note, TITLE), fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.tick_params(left=False, labelleft=False)
    axes.xaxis.set_major_locator(MaxNLocator(ticks))
