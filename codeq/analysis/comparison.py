"""Comparison of runs: settings that differ, names made of them, and layers that all runs have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from codeq.analysis.published import published_network
from codeq.analysis.recorded import last_layers
from codeq.analysis.selection import run_labels
from codeq.analysis.tables import summary_table
from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.runs.folders import oldest_first
from codeq.runs.references import require_runs
from codeq.runs.settings import NEUTRAL_KEYS, SEED, group_key, last_parts, read_settings, without_seeds

if TYPE_CHECKING:
    import pandas as pd

ABSENT = "–"
UNREADABLE = "?"  # every setting of a run whose configuration cannot be read
MANY = 10  # settings: runs that differ in more of them have little in common


def differing_settings(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the settings in which runs differ, as text: one row per dotted key, one column per run.

    Names and folders of runs are left out, and the run's own seed in texts (``init_from: outputs/float/seed=0``) is
    ``{seed}``. Arguments of a quantizer, a loss or another part that a run leaves out are shown with their defaults, a
    key that a run does not have as ``–``, and all keys of a run whose configuration cannot be read as ``?``.

    Parameters
    ----------
    runs : sequence of Run
        In any state.

    Examples
    --------
    >>> from codeq.config import ExperimentConfig
    >>> runs = [Run.create(ExperimentConfig("x", seed=k, run_dir=f"outputs/run{k}")) for k in (0, 1)]
    >>> differing_settings(runs)
         run0 run1
    seed    0    1
    """
    import pandas as pd

    runs = require_runs(runs)
    settings = [_flat(one) if one else None for one in without_seeds(_settings(runs))]
    keys = dict.fromkeys(key for one in settings if one is not None for key in one)
    rows = {
        key: [UNREADABLE if one is None else _text(one[key]) if key in one else ABSENT for one in settings]
        for key in keys
    }
    differing = {key: row for key, row in rows.items() if len(set(row)) > 1}
    return pd.DataFrame.from_dict(differing, orient="index", columns=run_labels(runs))


def mean_over_seeds(runs: Sequence[Run]) -> pd.DataFrame:
    """Return test accuracy and relative BOPs after the last epoch, for each group of runs that differ in the seed.

    `codeq.runs.settings.NEUTRAL_KEYS`, such as the device, divide no groups.
    Only finished runs are averaged: the others have stopped at different epochs. Each of them is a separate row.
    Of finished runs with the same settings and seed the one that started last counts, as in
    `codeq.studies.analysis.read_results`: twice the same seed is no second sample.

    Parameters
    ----------
    runs : sequence of Run
        In any state; those without an evaluated epoch are left out.

    Returns
    -------
    DataFrame
        `run` (name of the group, with its number of seeds or its status), `model`, `dataset`, `network` (as
        `published_network` returns it), `status`, `seeds` (number of different seeds); means over the seeds `accuracy`,
        `unstructured_bops`, `structured_bops` (fractions), and their standard deviations (divisor n - 1; NaN for one
        seed) as `…_std`.

    Raises
    ------
    CodeqError
        If no epoch has been evaluated.
    """
    import pandas as pd

    table = summary_table(runs).assign(label=run_labels(runs), place=range(len(runs)))
    started = oldest_first(run.folder for run in runs)
    table = table.assign(started=[started.index(run.folder) for run in runs])
    settings = _settings(runs)
    groups = [_group(run, one) for run, one in zip(runs, without_seeds(settings), strict=True)]
    table = table.assign(group=[group for group, _ in groups], seed=[seed for _, seed in groups])
    table = table.assign(network=[published_network(one) for one in settings])
    # Also with a validation split the accuracy on the test images, so that all runs and published results compare.
    table = table.assign(accuracy=table["test_accuracy_last"])
    table = table[table["accuracy"].notna()]
    if not len(table):
        raise CodeqError("no epoch has been evaluated")
    parts = [rows for _, rows in table.groupby("group", sort=False)]
    order = [rows.sort_values("status", key=lambda status: status != "done", kind="stable") for rows in parts]
    first = [runs[rows["place"].iloc[0]] for rows in order]  # a finished run, if there is one
    several = len(parts) < len(table)
    # The folder of one run would be no name for its group.
    names = _names_by_settings(first, differing_settings(first)) if several else run_labels(first)
    means = []
    for name, rows in zip(names, parts, strict=True):
        done = rows["status"] == "done"
        if done.any():
            means.append(_mean(_with_number(name, rows[done]), _last_of_each_seed(rows[done])))
        for _, one in rows[~done].groupby("place"):
            label, status = one["label"].iloc[0], one["status"].iloc[0]
            own = f"{label}: {name}" if len(parts) > 1 else label
            shown = own if len(rows) > 1 else name  # the settings name other runs of the group, too
            means.append(_mean(f"{shown} ({status})", one))
    return pd.DataFrame(means)


