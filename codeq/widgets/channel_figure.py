"""Figure of `LivenessExplorer`: all channels of a network, the filters of one layer, the norms of one channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.plots import COLORS
from codeq.plots.layer_names import named_layers
from codeq.plots.names import literal, without_beginning
from codeq.plots.style import EDGE, PADDING, figure_class, styled
from codeq.plots.theme import ink
from codeq.widgets.clicks import Region, region
from codeq.widgets.figures import DPI, LETTER, SMALL, STEPS, WIDTH, bars, set_margins, set_title
from codeq.widgets.states import State, largest_norm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEANINGS = {
    State.ALIVE: ("alive", COLORS["alive"]),
    State.DEAD: ("dead", COLORS["dead"]),
    State.KEPT: ("dead filter, channel kept by skip", COLORS["kept_alive"]),
    State.IDLE: ("reads only null channels", COLORS["idle"]),
}
CHOSEN = "#D55E00"  # frame of what is selected
MAX_ROWS = 25  # layer names on the vertical axis
CONTEXT = (0.1, 0.5, 0.9)  # quantiles of the norms of a layer


@styled
def channels(
    states: Mapping[str, np.ndarray],
    layer: str,
    norms: np.ndarray | None = None,
    threshold: float = 0.0,
    title: str = "Channels",
    channel: int = 0,
    history: Sequence[bool] = (),
    course: np.ndarray | None = None,
) -> Figure:
    """Draw the state of each channel of a network, the filter norms of one layer, and those of one channel by epoch.

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
    channel : int
        Marked output channel of the layer.
    history : sequence of bool
        Whether its filter was alive in each recorded epoch.
    course : array of float, optional
        `[epochs, c_out]`, norms of the layer's filters after each recorded epoch; without epochs as without the array.

    Examples
    --------
    >>> figure = channels({"a": np.array([1, 0]), "b": np.array([2])}, "a")
    >>> figure.axes[0].images[0].get_array().tolist()  # 4 is padding
    [[1, 0], [2, 4]]
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.ticker import MaxNLocator

    names = list(states)
    widest = max(map(len, states.values()))
    image = np.full((len(names), widest), len(State))
    for row, values in enumerate(states.values()):
        image[row, : len(values)] = values
    height = float(np.clip(0.125 * len(names), 0.8, 3.0))
    figure = figure_class()(figsize=(WIDTH, height + 4.05), dpi=DPI)
    positions, labels, rule = named_layers(names, MAX_ROWS)
    beside = 0.3 + LETTER * max(map(len, labels)) + (0.15 if rule else 0)
    set_margins(figure, left=max(beside, 0.65), bottom=0.85, gap=0.66, panels=3)
    whole, detail, epochs = figure.subplots(3, height_ratios=[height, 0.84, 0.8])
    colors = ListedColormap([MEANINGS[state][1] for state in State] + [PADDING])
    whole.imshow(image, cmap=colors, vmin=0, vmax=len(State), aspect="auto", interpolation="nearest")
    set_title(whole, title, "rows: layers, columns: channels")
    whole.set_yticks(positions, labels)
    whole.set_ylabel(rule, fontsize=SMALL)
    row = names.index(layer)
    frame = Rectangle((-0.5, row - 0.5), len(states[layer]), 1, fill=False, edgecolor=CHOSEN, linewidth=2.2, zorder=3)
    whole.add_patch(frame).set_clip_on(False)
    circle: dict[str, Any] = {"markersize": 8, "markerfacecolor": "none", "markeredgecolor": CHOSEN}
    whole.plot([channel], [row], "o", markeredgewidth=2, clip_on=False, **circle)
    grid: dict[str, Any] = {"color": EDGE, "linewidth": 0.4}
    whole.hlines(np.arange(len(names) - 1) + 0.5, -0.5, widest - 0.5, **grid)
    if widest <= 128:
        whole.vlines(np.arange(widest - 1) + 0.5, -0.5, len(names) - 0.5, **grid)
    whole.set(xlim=(-0.5, widest - 0.5), ylim=(len(names) - 0.5, -0.5))
    _filters(detail, layer, states[layer], norms, threshold)
    for axes in (whole, detail):  # no half channels where there are few
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, steps=STEPS, min_n_ticks=1))
    detail.axvspan(channel - 0.5, channel + 0.5, color=CHOSEN, alpha=0.25, linewidth=0, zorder=0)
    _history(epochs, channel, history, course)
    used = [state for state in MEANINGS if state in (State.ALIVE, State.DEAD) or (image == state).any()]
    patches = [Patch(facecolor=MEANINGS[state][1], edgecolor=EDGE, label=MEANINGS[state][0]) for state in used]
    patches.append(Patch(facecolor=PADDING, edgecolor=EDGE, label="no channel"))
    columns = len(patches) if len(patches) < 5 else 3
    figure.legend(handles=patches, loc="lower center", ncols=columns, fontsize=SMALL, frameon=False)
    return figure


def _filters(axes: Axes, layer: str, states: np.ndarray, norms: np.ndarray | None, threshold: float) -> None:
    x = np.arange(len(states))
    colors = [MEANINGS[State(state)][1] for state in states]
    title = f"Filters of {literal(without_beginning(layer))}"
    if norms is None:
        set_title(axes, title, "alive or dead; norms were not recorded")
        bars(axes, x, np.ones(len(x)), colors, width=0.9)
        axes.set_ylim(0, 1.05)
        axes.set_yticks([])
    else:
        set_title(axes, title, f"dashed: threshold {threshold:.3g}")
        top = max(largest_norm(norms), threshold) or 1.0  # of dead filters alone
        bars(axes, x, norms, colors, width=0.9)
        _norm_axis(axes, x, 0.9, colors, top)
        axes.axhline(threshold, color="#D55E00", linewidth=1.4, linestyle="--")
    axes.set_xlim(-0.6, len(x) - 0.4)
    axes.set_xlabel("channel", fontsize=9)


