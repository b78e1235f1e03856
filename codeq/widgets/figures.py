"""Figures of the widgets: pure functions that return a matplotlib `Figure`.

The palettes (Okabe & Ito, Tol) are distinguishable with red-green colour blindness, and the text summary beside each
figure repeats what the colours show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codeq.plots import COLORS
from codeq.plots.layer_names import named_layers
from codeq.plots.style import figure_class, literal, styled
from codeq.widgets.states import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEANINGS = {
    State.ALIVE: ("alive", COLORS["alive"]),
    State.DEAD: ("dead", COLORS["dead"]),
    State.KEPT: ("dead filter, channel kept by skip", "#E69F00"),
    State.IDLE: ("reads only null channels", "#CC79A7"),
}
PADDING = "#E4E4E4"
AFTER = "#44AA99"
BITS = "#9A9A9A"
MAX_ROWS = 55  # layer names, one below the other
WIDTH, DPI = 6.4, 120  # inches, dots per inch; shown 640 pixels wide
SMALL = 8
STEPS = [1, 2, 5, 10]  # of ticks
LETTER = 0.066  # inches, width of a letter of size SMALL


@styled
def message(text: str) -> Figure:
    """Return a figure with text only.

    Examples
    --------
    >>> message("no epoch yet").texts[0].get_text()
    'no epoch yet'
    """
    figure = figure_class()(figsize=(WIDTH, 1.2), dpi=DPI)
    figure.add_axes((0, 0, 1, 1)).set_axis_off()  # notebooks do not display a figure without axes
    figure.text(0.02, 0.5, literal(text), fontsize=10, va="center", wrap=True)
    return figure


def _place(figure: Figure, left: float, bottom: float, gap: float, panels: int) -> None:
    """Set margins in inches: constrained layout would draw everything twice."""
    width, height = figure.get_size_inches()
    right, top = 0.08, 0.24
    inner = (height - top - bottom - gap * (panels - 1)) / panels
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height, hspace=gap / inner
    )


def _title(axes: Axes, title: str, note: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axes.set_title(note, fontsize=SMALL, loc="right")
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(
    axes: Axes, x: np.ndarray, heights: Any, color: Any, width: float = 0.7, bottom: float = 0.0, label: str = ""
) -> None:
    """Draw bars as one artist: `Axes.bar` creates one per bar, which takes half the time of a whole figure."""
    from matplotlib.collections import PolyCollection

    left, right = x - width / 2, x + width / 2
    low, high = np.full(len(x), bottom), bottom + np.asarray(heights, dtype=float)
    corners = np.stack([[left, low], [left, high], [right, high], [right, low]]).transpose(2, 0, 1)
    axes.add_collection(
        PolyCollection(list(corners), facecolors=color, linewidths=0, snap=True, label=label), autolim=False
    )


@styled
def channels(
    states: Mapping[str, np.ndarray],
    layer: str,
    norms: np.ndarray | None = None,
    threshold: float = 0.0,
    title: str = "Channels",
) -> Figure:
    """Draw the state of each channel of a network, and the filter norms of one layer.

    Parameters
    ----------
    states : mapping of str to array of int
        For each layer `[c_out]`, the `State` of each channel.
    layer : str
        Layer drawn in detail, framed in the overview.
    norms : array of float, optional
        `[c_out]`, norms of its filters.
    threshold : float
        Norm up to which a filter counts as dead.
    title : str
        Title of the overview.

    Examples
    --------
    >>> figure = channels({"a": np.array([1, 0]), "b": np.array([2])}, "a")
    >>> figure.axes[0].images[0].get_array().tolist()  # 4 is padding
    [[1, 0], [2, 4]]
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch, Rectangle

    names = list(states)
    widest = max(map(len, states.values()))
    image = np.full((len(names), widest), len(State))
    for row, values in enumerate(states.values()):
        image[row, : len(values)] = values
    height = float(np.clip(0.145 * len(names), 0.8, 8))
    figure = figure_class()(figsize=(WIDTH, height + 2.7), dpi=DPI)
    positions, labels, rule = named_layers(names, room=MAX_ROWS)
    beside = 0.3 + LETTER * max(map(len, labels)) + (0.15 if rule else 0)
    _place(figure, left=max(beside, 0.65), bottom=0.85, gap=0.5, panels=2)
    whole, detail = figure.subplots(2, height_ratios=[height, 1.1])
    colors = ListedColormap([MEANINGS[state][1] for state in State] + [PADDING])
    whole.imshow(image, cmap=colors, vmin=0, vmax=len(State), aspect="auto", interpolation="nearest")
    _title(whole, title, "rows: layers, columns: channels")
    whole.set_yticks(positions, labels)
    whole.set_ylabel(rule, fontsize=SMALL)
    row = names.index(layer)
    frame = Rectangle(
        (-0.5, row - 0.5), len(states[layer]), 1, fill=False, edgecolor="#D55E00", linewidth=2.2, zorder=3
    )
    whole.add_patch(frame).set_clip_on(False)
    grid: dict[str, Any] = {"color": "white", "linewidth": 0.5}
    whole.hlines(np.arange(len(names) - 1) + 0.5, -0.5, widest - 0.5, **grid)
    if widest <= 128:
        whole.vlines(np.arange(widest - 1) + 0.5, -0.5, len(names) - 0.5, **grid)
    _filters(detail, layer, states[layer], norms, threshold)
    used = [state for state in MEANINGS if state in (State.ALIVE, State.DEAD) or (image == state).any()]
    patches = [Patch(facecolor=MEANINGS[state][1], edgecolor="black", label=MEANINGS[state][0]) for state in used]
    patches.append(Patch(facecolor=PADDING, edgecolor="black", label="no channel"))
    columns = len(patches) if len(patches) < 5 else 3
    figure.legend(handles=patches, loc="lower center", ncols=columns, fontsize=SMALL, frameon=False)
    return figure


