"""Alive and dead channels at one epoch, and over the epochs of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from codeq.common.errors import CodeqError
from codeq.plots.layer_names import named_layers
from codeq.plots.names import layer_labels, whole_percent
from codeq.plots.style import COLORS, EDGE, LIFE, PADDING, legend, new_figure, require_columns, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


MAX_LINES = 150  # channels per row, beyond which lines between them would hide the image
MAX_EPOCH_LABELS = 20
MAX_ROWS = 120  # names of layers, one below the other


@styled
def channel_liveness(liveness: Mapping[str, np.ndarray]) -> Figure:
    """Draw the alive channels of each layer: rows are layers, columns channels; black is dead, white alive.

    Parameters
    ----------
    liveness : mapping of str to array of bool
        For each layer `[c_out]`, true for alive channels. Shorter rows are padded in grey.

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
        raise CodeqError("liveness contains no layer")
    widest = max(len(alive) for alive in liveness.values())
    image = np.full((len(liveness), widest), 2)
    for row, alive in enumerate(liveness.values()):
        image[row, : len(alive)] = alive
    dead = sum(int((~alive).sum()) for alive in liveness.values())
    total = sum(len(alive) for alive in liveness.values())
    figure, axes = new_figure("Channel liveness", width=9, height=1.6 + 0.24 * len(liveness))
    axes.set_title(f"{dead} of {total} channels dead ({100 * dead / total:.1f} %)", fontsize=9, loc="right")
    axes.imshow(image, cmap=ListedColormap([COLORS["dead"], COLORS["alive"], PADDING]), vmin=0, vmax=2, aspect="auto")
    axes.set_xlabel("channel", fontsize=10)
    axes.set_yticks(range(len(liveness)), layer_labels(list(liveness)), fontsize=9)
    axes.hlines(np.arange(len(liveness) - 1) + 0.5, -0.5, widest - 0.5, color=EDGE, linewidth=0.6)
    if widest <= MAX_LINES:
        axes.vlines(np.arange(widest - 1) + 0.5, -0.5, len(liveness) - 0.5, color=EDGE, linewidth=0.25)
    for row, alive in enumerate(liveness.values()):
        count = f"{int((~alive).sum())}/{len(alive)} dead"
        axes.text(1.005, row, count, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    meanings = {"alive": COLORS["alive"], "dead": COLORS["dead"], "padding": PADDING}
    patches = [Patch(facecolor=color, edgecolor=EDGE, label=label) for label, color in meanings.items()]
    legend(axes, handles=patches, labels=list(meanings))
    return figure


@styled
def liveness_over_time(layers: pd.DataFrame) -> Figure:
    """Draw a heat map of the alive filters: rows are layers, columns epochs.

    Parameters
    ----------
    layers : DataFrame
        One row per layer and epoch: `epoch` (0-based), `layer`, `filters`, `dead_filters`.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> layers = pd.DataFrame({"epoch": [0, 1], "layer": "conv1", "filters": 4, "dead_filters": [0, 1]})
    >>> liveness_over_time(layers).axes[0].collections[0].get_array().tolist()
    [[100.0, 75.0]]
    """
    require_columns(layers, ["epoch", "layer", "filters", "dead_filters"], "layers")
    alive = layers.assign(alive=100 * (1 - layers["dead_filters"] / layers["filters"]), epoch=layers["epoch"] + 1)
    table = alive.pivot(index="layer", columns="epoch", values="alive").loc[layers["layer"].unique()]
    rows, columns = table.shape
    figure, axes = new_figure("Alive filters over time", width=9, height=1.8 + 0.22 * rows)
    mesh = axes.pcolormesh(table.to_numpy(), cmap=LIFE, vmin=0, vmax=100, rasterized=True)
    axes.invert_yaxis()
    figure.colorbar(mesh, ax=axes, label="alive filters (%)", pad=0.05, fraction=0.04)
    labelled = np.arange(0, columns, -(-columns // MAX_EPOCH_LABELS))
    axes.set_xticks(labelled + 0.5, [str(epoch) for epoch in table.columns[labelled]])
    positions, labels, note = named_layers(table.index.tolist(), room=MAX_ROWS)
    axes.set_yticks([position + 0.5 for position in positions], labels)
    axes.set(xlabel="epoch", ylabel=note)
    axes.tick_params(labelsize=9, labelrotation=0)
    for spine in axes.spines.values():
        spine.set_visible(True)  # white cells have no visible edge
    axes.hlines(np.arange(1, rows), 0, columns, color=EDGE, linewidth=0.6)
    for row, share in enumerate(table.iloc[:, -1]):
        shown = whole_percent(share / 100)
        axes.text(1.005, row + 0.5, shown, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_title("right: after the last epoch", fontsize=9, loc="right")
    return figure
