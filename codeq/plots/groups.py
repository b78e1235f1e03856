"""Figures of groups of runs that differ in their seed: means, intervals, and differences to a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.common.errors import CodeqError, quote
from codeq.plots.names import distinct_labels, literal, shortened
from codeq.plots.style import COLORS, legend, new_figure, require_columns, styled
from codeq.plots.theme import ink

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABEL = 44  # characters
LONGEST = 90  # of labels that would be equal otherwise


def metric_axis(metric: str) -> tuple[float, str]:
    """Return the factor and the label with which a metric is shown: fractions in percent.

    Examples
    --------
    >>> metric_axis("best/eval/accuracy"), metric_axis("train/ce_loss")
    ((100.0, 'best accuracy (%)'), (1.0, 'train/ce_loss'))
    """
    names = {"eval/accuracy": "accuracy", "best/eval/accuracy": "best accuracy", "train/accuracy": "training accuracy"}
    names |= {"test/accuracy": "test accuracy", "best/test/accuracy": "test accuracy of the best epoch"}
    names |= {"sparsity/unstructured": "zero weights", "sparsity/structured": "dead filters"}
    return (100.0, f"{names[metric]} (%)") if metric in names else (1.0, metric)


@styled
def group_means(summary: pd.DataFrame, runs: pd.DataFrame, metric: str) -> Figure:
    """Draw the mean of each group with its 95 % interval, and each run as a dot.

    Parameters
    ----------
    summary : DataFrame
        `group`, `n`, `mean`, `low`, `high`, as `codeq.studies.statistics.summarize` returns it.
    runs : DataFrame
        `group` and `metric` of the runs in the statistics.
    metric : str
        Name of the metric.

    Raises
    ------
    CodeqError
        For a missing column, for a group that `summary` lacks, and if no group has a value.
    """
    require_columns(summary, ["group", "n", "mean", "low", "high"], "summary")
    if not summary["n"].any():
        raise CodeqError(f"no done run has a value of {metric!r}")
    require_columns(runs, ["group", metric], "runs")
    position = {group: k for k, group in enumerate(summary["group"])}
    if missing := [group for group in runs["group"] if group not in position]:
        raise CodeqError(f"runs has the group {quote(missing[0])}, which summary lacks: {quote(list(position))}")
    scale, label = metric_axis(metric)
    figure, axes = _rows(summary["group"].tolist(), "Mean over seeds")
    dots: dict[str, Any] = {"s": 14, "color": COLORS["coefficient"], "alpha": 0.7, "zorder": 3, "label": "runs"}
    values = scale * runs[metric].to_numpy(dtype=float)
    axes.scatter(values, [position[group] + 0.18 for group in runs["group"]], **dots)
    _intervals(axes, summary, scale, COLORS["accuracy"], "mean and 95 % interval (Student's t)")
    _limit(axes, values, scale * summary[["low", "high"]].to_numpy(dtype=float))
    axes.set_xlabel(label, fontsize=10)
    legend(axes)
    return figure


@styled
def group_differences(differences: pd.DataFrame, metric: str, baseline: str) -> Figure:
    """Draw the mean difference of each group to the baseline with its 95 % interval.

    Parameters
    ----------
    differences : DataFrame
        `group`, `pairs`, `mean`, `low`, `high`, as `codeq.studies.statistics.paired_differences` returns it.
    metric, baseline : str
        Names of the metric and of the baseline's group.

    Raises
    ------
    CodeqError
        For a missing column, and if there are no pairs.
    """
    if len(differences):
        require_columns(differences, ["group", "pairs", "mean", "low", "high"], "differences")
    if not len(differences) or not differences["pairs"].any():
        raise CodeqError(f"no group has a done run with a seed in common with the baseline {baseline!r}")
    scale, label = metric_axis(metric)
    figure, axes = _rows(differences["group"].tolist(), "Difference to the baseline, paired by seed")
    axes.axvline(0, color=ink(), linewidth=1, zorder=1)
    _intervals(axes, differences, scale, COLORS["unstructured"], "mean and 95 % interval (Student's t)")
    means = scale * differences["mean"].to_numpy(dtype=float)
    _limit(axes, np.append(means, 0.0), scale * differences[["low", "high"]].to_numpy(dtype=float))
    points = label.replace("(%)", "(percentage points)")
    axes.set_xlabel(f"difference of {points}; baseline: {literal(shortened(str(baseline), MAX_LABEL))}", fontsize=10)
    legend(axes)
    return figure


def width_of(labels: Sequence[str]) -> float:
    """Return the inches beside a figure that labels longer than `MAX_LABEL` need."""
    return 0.07 * max(0, max(map(len, labels)) - MAX_LABEL)


def _rows(groups: Sequence[object], title: str) -> tuple[Figure, Axes]:
    """Return axes with one labelled row per group, the first at the top."""
    labels = distinct_labels(groups, MAX_LABEL, LONGEST)
    width = 9 + width_of(labels)
    figure, axes = new_figure(title, width=width, height=2.0 + 0.3 * len(groups))
    axes.set_yticks(range(len(groups)), labels, fontsize=9)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _intervals(axes: Axes, table: pd.DataFrame, scale: float, color: str, label: str) -> None:
    mean, low, high = (scale * table[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    errors = np.nan_to_num(np.stack([mean - low, high - mean]))  # one value has no interval
    style: dict[str, Any] = {"fmt": "o", "color": color, "markersize": 6, "capsize": 3, "zorder": 4}
    axes.errorbar(mean, range(len(table)), xerr=errors, **style, label=label)


def _limit(axes: Axes, values: np.ndarray, ends: np.ndarray) -> None:
    """Limit the x axis to about the values: the interval of two seeds is 13 standard errors wide.

    The title says so where one of the `ends` of intervals, NaN without an interval, is beyond the axis.
    """
    low, high = np.nanmin(values), np.nanmax(values)
    room = max(high - low, 1e-3 * max(abs(high), 1e-3))
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, low - room), min(right, high + room))
    if (ends < low - room).any() or (ends > high + room).any():
        axes.set_title("intervals continue beyond the axis", fontsize=9, loc="right")
