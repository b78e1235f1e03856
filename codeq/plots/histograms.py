"""Histograms of latent weights with quantization levels and dead-zone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from codeq.common.errors import CodeqError
from codeq.plots.axes import horizontal_grid
from codeq.plots.names import literal, without_beginning
from codeq.plots.panels import draw_counts, draw_levels, label_panel, new_panels, panel_labels
from codeq.plots.style import COLORS, heading, legend, new_grid, require_columns, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LINES = 127  # levels that a figure of one layer draws a line for


@styled
def weight_histogram(weights: np.ndarray, levels: pd.DataFrame, layer_name: str, unit: str = "") -> Figure:
    """Draw the latent weights of a layer with its dead-zone, above the number of weights on each quantization level.

    Parameters
    ----------
    weights : array
        Latent weights of any shape, in the unit of the levels. Values that are not finite are left out.
    levels : DataFrame
        One row per level, as `codeq.analysis.weight_levels` returns it: `code` (the integer q), `level` (ŵ), `lower`,
        `upper` (the latent weights that map to it), `count`.
    layer_name : str
        For the title.
    unit : str
        Unit of the weights, if they are scaled.

    Raises
    ------
    CodeqError
        For a missing column, no levels or no finite weights.

    Examples
    --------
    >>> import pandas as pd
    >>> levels = pd.DataFrame({"code": [0, 1], "level": [0.0, 1.0], "lower": [0, 0.5], "upper": [0.5, np.inf]})
    >>> figure = weight_histogram(np.array([0.1, 0.9]), levels.assign(count=[1, 1]), "conv1")
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['latent weights', 'weights per level']
    """
    weights = _finite(weights, levels, layer_name)
    figure, grid = new_grid(2, 1, width=8, height=5.5, sharex=True)
    latent, quantized = grid[:, 0]
    zeros = levels.loc[levels["code"] == 0, "count"].sum() / levels["count"].sum()
    used = int((levels["count"] > 0).sum())
    note = f"{100 * zeros:.1f} % zero, {used} of {len(levels)} levels used"
    heading(figure, f"Weights of {literal(without_beginning(layer_name))}", note)
    _draw_latent(latent, weights, levels, lines=len(levels) <= MAX_LINES)
    latent.set_ylabel("latent weights", fontsize=10)
    colors = [COLORS["dead_zone"] if code == 0 else COLORS["unstructured"] for code in levels["code"]]
    # Lines in one collection instead of bars: 16 bits have 65,535 levels. The axis is about 450 points wide.
    extent = max(np.ptp(weights), np.ptp(levels["level"]))
    spacing = np.diff(levels["level"]).min() / extent if len(levels) > 1 and extent else 1.0
    width = float(np.clip(0.7 * 450 * spacing, 0.4, 12))
    quantized.vlines(levels["level"], 0, levels["count"], colors=colors, linewidth=width)
    quantized.set_yscale("symlog", linthresh=1)
    quantized.set_ylim(bottom=0)
    quantized.set_ylabel("weights per level", fontsize=10)
    quantized.set_xlabel(f"weight ({unit})" if unit else "weight", fontsize=10)
    for axes in (latent, quantized):
        horizontal_grid(axes)
    legend(latent)
    return figure


@styled
def weight_histograms(layers: Mapping[str, tuple[np.ndarray, pd.DataFrame]], unit: str = "") -> Figure:
    """Draw the latent weights of each layer with its dead-zone and levels, one small panel per layer.

    Parameters
    ----------
    layers : mapping of str to (array, DataFrame)
        For each layer its latent weights and its levels, as for `weight_histogram`.
    unit : str
        Unit of the weights, if they are scaled.

    Raises
    ------
    CodeqError
        If there are no layers, for a missing column, no levels or no finite weights.
    """
    figure, panels = new_panels(layers, row_height=1.5)
    heading(figure, "Latent weights per layer", f"x: weight{unit and f' ({unit})'}; y: count, log scale")
    labels = panel_labels(layers)
    for axes, label, (name, (weights, levels)) in zip(panels, labels, layers.items(), strict=True):
        weights = _finite(weights, levels, name)
        _draw_latent(axes, weights, levels, lines=len(levels) <= MAX_LINES // 2, width=0.4)
        label_panel(axes, label, f"{len(levels)} levels", ticks=3)
    legend(panels[0])
    return figure


def _finite(weights: np.ndarray, levels: pd.DataFrame, layer_name: str) -> np.ndarray:
    """Return the finite weights, flattened, or raise a `CodeqError` if there are none or `levels` is incomplete."""
    require_columns(levels, ["code", "level", "lower", "upper", "count"], f"levels of {layer_name!r}")
    finite = weights[np.isfinite(weights)]
    if not finite.size:
        raise CodeqError(f"layer {layer_name!r} has no finite weights")
    return finite


def _draw_latent(axes: Axes, weights: np.ndarray, levels: pd.DataFrame, lines: bool, width: float = 0.7) -> None:
    """Draw the histogram under the shaded dead-zone, with a line of `width` points at each level if asked."""
    zero = levels[levels["code"] == 0]
    if len(zero):
        axes.axvspan(
            zero["lower"].min(), zero["upper"].max(), color=COLORS["dead_zone"], alpha=0.35, zorder=3, label="dead-zone"
        )
    if lines:
        draw_levels(axes, levels, width)
    draw_counts(axes, weights, "latent weights")
