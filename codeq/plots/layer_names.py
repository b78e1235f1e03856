"""Names of layers on an axis: of all layers where there is room, else of their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from codeq.plots.axes import horizontal_grid
from codeq.plots.names import layer_labels
from codeq.plots.style import new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NAMES = 40  # on a horizontal axis
MAX_WIDTH = 12.0  # inches


def named_layers(names: Sequence[str], room: int = MAX_NAMES) -> tuple[list[float], list[str], str]:
    """Return the positions of the labels of layers, the labels, and a note on the rule if not all layers are named.

    All layers are named if there is room. If not, consecutive layers whose names begin with the same parts form a
    block, and its name is written in the middle of its layers; the blocks are the smallest for which there is room. If
    even the largest blocks are too many, every k-th layer is named.

    Parameters
    ----------
    names : sequence of str
        Names of the layers with dots between their parts.
    room : int
        Largest number of labels.

    Examples
    --------
    >>> layers = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"]
    >>> named_layers(layers, room=3)
    ([0.0, 1.5, 3.5], ['conv1', 'layer1.0', 'layer1.1'], 'names: blocks of layers')
    >>> named_layers(layers, room=2)
    ([0.0, 2.5], ['conv1', 'layer1'], 'names: blocks of layers')
    >>> named_layers(["0", "1", "2", "3"], room=2)
    ([0.0, 2.0], ['0', '2'], 'names: one layer in 2')
    """
    count = len(names)
    if count <= room:
        return [float(k) for k in range(count)], layer_labels(names), ""
    parts = [name.split(".") for name in names]
    for depth in range(max(map(len, parts)) - 1, 0, -1):
        blocks = [(name, len(list(layers))) for name, layers in groupby(".".join(part[:depth]) for part in parts)]
        if len(blocks) <= room:
            ends = list(accumulate(size for _, size in blocks))
            centres = [end - (size + 1) / 2 for end, (_, size) in zip(ends, blocks, strict=True)]
            return centres, layer_labels([name for name, _ in blocks]), "names: blocks of layers"
    step = -(-count // room)
    chosen = list(range(0, count, step))
    return [float(k) for k in chosen], layer_labels([names[k] for k in chosen]), f"names: one layer in {step}"


def layer_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Put x ticks at the layers, in the order of `names`, labelled as `named_layers` does."""
    positions, labels, note = named_layers(names)
    axes.set_xticks(positions, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_xlabel(note, fontsize=8)
    axes.set_xlim(-0.7, len(names) - 0.3)
    horizontal_grid(axes)


def width_for_layers(count: int) -> float:
    """Return the width in inches of a figure with `count` layers along its x axis."""
    return min(max(8.0, 2 + 0.4 * count), MAX_WIDTH)


def layer_axes(layers: pd.DataFrame, title: str) -> tuple[Figure, Axes]:
    """Return a figure with the layers along its x axis."""
    figure, axes = new_figure(title, width=width_for_layers(len(layers)), height=5)
    layer_ticks(axes, layers["layer"].tolist())
    return figure, axes
