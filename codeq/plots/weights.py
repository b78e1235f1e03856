"""Maps of the zero and non-zero weights of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from codeq.common.errors import CodeqError
from codeq.plots.names import literal, whole_percent, without_beginning
from codeq.plots.panels import panel_labels, with_note
from codeq.plots.style import LIFE, heading, new_grid, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAX_KERNELS = 150  # per side, beyond which lines between kernels would hide the weights
LINES = "#909090"
TITLE = 28  # characters of a line of the title of a small map


@styled
def sparsity_map(weight: np.ndarray, layer_name: str) -> Figure:
    """Draw each weight of a layer as a pixel, kernel by kernel: black is zero, white non-zero.

    Parameters
    ----------
    weight : array
        `[c_out, c_in]` of a linear layer, or `[c_out, c_in, …]` of a convolution in one to three dimensions. The slices
        of a kernel in three dimensions, `[k_d, k_h, k_w]`, are drawn one below the other.
    layer_name : str
        For the title.

    Raises
    ------
    CodeqError
        If the array has none of these shapes.
    """
    if not 2 <= weight.ndim <= 5 or not weight.size:
        raise CodeqError(
            f"weight of {layer_name!r} has shape {weight.shape}: must be [c_out, c_in], or [c_out, c_in, …] with a "
            "kernel in one to three dimensions"
        )
    kernels = weight.reshape(*weight.shape[:2], -1, weight.shape[-1] if weight.ndim > 2 else 1)
    c_out, c_in, k_h, k_w = kernels.shape
    image = (kernels != 0).transpose(0, 2, 1, 3).reshape(c_out * k_h, c_in * k_w)
    zeros = 1 - np.count_nonzero(weight) / weight.size
    shape = image.shape[0] / image.shape[1]
    figure, grid = new_grid(1, 1, width=8, height=float(np.clip(1.2 + 6.5 * shape, 2.5, 9)))
    axes = grid[0, 0]
    heading(figure, f"Weights of {literal(without_beginning(layer_name))}", f"{100 * zeros:.1f} % zero (black)")
    axes.imshow(image, cmap=LIFE, vmin=0, vmax=1, interpolation="nearest")
    if max(c_out, c_in) <= MAX_KERNELS and k_h * k_w > 1:
        axes.hlines(np.arange(1, c_out) * k_h - 0.5, -0.5, c_in * k_w - 0.5, color=LINES, linewidth=0.8)
        axes.vlines(np.arange(1, c_in) * k_w - 0.5, -0.5, c_out * k_h - 0.5, color=LINES, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(True)  # white cells have no visible edge
    for axis, count, size, name in ((axes.xaxis, c_in, k_w, "input"), (axes.yaxis, c_out, k_h, "output")):
        channels = np.arange(0, count, max(1, -(-count // 16)))
        axis.set_ticks(channels * size + (size - 1) / 2, [str(channel) for channel in channels])
        axis.set_label_text(f"{name} channel", fontsize=10)
    return figure


@styled
def kernel_maps(weights: Mapping[str, np.ndarray]) -> Figure:
    """Draw each layer as a small map with one pixel per kernel: rows are outputs, columns inputs, black is all-zero.

    Parameters
    ----------
    weights : mapping of str to array
        For each layer the weights of the forward pass, `[c_out, c_in, …]`.

    Raises
    ------
    CodeqError
        If there are no layers.

    Examples
    --------
    >>> figure = kernel_maps({"fc": np.array([[1.0, 0.0], [0.0, 0.0]])})
    >>> figure.axes[0].images[0].get_array().tolist()
    [[100.0, 0.0], [0.0, 0.0]]
    """
    if not weights:
        raise CodeqError("weights contains no layer")
    from matplotlib.ticker import MaxNLocator

    columns = min(5, len(weights))
    rows = -(-len(weights) // columns)
    figure, grid = new_grid(rows, columns, width=10, height=1.0 + 2.0 * rows)
    heading(figure, "Non-zero weights per kernel")
    for axes, label, weight in zip(grid.flat, panel_labels(weights), weights.values(), strict=False):
        kept = (weight != 0).reshape(*weight.shape[:2], -1).mean(axis=2)
        # Not a seaborn heat map: a layer may have millions of kernels.
        image = axes.imshow(100 * kept, cmap=LIFE, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        zeros = f"{whole_percent(float(np.mean(weight == 0)))} zero"
        axes.set_title(with_note(label, zeros, TITLE), fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        for axis in (axes.xaxis, axes.yaxis):  # few ticks: they take most of the time of this figure
            axis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.spines[["top", "right"]].set_visible(True)  # white cells have no visible edge
    for axes in grid.flat[len(weights) :]:
        axes.set_visible(False)
    figure.supxlabel("input channel", fontsize=10)
    figure.supylabel("output channel", fontsize=10)
    bar = figure.colorbar(image, ax=grid, fraction=0.02, pad=0.01)
    bar.set_label("non-zero weights of a kernel (%)", fontsize=10)
    bar.ax.tick_params(labelsize=9)
    return figure
