"""Accuracy against cost of several runs, with their Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.common.errors import CodeqError
from codeq.plots.axes import log_axis
from codeq.plots.labels import Label, place_labels
from codeq.plots.names import distinct_labels, literal, shortened
from codeq.plots.style import legend, new_figure, require_columns, styled
from codeq.plots.theme import ink, paper

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A"]
MARKERS = "oPXvs^*h"  # with the colours 56 distinct looks
MAX_LEGEND = 24  # runs; of more, only those on the Pareto front are labelled, at their points
MAX_NAME = 30  # characters of a name that fits into a legend of two columns
MAX_LINE = 95  # characters of one that fits into a legend of one column


def pareto_front(cost: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Return the mask of Pareto-optimal points: no other point costs less at equal accuracy or is better at equal cost.

    Parameters
    ----------
    cost, accuracy : array
        `[N]`; a low cost and a high accuracy are better. A point with a NaN is never on the front.

    Returns
    -------
    array of bool
        `[N]`. Equal points are all on the front.

    Raises
    ------
    CodeqError
        If the lengths differ.

    Examples
    --------
    >>> pareto_front(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.9, 0.8])).tolist()
    [True, True, False]
    """
    cost, accuracy = np.asarray(cost, dtype=float), np.asarray(accuracy, dtype=float)
    if cost.shape != accuracy.shape or cost.ndim != 1:
        raise CodeqError(f"cost and accuracy have shapes {cost.shape} and {accuracy.shape}: both must be [N]")
    front = np.zeros(len(cost), dtype=bool)
    known = np.flatnonzero(~np.isnan(cost) & ~np.isnan(accuracy))
    best, best_cost = -np.inf, np.nan
    for k in known[np.lexsort((-accuracy[known], cost[known]))]:  # by cost, the more accurate first
        front[k] = accuracy[k] > best or (accuracy[k] == best and cost[k] == best_cost)
        if accuracy[k] > best:
            best, best_cost = accuracy[k], cost[k]
    return front


