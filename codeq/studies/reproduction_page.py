"""The table of a reproduction and the page ``docs/reproduction.md``, written from stored records of runs alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codeq.analysis.published import SOURCE, published_results
from codeq.studies.statistics import interval

ENOUGH = 3  # seeds, as many as the paper has runs
SIGNIFICANCE = 0.05
# Name of each method in the table, and in the paper's.
METHODS = {
    "float": ("float", "baseline"),
    "4 bit": ("CoDeQ 4 bit", "CoDeQ 4 bit"),
    "mixed": ("CoDeQ mixed", "CoDeQ mixed"),
    "float channels": ("float, channels pruned", ""),
    "channels": ("CoDeQ mixed, channels pruned", ""),
}
HEADINGS = (
    "network", "θ regularizer", "seeds", "accuracy, %", "paper", "deviation", "verdict", "relative BOPs, %", "paper",
    "deviation", "verdict", "time, s", "hardware",
)  # fmt: skip
RUN_HEADINGS = (
    "run", "status", "data", "epochs", "batch", "format", "accuracy, %", "relative BOPs, %", "structured BOPs, %",
    "structured MACs, %", "bits", "time, s", "hardware", "commit", "started",
)  # fmt: skip
NOTES = """\
Relative BOPs are those of all layers against the dense network of 32 bits, with activations of 32 bits: unstructured,
except for networks with pruned channels, where they are structured. Accuracy is that of the last epoch on the test
images; `±` is the standard deviation over seeds. Deviations are percentage points. A verdict is that of Welch's t test
against the paper's mean and standard deviation, or of a one-sample t test where the paper gives no deviation, at the
level of 5 %. Time is that of the training alone, without the networks that it starts from, for each hardware."""


@dataclass(frozen=True)
class Cell:
    """A row of the table.

    Parameters
    ----------
    method : str
        In `METHODS`.
    reading : {"l2", "decoupled"}, optional
        Reading of the regularizer on θ; `None` for a float network.
    """

    method: str
    reading: str | None


def render_page(stores: Sequence[Mapping[str, Any]], cells: Mapping[str, Sequence[Cell]]) -> str:
    """Return the page of all stored tables, as Markdown.

    Parameters
    ----------
    stores : sequence of mapping
        `table`, `budget` and `runs`, as ``codeq reproduce`` stores them.
    cells : mapping of str to sequence of Cell
        Rows by budget.
    """
    lines = [
        "# Reproduction of the paper's Table 2",
        "",
        "<!-- Written by docs/make_reproduction.py from benchmarks/reproduction/*.json; not edited by hand. -->",
        "",
        f"ResNet-20 on CIFAR-10, {SOURCE}. `codeq reproduce table2` trains the networks and stores the results.",
        "",
        NOTES,
    ]
    for store in stores:
        lines += ["", f"## Budget `{store['budget']}`", "", *render_cells(store, cells[store["budget"]])]
        lines += ["", "The runs:", "", *_table(RUN_HEADINGS, [_run(record) for record in store["runs"]])]
    return "\n".join(lines) + "\n"


def render_cells(store: Mapping[str, Any], cells: Sequence[Cell]) -> list[str]:
    """Return the lines of the table of a store, with a row for each of `cells`, also for those without runs."""
    published = published_results()
    published = published[(published["key_model"] == "resnet20") & (published["key_dataset"] == "cifar10")]
    paper = {row["method"]: row for row in published.to_dict("records")}
    comparable = store["budget"] != "smoke"
    return _table(HEADINGS, [_cell(cell, store["runs"], paper, comparable) for cell in cells])


def _cell(cell: Cell, runs: Sequence[Mapping[str, Any]], paper: Mapping[str, Any], comparable: bool) -> list[str]:
    name, theirs = METHODS[cell.method]
    mine = [run for run in runs if (run["method"], run["theta_regularizer"]) == (cell.method, cell.reading)]
    done = list({run["seed"]: run for run in mine if run["status"] == "done"}.values())  # the same seed is no other run
    others = Counter(run["status"] for run in mine if run["status"] != "done")
    seeds = ", ".join([str(len(done)), *(f"{count} {status}" for status, count in others.items())])
    row = [name, cell.reading or "–", seeds]
    cost = "structured_relative_bops" if cell.method.endswith("channels") else "relative_bops"
    for key, column, more_is_better in (("accuracy", "accuracy", True), (cost, "relative_bops", False)):
        values = [run[key] for run in done]
        mean, std = (paper[theirs][column], paper[theirs][f"{column}_std"]) if theirs else (math.nan, math.nan)
        row += [_spread(*interval(values)[:2]), _spread(mean, std)]
        row += _judged(values, mean, std, more_is_better) if comparable else ["–", "not comparable: other images"]
    machines = list(dict.fromkeys(run["hardware"] for run in done))
    seconds = [interval([run["seconds"] for run in done if run["hardware"] == machine])[0] for machine in machines]
    return [*row, "; ".join(f"{mean:.0f}" for mean in seconds) or "–", "; ".join(machines) or "–"]


def _judged(values: Sequence[float], mean: float, std: float, more_is_better: bool) -> list[str]:
    """Return the deviation from the paper in percentage points, and the verdict."""
    deviation = f"{100 * (interval(values)[0] - mean):+.2f}" if values and not math.isnan(mean) else "–"
    return [deviation, verdict(values, mean, std, more_is_better)]


def verdict(values: Sequence[float], mean: float, std: float, more_is_better: bool) -> str:
    """Compare the runs of a cell with the paper.

    Parameters
    ----------
    values : sequence of float
        Of the runs.
    mean, std : float
        The paper's, of three runs; `std` is NaN where it gives none, `mean` where it has no such network.
    more_is_better : bool
        Direction of a difference.

    Examples
    --------
    >>> verdict([0.90, 0.91, 0.92], 0.915, 0.01, True), verdict([0.80, 0.81, 0.82], 0.915, 0.01, True)
    ('agrees', 'worse')
    >>> verdict([0.9], 0.915, 0.01, True), verdict([0.9], float("nan"), float("nan"), True)
    ('too few seeds: 1 of 3', 'not in the paper')
    """
    from scipy.stats import ttest_1samp, ttest_ind_from_stats

    if math.isnan(mean):
        return "not in the paper"
    if len(values) < ENOUGH:
        return f"too few seeds: {len(values)} of {ENOUGH}"
    ours, ours_std, *_ = interval(values)
    if ours == mean:  # also where nothing varies and no test is defined
        return "agrees"
    if math.isnan(std):
        p = ttest_1samp(values, mean).pvalue if ours_std else 0.0
    else:
        p = ttest_ind_from_stats(ours, ours_std, len(values), mean, std, ENOUGH, equal_var=False).pvalue
    if p >= SIGNIFICANCE:
        return "agrees"
    return "better" if (ours > mean) == more_is_better else "worse"


def _run(record: Mapping[str, Any]) -> list[str]:
    percents = ("accuracy", "relative_bops", "structured_relative_bops", "structured_macs")
    row = [
        record["run"],
        record["status"],
        record["dataset"],
        record["epochs"],
        record["batch_size"],
        record["precision"],
    ]
    row += [_percent(record.get(key, math.nan)) for key in percents]
    row += [f"{record['mean_bits']:.2f}", f"{record['seconds']:.0f}"] if record["status"] == "done" else ["–", "–"]
    return [str(entry) for entry in (*row, record["hardware"], (record["commit"] or "–")[:8], record["started"])]


def _spread(mean: float, std: float) -> str:
    return _percent(mean) if math.isnan(std) else f"{_percent(mean)} ± {_percent(std)}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
