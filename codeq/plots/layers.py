"""Bar charts with one group of bars per layer, drawn by the training itself.

They use matplotlib alone: a training does not wait the seconds that importing seaborn takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.plots.axes import horizontal_grid
from codeq.plots.costs import MAX_VALUES
from codeq.plots.layer_names import layer_axes, layer_ticks, width_for_layers
from codeq.plots.style import COLORS, EDGE, heading, legend, new_grid, require_columns, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def per_layer_channels(layers: pd.DataFrame) -> Figure:
    """Draw alive and dead channels of each layer as stacked bars, with the bit-width above them.

    Of more layers than the numbers above the bars have room for, the bit-widths are bars of their own.

    Parameters
    ----------
    layers : DataFrame
        One row per layer, of one epoch: `layer`, `bits`, `filters`, `dead_filters`.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    require_columns(layers, ["layer", "bits", "filters", "dead_filters"], "layers")
    title = "Channels and bit-width per layer"
    numbered = len(layers) <= MAX_VALUES
    figure, axes = layer_axes(layers, title) if numbered else _axes_below_bits(layers, title)
    x = np.arange(len(layers))
    alive = layers["filters"] - layers["dead_filters"]
    outline: dict[str, Any] = {"edgecolor": EDGE, "linewidth": 0.6}
    axes.bar(x, alive, color=COLORS["alive"], label="alive", **outline)
    axes.bar(x, layers["dead_filters"], bottom=alive, color=COLORS["dead"], label="dead", **outline)
    for k, (filters, bits) in enumerate(zip(layers["filters"], layers["bits"], strict=True) if numbered else ()):
        axes.annotate(
            f"{bits:.0f}b", (k, filters), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8
        )
    axes.set_ylabel("output channels", fontsize=10)
    axes.set_ylim(0, 1.08 * layers["filters"].max())
    if numbered:
        axes.set_title("above the bars: bits of the weights", fontsize=9, loc="right")
    legend(axes)
    return figure


def _axes_below_bits(layers: pd.DataFrame, title: str) -> tuple[Figure, Axes]:
    """Return a figure with the bits of each layer, and its axes for the channels below them."""
    figure, grid = new_grid(2, 1, width=width_for_layers(len(layers)), height=6, sharex=True, height_ratios=(1, 2))
    heading(figure, title)
    bits, channels = grid[:, 0]
    bits.bar(np.arange(len(layers)), layers["bits"], color=COLORS["bits"])
    bits.set_ylim(0, 1.15 * layers["bits"].max())
    bits.set_ylabel("bits", fontsize=10)
    horizontal_grid(bits)
    layer_ticks(channels, layers["layer"].tolist())
    return figure, channels


@styled
def layer_sparsity_bars(layers: pd.DataFrame) -> Figure:
    """Draw structured and unstructured pruning ratio of each layer as paired bars.

    Parameters
    ----------
    layers : DataFrame
        One row per layer, of one epoch: `layer`, `structured_pruning`, `unstructured_pruning` (fractions).

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    require_columns(layers, ["layer", "structured_pruning", "unstructured_pruning"], "layers")
    figure, axes = layer_axes(layers, "Pruning ratio per layer")
    x = np.arange(len(layers))
    labels = {"unstructured": "zero weights (unstructured)", "structured": "null channels (structured)"}
    for shift, (kind, label) in zip((-0.2, 0.2), labels.items(), strict=True):
        axes.bar(x + shift, 100 * layers[f"{kind}_pruning"], width=0.38, color=COLORS[kind], label=label)
    axes.set_ylabel("pruned (%)", fontsize=10)
    axes.set_ylim(0, 100)
    legend(axes)
    return figure
