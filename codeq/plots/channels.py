"""Which channels live: at one epoch, and over a whole training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from codeq.common.errors import CodeqError
from codeq.plots.style import LIFE, PADDING, epoch_axis, legend, need, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


MOST_LINES = 150  # channels a row, beyond which lines between them would hide the picture


def channel_liveness(liveness: Mapping[str, np.ndarray]) -> Figure:
    """Draw which channels live: rows are layers, columns channels; black is dead, white alive, grey padding.

    Parameters
    ----------
    liveness : mapping of str to array of bool
        For each layer `[c_out]`, true for living channels.

    Raises
    ------
    CodeqError
        If there are no layers.

    Examples
    --------
    >>> figure = channel_liveness({"conv1": np.array([True, False, True]), "conv2": np.array([False])})
    >>> figure.axes[0].images[0].get_array().tolist()  # 0 dead, 1 alive, 2 padding
    [[1, 0, 1], [0, 2, 2]]
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    if not liveness:
        raise CodeqError("liveness is empty: it names no layer")
    widest = max(len(alive) for alive in liveness.values())
    image = np.full((len(liveness), widest), 2)
    for row, alive in enumerate(liveness.values()):
        image[row, : len(alive)] = alive
    dead = sum(int((~alive).sum()) for alive in liveness.values())
    total = sum(len(alive) for alive in liveness.values())
    figure, axes = new_figure("Channel liveness", width=9, height=1.6 + 0.24 * len(liveness))
    axes.set_title(f"{dead} of {total} channels dead ({100 * dead / total:.1f} %)", fontsize=9, loc="right")
    axes.imshow(image, cmap=ListedColormap(["black", "white", PADDING]), vmin=0, vmax=2, aspect="auto")
    axes.set_xlabel("channel", fontsize=10)
    axes.set_yticks(range(len(liveness)), list(liveness), fontsize=9)
    axes.hlines(np.arange(len(liveness) - 1) + 0.5, -0.5, widest - 0.5, color="#808080", linewidth=0.6)
    if widest <= MOST_LINES:
        axes.vlines(np.arange(widest - 1) + 0.5, -0.5, len(liveness) - 0.5, color="#808080", linewidth=0.25)
    for row, alive in enumerate(liveness.values()):
        words = f"{int((~alive).sum())}/{len(alive)} dead"
        axes.text(1.005, row, words, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    meanings = {"alive": "white", "dead": "black", "padding": PADDING}
    patches = [Patch(facecolor=color, edgecolor="black", label=label) for label, color in meanings.items()]
    legend(axes, handles=patches, labels=list(meanings))
    return figure


def liveness_over_time(layers: pd.DataFrame) -> Figure:
    """Draw the share of living filters of every layer (row) after every epoch (column).

    Parameters
    ----------
    layers : DataFrame
        A row a layer and epoch: `epoch` (0-based), `layer`, `filters`, `dead_filters`.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> layers = pd.DataFrame({"epoch": [0, 1], "layer": "conv1", "filters": 4, "dead_filters": [0, 1]})
    >>> liveness_over_time(layers).axes[0].images[0].get_array().tolist()
    [[100.0, 75.0]]
    """
    need(layers, ["epoch", "layer", "filters", "dead_filters"], "layers")
    alive = layers.assign(alive=100 * (1 - layers["dead_filters"] / layers["filters"]))
    table = alive.pivot(index="layer", columns="epoch", values="alive").loc[layers["layer"].unique()]
    names, epochs = table.index.tolist(), table.columns.to_series()
    figure, axes = new_figure("Living filters over time", width=9, height=1.8 + 0.22 * len(names))
    first, last = float(epochs.iloc[0]) + 0.5, float(epochs.iloc[-1]) + 1.5
    extent = (first, last, len(names) - 0.5, -0.5)
    image = axes.imshow(table, cmap=LIFE, vmin=0, vmax=100, aspect="auto", extent=extent, interpolation="nearest")
    epoch_axis(axes, epochs)
    axes.grid(visible=False)
    axes.spines[["top", "right"]].set_visible(True)  # white has no edge of its own
    axes.hlines(np.arange(len(names) - 1) + 0.5, first, last, color="#808080", linewidth=0.6)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    for row, share in enumerate(table.iloc[:, -1]):
        axes.text(1.005, row, f"{share:.0f} %", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_title("right: after the last epoch", fontsize=9, loc="right")
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04)
    bar.set_label("living filters (%)", fontsize=10)
    bar.ax.tick_params(labelsize=9)
    return figure
