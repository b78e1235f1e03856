"""Figures of the runs of a study: effects of parameters, learning curves and bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.common.checks import check_collection
from codeq.common.errors import CodeqError
from codeq.plots.axes import epoch_axis, log_axis, spans_decades
from codeq.plots.groups import LONGEST, MAX_LABEL, metric_axis, width_of
from codeq.plots.layer_names import MAX_NAMES, named_layers, width_for_layers
from codeq.plots.names import distinct_labels, literal, shortened
from codeq.plots.style import COLORS, HEAT, heading, legend, new_figure, new_grid, require_columns, styled
from codeq.plots.tradeoff import RUN_COLORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ["-", "--", ":", "-."]  # with the colours 28 distinct looks
MAX_LEGEND = 24  # groups
MAX_CATEGORIES = 8  # different values of a parameter on an axis of categories
MAX_VALUE = 24


@styled
def parameter_effects(runs: pd.DataFrame, parameters: Sequence[str], metric: str) -> Figure:
    """Draw a metric against each parameter, one panel each, over all values of the other parameters.

    Few values are categories with dots of all runs and mean ± standard deviation; many numbers are a scatter plot.

    Parameters
    ----------
    runs : DataFrame
        The parameters and the metric of each run.
    parameters : sequence of str
        Columns.
    metric : str
        Column.

    Raises
    ------
    CodeqError
        If `parameters` is empty or no list, and for a missing column or a table without rows.
    """
    check_collection("parameters", parameters)
    if not parameters:
        raise CodeqError("no parameter varies between the runs")
    require_columns(runs, [*parameters, metric], "runs")
    scale, label = metric_axis(metric)
    columns = min(len(parameters), 3)
    rows = -(-len(parameters) // columns)
    figure, grid = new_grid(rows, columns, width=1.0 + 3.2 * max(columns, 2), height=0.8 + 3.0 * rows, sharey=True)
    heading(figure, "Effect of each parameter")
    values = scale * runs[metric].to_numpy(dtype=float)
    for axes, name in zip(grid.flat, parameters, strict=False):
        _effect(axes, runs[name], values)
        axes.set_xlabel(literal(shortened(name, MAX_LABEL)), fontsize=10)
        axes.set_ylabel("")
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in grid.flat[len(parameters) :]:
        axes.set_visible(False)
    figure.supylabel(label, fontsize=10)
    return figure


def _effect(axes: Axes, setting: pd.Series, values: np.ndarray) -> None:
    import seaborn

    distinct = setting.dropna().unique()
    if setting.dtype.kind in "if" and len(distinct) > MAX_CATEGORIES:
        seaborn.scatterplot(x=setting.to_numpy(), y=values, s=22, color=COLORS["unstructured"], ax=axes)
        if spans_decades(distinct):
            log_axis(axes, "x")
        return
    missing = ["none"] if setting.isna().any() else []
    names = [_text(value) for value in sorted(distinct, key=lambda value: (isinstance(value, str), value))]
    labels = dict(zip(names, distinct_labels(names, MAX_VALUE), strict=True))
    order = [*labels.values(), *missing]
    texts = ["none" if empty else labels[_text(value)] for value, empty in zip(setting, setting.isna(), strict=True)]
    common: dict[str, Any] = {"x": texts, "y": values, "order": order, "ax": axes}
    seaborn.stripplot(**common, size=4, color=COLORS["coefficient"], alpha=0.7, jitter=False)
    seaborn.pointplot(
        **common, errorbar="sd", color=COLORS["unstructured"], linestyle="none", markersize=6, capsize=0.12,
        err_kws={"linewidth": 1.4},
    )  # fmt: skip
    long = max(map(len, order)) * len(order) > 34
    axes.tick_params(axis="x", labelrotation=30 if long else 0)


def _text(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


@styled
def learning_bands(curves: pd.DataFrame, metric: str) -> Figure:
    """Draw the mean of each group over epochs, with a band of ± one standard deviation over its runs.

    Parameters
    ----------
    curves : DataFrame
        `group`, `epoch` (0-based), `n`, `mean`, `std`, as `codeq.studies.series.learning_curves` returns it.
    metric : str
        Name of the metric.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    require_columns(curves, ["group", "epoch", "n", "mean", "std"], "curves")
    scale, label = metric_axis(metric)
    groups = curves["group"].unique().tolist()
    named = len(groups) <= MAX_LEGEND
    figure, axes = new_figure("Learning curves", width=9, height=4.5 + (0.12 * len(groups) if named else 0))
    names = distinct_labels(groups, MAX_LABEL, LONGEST)
    for k, (group, shown) in enumerate(zip(groups, names, strict=True)):
        rows = curves[curves["group"] == group]
        x, mean, std = rows["epoch"] + 1, scale * rows["mean"], scale * rows["std"]
        look: dict[str, Any] = {"color": RUN_COLORS[k % len(RUN_COLORS)], "linewidth": 1.6}
        look |= {"linestyle": LINES[k // len(RUN_COLORS) % len(LINES)], "marker": "o" if len(rows) == 1 else None}
        axes.plot(x, mean, **look, label=f"{shown} (n = {rows['n'].max()})" if named else None)
        if len(rows) == 1:  # a band of one epoch has no width
            axes.errorbar(x, mean, yerr=std, fmt="none", color=look["color"], capsize=3)
        axes.fill_between(x, mean - std, mean + std, color=look["color"], alpha=0.18, linewidth=0)
    epoch_axis(axes, curves["epoch"].sort_values())
    axes.set_ylabel(label, fontsize=10)
    axes.set_title("mean ± standard deviation over runs", fontsize=9, loc="right")
    if named:
        legend(axes, ncols=2 if max(map(len, names)) <= MAX_LABEL else 1)
    return figure


@styled
def bits_over_groups(bits: pd.DataFrame) -> Figure:
    """Draw the mean bits of each layer (columns) in each group (rows) as a heat map.

    Parameters
    ----------
    bits : DataFrame
        `group`, `layer`, `mean`, as `codeq.studies.series.layer_bits` returns it. Layers that a group lacks are empty.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    import seaborn

    require_columns(bits, ["group", "layer", "mean"], "bits")
    groups, layers = bits["group"].unique().tolist(), bits["layer"].unique().tolist()
    table = bits.pivot(index="group", columns="layer", values="mean").loc[groups, layers]
    labels = distinct_labels(groups, MAX_LABEL, LONGEST)
    width = width_for_layers(len(layers)) + 1.5 + width_of(labels)
    figure, grid = new_grid(1, 1, width=width, height=2.2 + 0.32 * len(groups))
    axes = grid[0, 0]
    heading(figure, "Bits of each layer", "mean over the runs of a group, after the last epoch")
    top = max(math.ceil(bits["mean"].max()), 1)
    seaborn.heatmap(
        table, cmap=HEAT, vmin=0, vmax=top, annot=len(layers) <= MAX_NAMES, fmt=".1f", annot_kws={"fontsize": 7},
        cbar_kws={"label": "bits"}, xticklabels=False,
        yticklabels=labels, rasterized=True, ax=axes,
    )  # fmt: skip
    axes.tick_params(labelsize=9)
    positions, names, note = named_layers(layers)
    centres = [position + 0.5 for position in positions]
    axes.set_xticks(centres, names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set(xlabel=note, ylabel="")
    for tick in axes.get_yticklabels():
        tick.set(rotation=0)
    return figure
