"""Histograms of activations with the levels of their quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from codeq.common.errors import CodeqError
from codeq.plots.panels import draw_counts, draw_levels, label_panel, new_panels, panel_labels
from codeq.plots.style import COLORS, heading, legend, require_columns, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_LINES = 64  # levels that a panel draws a line for


@styled
def activation_histograms(layers: Mapping[str, tuple[np.ndarray, pd.DataFrame]]) -> Figure:
    r"""Draw the inputs of each layer with the levels that they are quantized to, one small panel per layer.

    Parameters
    ----------
    layers : mapping of str to (array, DataFrame)
        For each layer the values and its levels, as `codeq.analysis.activation_levels` returns them. Values that are
        not finite are left out. Of more than `MAX_LINES` levels, their range alone is drawn.

    Raises
    ------
    CodeqError
        If there are no layers, for a missing column, no levels or no finite values.

    Examples
    --------
    >>> import pandas as pd
    >>> levels = pd.DataFrame({"code": [0, 1], "level": [0.0, 1.0], "count": [1, 3], "clipped": [0, 1]})
    >>> figure = activation_histograms({"conv1": (np.array([0.1, 0.9, 1.0, 2.0]), levels)})
    >>> figure.axes[0].get_title(loc="left")
    'conv1: 1 bit, 2 of 2 levels\n25.0 % zero, 25.00 % clipped'
    """
    figure, panels = new_panels(layers, row_height=1.7)
    heading(figure, "Inputs of the quantized layers", "x: activation; y: count, log scale")
    labels = panel_labels(layers)
    for axes, label, (name, (values, levels)) in zip(panels, labels, layers.items(), strict=True):
        require_columns(levels, ["code", "level", "count", "clipped"], f"levels of {name!r}")
        values = values[np.isfinite(values)]
        if not (values.size and len(levels) and levels["count"].sum()):
            raise CodeqError(f"the input of layer {name!r} has no finite values")
        low, high = levels["level"].min(), levels["level"].max()
        axes.axvspan(low, high, color=COLORS["structured"], alpha=0.15, label="range of the levels")
        if len(levels) <= MAX_LINES:
            draw_levels(axes, levels, width=0.4)
        draw_counts(axes, values, "activations")
        label_panel(axes, label, _summary(levels), ticks=4)
    legend(panels[0])
    return figure


def _summary(levels: pd.DataFrame) -> str:
    bits, total = int(np.log2(len(levels))), levels["count"].sum()
    zero = levels.loc[levels["code"] == 0, "count"].sum() / total
    used, clipped = int((levels["count"] > 0).sum()), levels["clipped"].sum() / total
    unit = "bit" if bits == 1 else "bits"
    return f"{bits} {unit}, {used} of {len(levels)} levels\n{100 * zero:.1f} % zero, {100 * clipped:.2f} % clipped"