@styled
def accuracy_against_bops(summary: pd.DataFrame, published: pd.DataFrame | None = None) -> Figure:
    """Draw accuracy against relative BOPs of several runs, with Pareto fronts and published results.

    Each data set has separate fronts.

    Parameters
    ----------
    summary : DataFrame
        One row per run or group of runs: `run`, `dataset`, `accuracy` (on the test images, last epoch, a fraction),
        `unstructured_bops`, `structured_bops` (relative to the dense 32-bit network, fractions); their standard
        deviations, where there are columns `accuracy_std`, …, are error bars.
    published : DataFrame, optional
        One row per result for the same model and data set: `method`, `accuracy`, `relative_bops` (fractions),
        `structured` (whether the BOPs are structured), `source`, `model`, `dataset`; standard deviations likewise.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    require_columns(summary, ["run", "dataset", "accuracy", "unstructured_bops", "structured_bops"], "summary")
    in_legend = len(summary) <= MAX_LEGEND
    rows = len(summary) if in_legend else 0
    figure, axes = new_figure("Accuracy against cost", width=9, height=5.5 + 0.1 * rows)
    labels: list[Label] = []
    if published is not None and len(published):
        labels += _draw_published(axes, published)
    accuracy = 100 * summary["accuracy"].to_numpy(dtype=float)
    costs = {kind: 100 * summary[f"{kind}_bops"].to_numpy(dtype=float) for kind in ("unstructured", "structured")}
    names = distinct_labels(summary["run"].tolist(), MAX_LINE if in_legend else MAX_NAME, MAX_LINE)
    for k, shown in enumerate(names):
        color, marker = RUN_COLORS[k % len(RUN_COLORS)], MARKERS[k // len(RUN_COLORS) % len(MARKERS)]
        points = [costs["unstructured"][k], costs["structured"][k]]
        axes.plot(points, [accuracy[k]] * 2, color=color, linewidth=0.8, alpha=0.5, zorder=2)
        style: dict[str, Any] = {"edgecolors": color, "marker": marker}
        name = shown if in_legend else None
        axes.scatter(points[:1], accuracy[k : k + 1], facecolors=color, s=30, zorder=4, label=name, **style)
        axes.scatter(points[1:], accuracy[k : k + 1], facecolors=paper(), s=75, zorder=3, **style)
        for kind, cost in zip(costs, points, strict=True):
            _error_bars(axes, summary.iloc[k : k + 1], f"{kind}_bops", np.array([cost]), accuracy[k : k + 1], color)
    labels += _draw_fronts(axes, summary, accuracy, costs, names=[] if in_legend else names)
    hollow: dict[str, Any] = {"facecolors": paper(), "edgecolors": ink(), "marker": "o", "s": 75}
    axes.scatter([], [], **hollow, label="hollow: structured BOPs")
    log_axis(axes, "x")
    _name_absent(axes, summary, costs)
    axes.margins(y=0.25)
    bottom, top = axes.get_ylim()
    axes.set_ylim(top=min(top, 100 + 0.03 * (top - bottom)))
    axes.set_xlabel("relative BOPs (% of dense, weights and activations of 32 bits); filled: unstructured", fontsize=10)
    axes.set_ylabel("test accuracy after the last epoch (%)", fontsize=10)
    axes.grid(alpha=0.3, linewidth=0.6)
    legend(axes, ncols=2 if summary["run"].astype(str).str.len().max() <= MAX_NAME else 1)
    place_labels(axes, labels, np.concatenate([np.stack([cost, accuracy], axis=1) for cost in costs.values()]))
    return figure


def _name_absent(axes: Axes, summary: pd.DataFrame, costs: dict[str, np.ndarray]) -> None:
    """Name in the legend the runs whose network costs nothing: a logarithmic axis has no place for their points."""
    for kind, cost in costs.items():
        names = summary["run"][cost == 0].tolist()
        if names and axes.get_xscale() == "log":
            shown = shortened(", ".join(map(str, names)), MAX_NAME)
            axes.plot([], [], " ", label=literal(f"not on a log axis: 0 % {kind} BOPs of {shown}"))


def _error_bars(
    axes: Axes, table: pd.DataFrame, cost: str, x: np.ndarray, y: np.ndarray, color: str, zorder: float = 2
) -> None:
    """Draw the standard deviations of `table` (fractions) at points (in percent), where there are any."""
    names = [f"{cost}_std", "accuracy_std"]
    if not set(names) <= set(table) or table[names].isna().all(axis=None):
        return
    width, height = (np.nan_to_num(100 * table[name].to_numpy(dtype=float)) for name in names)
    axes.errorbar(x, y, xerr=width, yerr=height, fmt="none", ecolor=color, elinewidth=1, capsize=2, zorder=zorder)


def _draw_fronts(
    axes: Axes, summary: pd.DataFrame, accuracy: np.ndarray, costs: dict[str, np.ndarray], names: Sequence[str]
) -> list[Label]:
    """Draw the Pareto front of each data set and accounting, and return the labels of its runs if named."""
    datasets = summary["dataset"].to_numpy()
    several = len(set(datasets)) > 1
    labels = []
    for dataset in dict.fromkeys(datasets):
        rows = np.flatnonzero(datasets == dataset)
        for (kind, cost), line in zip(costs.items(), ("-", ":"), strict=True):
            front = rows[pareto_front(cost[rows], accuracy[rows])]
            front = front[np.argsort(cost[front])]
            if len(front) > 1:
                look: dict[str, Any] = {"color": ink(), "linewidth": 1, "linestyle": line, "where": "post"}
                label = f"Pareto front of the runs, {kind}" + (f", {dataset}" if several else "")
                axes.step(cost[front], accuracy[front], **look, zorder=1, label=label)
            if names and kind == "unstructured":
                labels += [Label(names[k], cost[k], accuracy[k], ink()) for k in front]
    return labels


def _draw_published(axes: Axes, published: pd.DataFrame) -> list[Label]:
    """Draw published results and return their labels."""
    columns = ["method", "accuracy", "relative_bops", "structured", "source", "model", "dataset"]
    require_columns(published, columns, "published")
    first = published.iloc[0]
    color = ink()
    ordered = published.sort_values("relative_bops")
    x, y = (100 * ordered[column].to_numpy(dtype=float) for column in ("relative_bops", "accuracy"))
    faces = [paper() if structured else color for structured in ordered["structured"]]
    axes.scatter(x, y, marker="D", s=28, facecolors=faces, edgecolors=color, zorder=1)
    source = f"published, 32-bit activations: {first['model']}, {first['dataset']} ({first['source']})"
    axes.scatter([], [], marker="D", s=28, facecolors=color, edgecolors=color, label=source)
    _error_bars(axes, ordered, "relative_bops", x, y, color, zorder=0.9)
    return [Label(*each, color) for each in zip(ordered["method"], x, y, strict=True)]