def _mean(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    """Return the row of `mean_over_seeds` for runs with the same settings and status."""
    row: dict[str, Any] = {"run": name, "seeds": rows["seed"].nunique()}
    row |= {column: rows[column].iloc[0] for column in ("model", "dataset", "network", "status")}
    for column in ("accuracy", "unstructured_bops", "structured_bops"):
        row |= {column: rows[column].mean(), f"{column}_std": rows[column].std()}
    return row


def _last_of_each_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return finished runs without those that a later one repeats; a run whose seed is unknown repeats none."""
    rows = rows.sort_values("started")
    return rows[~rows["seed"].duplicated(keep="last") | (rows["seed"] == UNREADABLE)]


def _with_number(name: str, rows: pd.DataFrame) -> str:
    """Return the name of a group of finished runs with the number of its seeds, and of its runs if they are more."""
    count, seeds = len(rows), rows["seed"].nunique()
    if count == seeds:
        return f"{name} ({seeds} seeds)" if seeds > 1 else name
    repeated = f"{seeds} seeds" if seeds > 1 else f"seed {rows['seed'].iloc[0]}"
    return f"{name} ({count} runs of {repeated})"


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the settings of runs; none of a run whose configuration cannot be read."""
    found: list[dict[str, Any]] = []
    for run in runs:
        try:
            found.append(read_settings(run.folder / "config.yaml"))
        except CodeqError:
            found.append({})
    return found


def _group(run: Run, settings: dict[str, Any]) -> tuple[str, str]:
    """Return the settings of a run and its seed as text; the run's folder and ``?`` if they cannot be read."""
    if not settings:
        return str(run.folder), UNREADABLE
    return group_key(settings), str(settings.get(SEED, UNREADABLE))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists of mappings by dotted names."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        items = list(enumerate(value))
    if not items:
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, part in items:
        leaves |= _flat(part, f"{name}.{key}" if name else str(key))
    return leaves


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def distinct_names(runs: Sequence[Run], settings: pd.DataFrame | None = None) -> list[str]:
    """Return a unique name for each run that states in which settings it differs from the others.

    A setting that the ones before it determine is left out; the seed comes after those that decide what a training
    computes, and before the device and other `NEUTRAL_KEYS`. Runs with equal settings are named by their folders, and
    so are runs that differ in more than ten settings, of which one or two would say little.

    Parameters
    ----------
    runs : sequence of Run
        In any state.
    settings : DataFrame, optional
        `differing_settings` of the runs, if they are at hand.

    Examples
    --------
    >>> from codeq.config import ExperimentConfig
    >>> runs = [Run.create(ExperimentConfig("x", seed=seed, run_dir=f"outputs/{seed}")) for seed in (0, 1)]
    >>> distinct_names(runs), distinct_names(runs[:1])
    (['seed=0', 'seed=1'], ['0'])
    """
    table = differing_settings(runs) if settings is None else settings
    unrelated = sum(key.partition(".")[0] not in NEUTRAL_KEYS for key in _told_apart(table)) > MANY
    return run_labels(runs) if unrelated else _names_by_settings(runs, table)


def _told_apart(table: pd.DataFrame) -> set[str]:
    """Return the keys in which runs differ whose configurations can be read."""
    readable = _readable(table)
    return set(readable[readable.nunique(axis=1) > 1].index) if len(table) else set()


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[:, ~(table == UNREADABLE).all()]


def _names_by_settings(runs: Sequence[Run], table: pd.DataFrame) -> list[str]:
    """Return `distinct_names` made of few or many settings, given the `differing_settings` of the runs.

    The keys are those that tell apart the runs whose configurations can be read: others differ from all in each key.
    """
    labels = run_labels(runs)
    kept: list[str] = []
    groups = 1
    readable = _readable(table)
    told = [key for key in table.index if key in _told_apart(table)]
    for key in sorted(told, key=lambda key: (key.partition(".")[0] in NEUTRAL_KEYS, key == SEED)):
        found = len(set(zip(*readable.loc[[*kept, key]].to_numpy().tolist(), strict=True)))
        if found > groups:
            kept, groups = [*kept, key], found
    names = [
        ", ".join(f"{name}={value}" for name, value in zip(last_parts(kept), table.loc[kept].iloc[:, k], strict=True))
        for k in range(len(labels))
    ]
    return [
        name if name and names.count(name) == 1 else f"{label}: {name}" if name else label
        for name, label in zip(names, labels, strict=True)
    ]


def common_layers(runs: Sequence[Run], names: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Return the layers that all runs have with the same number of filters, and how many others there are.

    Parameters
    ----------
    runs : sequence of Run
        With a recorded epoch.
    names : sequence of str
        Names of the runs in the table.

    Returns
    -------
    DataFrame
        One row per run and layer, in order of execution, after the last recorded epoch: `run`, `layer`, `bits`,
        `zero_weights`, `dead_filters` (fractions), `structured_bops` (of one input).
    int
        Number of layers that a run lacks or has with another number of filters.

    Raises
    ------
    CodeqError
        Without runs, and if no epoch of a run was recorded, or its table cannot be read.
    """
    return join_layers([last_layers(run) for run in require_runs(runs)], names)


def join_layers(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Return `common_layers` of runs, given the table of the layers of each after one epoch, as of `last_layers`."""
    import pandas as pd

    if not tables:
        raise CodeqError("runs contains no run, so there are no layers")
    found = [set(zip(table["layer"], table["filters"], strict=True)) for table in tables]
    common = {layer for layer, _ in set.intersection(*found)}
    others = {layer for layers in found for layer, _ in layers} - common
    parts = []
    for name, table in zip(names, tables, strict=True):
        rows = table[table["layer"].isin(common)]
        columns = {
            "run": name, "layer": rows["layer"], "bits": rows["bits"], "zero_weights": 1 - rows["density"],
            "dead_filters": rows["dead_filters"] / rows["filters"], "structured_bops": rows["structured_bops"],
        }  # fmt: skip
        parts.append(pd.DataFrame(columns).set_index("layer", drop=False))
    order = parts[0].index  # of the first run, also if another one executes them in another order
    return pd.concat([part.loc[order] for part in parts], ignore_index=True), len(others)
