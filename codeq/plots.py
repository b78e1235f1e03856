"""Figures from tables: pure functions that take what a `Run` recorded and return a matplotlib `Figure`.

Colours mean the same thing in every figure, and can be told apart by people who do not see red and green. Matplotlib is
imported inside the functions, because `import codeq` should not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.errors import CodeqError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, a colour for each meaning.
COLORS = {
    "accuracy": "#009E73",
    "training": "#7FCEB9",
    "unstructured": "#0072B2",
    "structured": "#D55E00",
    "coefficient": "#7A7A7A",
    "alive": "#56B4E9",
    "dead": "#000000",
}
PADDING = "#B8B8B8"
MOST_KERNELS = 150  # beyond so many a side, lines between kernels would hide the weights


def _figure(title: str, width: float = 8.0, height: float = 4.5) -> tuple[Figure, Axes]:
    """Return an empty figure of `width` × `height` inches and its axes, in the one style of all figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=12, loc="left", fontweight="bold")
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes, **settings: Any) -> None:
    """Put the legend under the axes, where it covers no data."""
    figure: Any = axes.figure
    handles, labels = axes.get_legend_handles_labels()
    place = {"handles": handles, "labels": labels, "loc": "outside lower center"} | settings
    figure.legend(**place, ncols=4, fontsize=9, frameon=False)


