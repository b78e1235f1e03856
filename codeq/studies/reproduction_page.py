"""The table of a reproduction and the page ``docs/reproduction.md``, written from stored records of runs alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from codeq.analysis.published import SOURCE, published_results
from codeq.runs.provenance import short_commits
from codeq.studies.reproduction_budgets import Budget, Cell
from codeq.studies.statistics import ROUNDING, interval

ENOUGH = 3  # seeds, as many as the paper has runs
SIGNIFICANCE = 0.05
UNDECIDED = "no significant difference"
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
    "deviation", "verdict", "time, s", "with the networks before it, s", "hardware",
)  # fmt: skip
RUN_HEADINGS = (
    "run", "status", "data", "epochs", "batch", "format", "accuracy, %", "relative BOPs, %", "structured BOPs, %",
    "structured MACs, %", "bits", "time, s", "started from", "taught by", "target", "hardware", "commit", "started",
)  # fmt: skip
NOTES = """\
Relative BOPs are those of all layers against the dense network of 32 bits, with activations of 32 bits: unstructured,
except for networks with pruned channels, where they are structured. Accuracy is that of the last epoch on the test
images; `±` is the standard deviation over seeds, which stand behind their number. Deviations are percentage points. A
verdict is that of Welch's t test against the paper's mean and standard deviation, or of a one-sample t test where the
paper gives no deviation, at the level of 5 %. A difference that is not significant may still be there: few seeds show
large ones alone. Relative BOPs that are the target of the training are steered and have no verdict. Time is that of the
training alone, the mean for each hardware, and then with the trainings that the network starts from, on whatever
hardware; teachers, and the cut of channels, are not in it."""


def render_page(stores: Sequence[Mapping[str, Any]], budgets: Mapping[str, Budget]) -> str:
    """Return the page of all stored tables, as Markdown.

    Parameters
    ----------
    stores : sequence of mapping
        `table`, `budget` and `runs`, as ``codeq reproduce`` stores them, and `notes`, if any: what is to be said about
        the runs that their records do not hold.
    budgets : mapping of str to Budget
        By name.
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
        budget = budgets[store["budget"]]
        lines += ["", f"## Budget `{store['budget']}`", "", budget.recipe, "", *render_cells(store, budget.cells)]
        lines += ["", *(f"- {note}" for note in store["notes"])] if "notes" in store else []
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
    by_seed = {run["seed"]: run for run in mine if run["status"] == "done"}  # the same seed is no other run
    done = list(by_seed.values())
    others = Counter(run["status"] for run in mine if run["status"] != "done")
    seeds = f"{len(done)} ({', '.join(map(str, sorted(by_seed)))})" if done else "0"
    row = [name, cell.reading or "–", ", ".join([seeds, *(f"{count} {status}" for status, count in others.items())])]
    cost = "structured_relative_bops" if cell.method.endswith("channels") else "relative_bops"
    for key, column, more_is_better in (("accuracy", "accuracy", True), (cost, "relative_bops", False)):
        values = [run[key] for run in done]
        mean, std = (paper[theirs][column], paper[theirs][f"{column}_std"]) if theirs else (math.nan, math.nan)
        row += [_spread(*interval(values)[:2]), _spread(mean, std)]
        difference = interval(values)[0] - mean
        deviation = "–" if math.isnan(difference) else f"{100 * difference:+.2f}"
        if not comparable:
            row += ["–", "not comparable: other images"]
        elif any(key in (run.get("target") or {}) for run in done):
            row += [deviation, "steered"]
        else:
            row += [deviation, verdict(values, mean, std, more_is_better)]
    machines = list(dict.fromkeys(run["hardware"] for run in done))
    times = [[run for run in done if run["hardware"] == machine] for machine in machines]
    alone = [f"{interval([run['seconds'] for run in runs])[0]:.0f}" for runs in times]
    return [*row, "; ".join(alone) or "–", "; ".join(map(_whole_time, times)) or "–", "; ".join(machines) or "–"]


def _whole_time(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean time of runs with those that they started from, in seconds, if it is known of all of them."""
    if any(run.get("seconds_before") is None for run in runs):
        return "–"
    return f"{interval([run['seconds'] + run['seconds_before'] for run in runs])[0]:.0f}"


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
    ('no significant difference', 'worse')
    >>> verdict([0.9], 0.915, 0.01, True), verdict([0.9], float("nan"), float("nan"), True)
    ('too few seeds: 1 of 3', 'not in the paper')
    >>> verdict([0.90, float("nan"), 0.92], 0.915, 0.01, True)
    'no figure from 1 of 3 seeds'
    """
    import numpy as np
    from scipy.stats import ttest_1samp, ttest_ind_from_stats

    if math.isnan(mean):
        return "not in the paper"
    if unknown := np.count_nonzero(~np.isfinite(values)):
        return f"no figure from {unknown} of {len(values)} seeds"
    if len(values) < ENOUGH:
        return f"too few seeds: {len(values)} of {ENOUGH}"
    ours, ours_std, *_ = interval(values)
    if math.isclose(ours, mean, rel_tol=ROUNDING):  # also where nothing varies and no test is defined
        return UNDECIDED
    if math.isnan(std):
        p = ttest_1samp(values, mean).pvalue if ours_std > ROUNDING * abs(ours) else 0.0
    else:
        p = ttest_ind_from_stats(ours, ours_std, len(values), mean, std, ENOUGH, equal_var=False).pvalue
    if p >= SIGNIFICANCE:
        return UNDECIDED
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
    sources = [record["init_from"]] if record["init_from"] else []
    for paths in (sources, record.get("teachers", [])):
        row.append(", ".join(path.removeprefix("outputs/") for path in paths) or "–")
    row.append(", ".join(f"{key}={value}" for key, value in record.get("target", {}).items()) or "–")
    row += [record["hardware"], short_commits(record["commit"]) if record["commit"] else "–", record["started"]]
    return [str(entry) for entry in row]


def _spread(mean: float, std: float) -> str:
    return _percent(mean) if math.isnan(std) else f"{_percent(mean)} ± {_percent(std)}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
