"""Several runs in one picture: learning curves, and bits, sparsity and cost of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codeq.common.errors import CodeqError
from codeq.plots.axes import epoch_axis, horizontal_grid, log_axis, spans_decades
from codeq.plots.layer_names import layer_ticks, named_layers
from codeq.plots.names import distinct_labels
from codeq.plots.studies import LINES
from codeq.plots.style import heading, legend, new_grid, require_columns, styled
from codeq.plots.tradeoff import RUN_COLORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_RUNS = len(RUN_COLORS) * len(LINES)  # with different looks
MAX_NAME = 70  # characters
WIDTH = 6.4  # inches; 640 pixels in a widget
LEAST_RANGE = 1.0  # bit or percentage point of an axis, so that differences between equal runs are not magnified
# Title, column of the history, and factor; BOPs are recorded as a compression ratio, the inverse of what is drawn.
CURVES = (
    ("test accuracy (%)", "eval/accuracy", 100.0),
    ("mean bits", "quantizer/mean_bits", 1.0),
    ("zero weights (%)", "sparsity/unstructured", 100.0),
    ("relative BOPs, unstructured (%)", "compression/unstructured_bops_ratio", -100.0),
)
LAYERS = (
    ("weights (bits)", "bits", 1.0),
    ("zero weights (%)", "zero_weights", 100.0),
    ("dead filters (%)", "dead_filters", 100.0),
    ("BOPs, structured (10⁶)", "structured_bops", 1e-6),
)


def _look(k: int) -> dict[str, Any]:
    return {"color": RUN_COLORS[k % len(RUN_COLORS)], "linestyle": LINES[k // len(RUN_COLORS) % len(LINES)]}


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    columns = 2 if max(map(len, labels)) <= MAX_NAME // 2 else 1
    legend(figure.axes[0], ncols=columns)


def _require_few(names: Sequence[str]) -> None:
    if len(names) > MAX_RUNS:
        raise CodeqError(f"{len(names)} runs are too many for one picture: at most {MAX_RUNS} are distinguishable")


@styled
def compared_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw test accuracy, mean bits, zero weights and relative BOPs of several runs over epochs.

    Parameters
    ----------
    histories : mapping of str to DataFrame
        For each run its name and its table of epochs: `epoch` (0-based) and, where recorded, `eval/accuracy`,
        `sparsity/unstructured` (fractions), `quantizer/mean_bits`, `compression/unstructured_bops_ratio` (×). With a
        validation split `eval/accuracy` is that of other images: `test/accuracy` is drawn, so that runs compare.

    Raises
    ------
    CodeqError
        Without runs, with more than can be distinguished, and for a run without epochs.

    Examples
    --------
    >>> import pandas as pd
    >>> runs = {name: pd.DataFrame({"epoch": [0], "eval/accuracy": [0.5]}) for name in ("lr=0.1", "lr=0.2")}
    >>> compared_curves(runs).axes[0].lines[0].get_xydata().tolist()
    [[1.0, 50.0]]
    """
    import pandas as pd

    if not histories:
        raise CodeqError("histories contains no run")
    _require_few(list(histories))
    for name, history in histories.items():
        require_columns(history, ["epoch"], f"history of {name!r}")
    figure, grid = new_grid(2, 2, width=WIDTH, height=4.4 + 0.12 * len(histories), sharex=True)
    heading(figure, "Learning curves")
    labels = distinct_labels(list(histories), MAX_NAME)
    epochs = pd.concat([history["epoch"] for history in histories.values()]).sort_values()
    for axes, (title, column, factor) in zip(grid.flat, CURVES, strict=True):
        for k, history in enumerate(histories.values()):
            used = "test/accuracy" if column == "eval/accuracy" and "test/accuracy" in history else column
            recorded = history[used] if used in history else history["epoch"] * float("nan")
            values = factor * recorded if factor > 0 else -factor / recorded
            marker = "o" if len(history) == 1 else None
            axes.plot(history["epoch"] + 1, values, **_look(k), marker=marker, markersize=4, label=labels[k])
        epoch_axis(axes, epochs)
        axes.set_xlabel("epoch" if axes in grid[1] else "", fontsize=9)
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        if factor < 0 and spans_decades(axes.dataLim.intervaly):
            log_axis(axes, "y")
        else:
            low, high = axes.get_ylim()
            room = max(LEAST_RANGE - (high - low), 0) / 2
            axes.set_ylim(low - room, high + room)
    _legend(figure, labels)
    return figure


@styled
def compared_layers(layers: pd.DataFrame) -> Figure:
    """Draw bits, zero weights, dead filters and BOPs of each layer of several runs.

    Parameters
    ----------
    layers : DataFrame
        One row per run and layer, as `codeq.analysis.common_layers` returns it: `run`, `layer`, `bits`, `zero_weights`,
        `dead_filters` (fractions), `structured_bops` (of one input). All runs have the same layers.

    Raises
    ------
    CodeqError
        For a missing column, a table without rows, and with more runs than can be distinguished.

    Examples
    --------
    >>> import pandas as pd
    >>> row = {"layer": "fc", "bits": 4, "zero_weights": 0.5, "dead_filters": 0.25, "structured_bops": 2e6}
    >>> figure = compared_layers(pd.DataFrame([{"run": "a"} | row, {"run": "b"} | row]))
    >>> [axes.lines[1].get_ydata().tolist() for axes in figure.axes]
    [[4.0], [50.0], [25.0], [2.0]]
    """
    require_columns(layers, ["run", "layer", *(column for _, column, _ in LAYERS)], "layers")
    runs, names = layers["run"].unique().tolist(), layers["layer"].unique().tolist()
    _require_few(runs)
    labels = distinct_labels(runs, MAX_NAME)
    _, ticks, _ = named_layers(names)
    height = 4.6 + 0.06 * max(map(len, ticks)) + 0.12 * len(runs)
    figure, grid = new_grid(len(LAYERS), 1, width=WIDTH, height=height, sharex=True)
    heading(figure, "Layers after the last epoch")
    for axes, (title, column, factor) in zip(grid[:, 0], LAYERS, strict=True):
        for k, run in enumerate(runs):
            values = factor * layers.loc[layers["run"] == run, column].astype(float).to_numpy()
            style: dict[str, Any] = {"marker": ".", "markersize": 5, "linewidth": 1, "drawstyle": "steps-mid"}
            axes.plot(range(len(names)), values, **_look(k), **style, label=labels[k])
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        if column == "structured_bops" and spans_decades(axes.dataLim.intervaly):
            log_axis(axes, "y")
        else:
            axes.set_ylim(0, max(1.08 * axes.dataLim.y1, LEAST_RANGE))
        horizontal_grid(axes)
    layer_ticks(grid[-1, 0], names)
    _legend(figure, labels)
    return figure