def _filters(axes: Axes, layer: str, states: np.ndarray, norms: np.ndarray | None, threshold: float) -> None:
    from matplotlib.ticker import MaxNLocator

    x = np.arange(len(states))
    colors = [MEANINGS[State(state)][1] for state in states]
    if norms is None:
        _title(axes, f"Filters of {literal(layer)}", "alive or dead; no norms without a checkpoint")
        _bars(axes, x, np.ones(len(x)), colors, width=0.9)
        axes.set_ylim(0, 1.05)
        axes.set_yticks([])
    else:
        _title(axes, f"Filters of {literal(layer)}", f"dashed: threshold {threshold:.3g}")
        top = float(max(norms.max(), threshold, 1e-12))
        # A strip below zero shows the state of each channel: a dead filter has no visible bar.
        _bars(axes, x, norms, colors, width=0.9)
        _bars(axes, x, np.full(len(x), 0.14 * top), colors, width=0.9, bottom=-0.2 * top)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.axhline(threshold, color="#D55E00", linewidth=1.4, linestyle="--")
        axes.set_ylim(-0.22 * top, 1.08 * top)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        axes.set_ylabel("norm", fontsize=9)
    axes.set_xlim(-0.6, len(x) - 0.4)
    axes.set_xlabel("channel", fontsize=9)


def _by_layer(table: pd.DataFrame, panels: int) -> tuple[Figure, Any]:
    positions, labels, rule = named_layers(table["layer"].tolist())
    names = 0.87 * LETTER * max(map(len, labels)) + (0.15 if rule else 0)  # rotated by 60°
    figure = figure_class()(figsize=(WIDTH, 1.25 * panels + 0.54 + names), dpi=DPI)
    axes = figure.subplots(panels, sharex=True)
    _place(figure, left=0.6, bottom=0.15 + names, gap=0.35, panels=panels)
    for panel in axes[:-1]:
        panel.xaxis.set_visible(False)
    axes[-1].set_xticks(positions, labels, rotation=60, ha="right", rotation_mode="anchor")
    axes[-1].set_xlabel(rule, fontsize=SMALL)
    axes[-1].set_xlim(-0.7, len(table) - 0.3)
    return figure, axes


@styled
def what_if(now: pd.DataFrame, trained: pd.DataFrame) -> Figure:
    """Draw bits, density and dead filters of each layer after requantization, with marks at the trained values.

    Parameters
    ----------
    now, trained : DataFrame
        As `EvalResult.layers`: one row per layer, with `layer`, `bits`, `density`, `filters`, `dead_filters`.

    Examples
    --------
    >>> row = {"layer": ["a"], "bits": [4], "density": [0.5], "filters": [4], "dead_filters": [1]}
    >>> figure = what_if(pd.DataFrame(row), pd.DataFrame(row))
    >>> [float(axes.collections[0].get_paths()[0].vertices[:, 1].max()) for axes in figure.axes]
    [4.0, 50.0, 25.0]
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _by_layer(now, 3)
    x = np.arange(len(now))
    panels = [
        ("Bits of the weights", "bits", BITS, lambda t: t["bits"].astype(float)),
        ("Density: non-zero weights", "% of weights", COLORS["unstructured"], lambda t: 100 * t["density"]),
        ("Dead filters", "% of filters", COLORS["structured"], lambda t: 100 * t["dead_filters"] / t["filters"]),
    ]
    for panel, (title, unit, color, value) in zip(axes, panels, strict=True):
        _title(panel, title)
        _bars(panel, x, value(now), color)
        panel.hlines(value(trained), x - 0.45, x + 0.45, color="black", linewidth=2)
        panel.set_ylabel(unit, fontsize=9)
        panel.set_ylim(0, 105 if "%" in unit else 1.1 * max(8, now["bits"].max(), trained["bits"].max()))
        panel.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=STEPS))
        panel.grid(axis="y", alpha=0.3, linewidth=0.6)
        panel.set_axisbelow(True)
    axes[0].set_title("bars: current settings · black lines: as trained", fontsize=SMALL, loc="right")
    return figure