def _need(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    for column in columns:
        if column not in table:
            raise CodeqError(f"{what} has no column {column!r}; needed: {', '.join(columns)}")
    if not len(table):
        raise CodeqError(f"{what} has no rows yet: no epoch has been recorded")


def _epoch_axis(axes: Axes, epochs: pd.Series) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch", fontsize=10)
    axes.set_xlim(epochs.iloc[0] + 0.5, epochs.iloc[-1] + 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3, linewidth=0.6)


def accuracy_curve(history: pd.DataFrame) -> Figure:
    """Draw training and evaluation accuracy over epochs, with the last and the best evaluation accuracy in words.

    Parameters
    ----------
    history : DataFrame
        A row an epoch: `epoch` (0-based), `train/accuracy`, `eval/accuracy` (fractions).

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> history = pd.DataFrame({"epoch": [0, 1], "train/accuracy": [0.5, 0.7], "eval/accuracy": [0.4, 0.6]})
    >>> accuracy_curve(history).axes[0].get_ylabel()
    'accuracy (%)'
    """
    _need(history, ["epoch", "train/accuracy", "eval/accuracy"], "history")
    figure, axes = _figure("Accuracy")
    epochs, evaluated = history["epoch"], 100 * history["eval/accuracy"]
    axes.plot(epochs + 1, 100 * history["train/accuracy"], color=COLORS["training"], marker=".", label="training")
    axes.plot(epochs + 1, evaluated, color=COLORS["accuracy"], marker="o", markersize=4, label="evaluation")
    _epoch_axis(axes, epochs)
    axes.set_ylabel("accuracy (%)", fontsize=10)
    words = f"last {evaluated.iloc[-1]:.2f} %"
    if evaluated.notna().any():
        best = int(np.nanargmax(evaluated))
        words += f", best {evaluated.iloc[best]:.2f} % (epoch {epochs.iloc[best] + 1})"
    axes.set_title(words, fontsize=9, loc="right")
    _legend(axes)
    return figure


def sparsity_curves(history: pd.DataFrame) -> Figure:
    """Draw unstructured and structured sparsity over epochs, and the sparsity loss's coefficient on a second axis.

    Parameters
    ----------
    history : DataFrame
        A row an epoch: `epoch` (0-based), `sparsity/unstructured`, `sparsity/structured` (fractions),
        `train/sparsity_coeff`.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    _need(history, ["epoch", "sparsity/unstructured", "sparsity/structured", "train/sparsity_coeff"], "history")
    figure, axes = _figure("Sparsity")
    x = history["epoch"] + 1
    sparsities = {"unstructured": "zero weights (unstructured)", "structured": "dead filters (structured)"}
    for kind, label in sparsities.items():
        values = 100 * history[f"sparsity/{kind}"]
        axes.plot(x, values, color=COLORS[kind], marker="o", markersize=4, label=label)
    _epoch_axis(axes, history["epoch"])
    axes.set_ylabel("sparsity (%)", fontsize=10)
    axes.set_ylim(bottom=0)
    second = axes.twinx()
    style: dict[str, Any] = {"color": COLORS["coefficient"], "linestyle": "--", "label": "coefficient (right axis)"}
    second.plot(x, history["train/sparsity_coeff"], **style)
    second.set_ylabel("coefficient of the sparsity loss", fontsize=10, color=COLORS["coefficient"])
    second.tick_params(labelsize=9, colors=COLORS["coefficient"])
    second.set_ylim(bottom=0)
    second.spines["top"].set_visible(False)
    handles = axes.get_lines() + second.get_lines()
    _legend(axes, handles=handles, labels=[str(handle.get_label()) for handle in handles])
    return figure


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
    figure, axes = _figure("Channel liveness", width=9, height=1.6 + 0.24 * len(liveness))
    axes.set_title(f"{dead} of {total} channels dead ({100 * dead / total:.1f} %)", fontsize=9, loc="right")
    axes.imshow(image, cmap=ListedColormap(["black", "white", PADDING]), vmin=0, vmax=2, aspect="auto")
    axes.set_xlabel("channel", fontsize=10)
    axes.set_yticks(range(len(liveness)), list(liveness), fontsize=9)
    axes.hlines(np.arange(len(liveness) - 1) + 0.5, -0.5, widest - 0.5, color="#808080", linewidth=0.6)
    if widest <= MOST_KERNELS:
        axes.vlines(np.arange(widest - 1) + 0.5, -0.5, len(liveness) - 0.5, color="#808080", linewidth=0.25)
    for row, alive in enumerate(liveness.values()):
        words = f"{int((~alive).sum())}/{len(alive)} dead"
        axes.text(1.005, row, words, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    meanings = {"alive": "white", "dead": "black", "padding": PADDING}
    patches = [Patch(facecolor=color, edgecolor="black", label=label) for label, color in meanings.items()]
    _legend(axes, handles=patches, labels=list(meanings))
    return figure


def _layer_axis(layers: pd.DataFrame, title: str) -> tuple[Figure, Axes]:
    """Return a figure wide enough for a name under every layer."""
    figure, axes = _figure(title, width=min(max(8.0, 2 + 0.4 * len(layers)), 30.0), height=5)
    axes.set_xticks(range(len(layers)), layers["layer"], rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def per_layer_channels(layers: pd.DataFrame) -> Figure:
    """Draw living and dead channels of every layer as stacked bars, with the learned bits above them.

    Parameters
    ----------
    layers : DataFrame
        A row a layer, of one epoch: `layer`, `bits`, `filters`, `dead_filters`.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    _need(layers, ["layer", "bits", "filters", "dead_filters"], "layers")
    figure, axes = _layer_axis(layers, "Channels and bits of every layer")
    x = np.arange(len(layers))
    alive = layers["filters"] - layers["dead_filters"]
    axes.bar(x, alive, color=COLORS["alive"], label="alive")
    axes.bar(x, layers["dead_filters"], bottom=alive, color=COLORS["dead"], label="dead")
    for k, (filters, bits) in enumerate(zip(layers["filters"], layers["bits"], strict=True)):
        axes.annotate(
            f"{bits:.0f}b", (k, filters), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8
        )
    axes.set_ylabel("output channels", fontsize=10)
    axes.set_ylim(0, 1.08 * layers["filters"].max())
    axes.set_title("above the bars: bits of the weights", fontsize=9, loc="right")
    _legend(axes)
    return figure


def layer_sparsity_bars(layers: pd.DataFrame) -> Figure:
    """Draw structured against unstructured pruning ratio of every layer as paired bars.

    Parameters
    ----------
    layers : DataFrame
        A row a layer, of one epoch: `layer`, `structured_pruning`, `unstructured_pruning` (fractions).

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    _need(layers, ["layer", "structured_pruning", "unstructured_pruning"], "layers")
    figure, axes = _layer_axis(layers, "Sparsity of every layer")
    x = np.arange(len(layers))
    labels = {"unstructured": "zero weights (unstructured)", "structured": "null channels (structured)"}
    for shift, (kind, label) in zip((-0.2, 0.2), labels.items(), strict=True):
        axes.bar(x + shift, 100 * layers[f"{kind}_pruning"], width=0.38, color=COLORS[kind], label=label)
    axes.set_ylabel("pruned (%)", fontsize=10)
    axes.set_ylim(0, 100)
    _legend(axes)
    return figure


def sparsity_map(weight: np.ndarray, layer_name: str) -> Figure:
    """Draw every weight of a layer, kernel by kernel: black is zero, white is not.

    Parameters
    ----------
    weight : array
        `[c_out, c_in, k_h, k_w]`, or `[c_out, c_in]` of a linear layer.
    layer_name : str
        For the title.

    Raises
    ------
    CodeqError
        For an array that is neither a convolution's nor a linear layer's.
    """
    from matplotlib.colors import ListedColormap

    if weight.ndim not in (2, 4) or not weight.size:
        raise CodeqError(
            f"weight of {layer_name!r} has shape {weight.shape}: must be [c_out, c_in] or [c_out, c_in, k, k]"
        )
    kernels = weight if weight.ndim == 4 else weight[:, :, None, None]
    c_out, c_in, k_h, k_w = kernels.shape
    line = int(max(c_out, c_in) <= MOST_KERNELS and k_h * k_w > 1)
    tiles = np.full((c_out, k_h + line, c_in, k_w + line), 2)
    tiles[:, :k_h, :, :k_w] = (kernels != 0).transpose(0, 2, 1, 3)
    image = tiles.reshape(c_out * (k_h + line), c_in * (k_w + line))
    zeros = 1 - np.count_nonzero(weight) / weight.size
    shape = image.shape[0] / image.shape[1]
    figure, axes = _figure(f"Weights of {layer_name}", width=8, height=float(np.clip(1.2 + 6.5 * shape, 2.5, 12)))
    axes.set_title(f"{100 * zeros:.1f} % zero (black)", fontsize=9, loc="right")
    axes.imshow(image, cmap=ListedColormap(["black", "white", "#909090"]), vmin=0, vmax=2, interpolation="nearest")
    for axis, count, size, name in ((axes.xaxis, c_in, k_w, "input"), (axes.yaxis, c_out, k_h, "output")):
        channels = np.arange(0, count, max(1, -(-count // 16)))
        axis.set_ticks(channels * (size + line) + (size - 1) / 2, [str(channel) for channel in channels])
        axis.set_label_text(f"{name} channel", fontsize=10)
    return figure