def _norm_axis(axes: Axes, x: np.ndarray, widths: Any, colors: Sequence[str], top: float) -> None:
    """Set an axis of norms up to `top`, with a strip of states below zero: a dead filter has no visible norm."""
    from matplotlib.ticker import MaxNLocator

    bars(axes, x, np.full(len(x), 0.14 * top), colors, width=widths, bottom=-0.2 * top)
    axes.axhline(0, color=ink(), linewidth=0.6)
    axes.set_ylim(-0.22 * top, 1.08 * top)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    axes.set_ylabel("norm", fontsize=9)


def _history(axes: Axes, channel: int, history: Sequence[bool], course: np.ndarray | None) -> None:
    """Draw the norm of a filter over the epochs among those of its layer, and in which epochs it was alive."""
    from matplotlib.ticker import MaxNLocator

    state = np.asarray(history, dtype=int)
    starts = np.flatnonzero(np.diff(state, prepend=-1))  # of the spans of epochs with one state
    lengths = np.diff(starts, append=len(state))
    spans = starts + 0.5 + lengths / 2, lengths, [MEANINGS[State(state[start])][1] for start in starts]
    if course is None or not len(course):
        set_title(axes, f"Filter of channel {channel} over the epochs", "alive or dead; norms were not recorded")
        bars(axes, spans[0], np.ones(len(starts)), spans[2], width=lengths)
        axes.set(ylim=(0, 1.05), yticks=[])
    else:
        top = _course(axes, channel, np.where(np.isfinite(course), course, np.nan))
        _norm_axis(axes, *spans, top)
        if not history[-1]:
            _mark_death(axes, int(starts[-1]) + 1, len(state))
    axes.set_xlim(0.5, max(len(state), 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, steps=STEPS, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=9)


def _course(axes: Axes, channel: int, norms: np.ndarray) -> float:
    """Draw the norm of a channel among the norms `[epochs, c_out]` of its layer, and return the largest one drawn."""
    x = np.arange(1, len(norms) + 1)
    missing = int(np.isnan(norms[:, channel]).sum())
    context = "grey: median and 10–90 % of the layer"
    note = f"not finite in {missing} of {len(x)} epochs" if missing else context
    set_title(axes, f"Norm of channel {channel} over the epochs", note)
    bounds = np.quantile(norms, CONTEXT, axis=1)  # NaN for an epoch with a NaN
    # To the edges of the axes, so that a single epoch is visible, too.
    low, median, high = np.pad(bounds, ((0, 0), (1, 1)), mode="edge")
    around = np.concatenate([[0.5], x, [len(x) + 0.5]])
    axes.fill_between(around, low, high, color=PADDING, alpha=0.5, linewidth=0)
    axes.plot(around, median, color=EDGE, linewidth=1)
    axes.plot(x, norms[:, channel], color=CHOSEN, linewidth=1.8, marker="." if len(x) <= 50 else "")
    return float(np.nanmax([*norms[:, channel], *high, 0.0])) or 1.0


def _mark_death(axes: Axes, since: int, epochs: int) -> None:
    """Mark the epoch since which a filter is dead."""
    axes.axvline(since, color=ink(), linewidth=1.2, linestyle=":")
    side = 1 if since <= 0.6 * epochs else -1
    place: dict[str, Any] = {"xy": (since, 0.97), "xycoords": ("data", "axes fraction"), "xytext": (4 * side, 0)}
    align = "left" if side > 0 else "right"
    axes.annotate(f"dead since epoch {since}", **place, textcoords="offset points", fontsize=SMALL, ha=align, va="top")


def areas(figure: Figure) -> list[Region]:
    """Return the places of the overview and of the filters in a figure of `channels`, for `channel_at`."""
    return [region(axes) for axes in figure.axes[:2]]


def channel_at(
    areas: Sequence[Region], layers: Mapping[str, int], layer: str, x: float, y: float
) -> tuple[str, int] | None:
    """Return the layer and channel at a position in the figure of `channels`, or `None` where there is no channel.

    Parameters
    ----------
    areas : sequence of Region
        Of the overview and of the filters of one layer.
    layers : mapping of str to int
        Number of channels of each layer, from top to bottom.
    layer : str
        The layer drawn in detail.
    x, y : float
        Fractions from the upper left corner.

    Examples
    --------
    >>> overview = Region(0.0, 0.0, 1.0, 0.5, xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
    >>> detail = Region(0.0, 0.6, 1.0, 1.0, xlim=(-0.5, 1.5), ylim=(0.0, 1.0))
    >>> channel_at([overview, detail], {"a": 2, "b": 1}, "a", 0.2, 0.4)
    ('b', 0)
    >>> channel_at([overview, detail], {"a": 2, "b": 1}, "a", 0.9, 0.9)
    ('a', 1)
    """
    overview, detail = areas
    if found := overview.data_at(x, y):
        layer = list(layers)[min(max(round(found[1]), 0), len(layers) - 1)]
    elif not (found := detail.data_at(x, y)):
        return None
    channel = round(found[0])
    return (layer, channel) if 0 <= channel < layers[layer] else None
