"""Groups of runs: those with the same settings except the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeq.runs.run import ENVIRONMENT
from codeq.runs.settings import SEED, last_parts
from codeq.studies.files import read_json
from codeq.studies.query import unknown_column
from codeq.studies.short_labels import short_labels

if TYPE_CHECKING:
    import pandas as pd


def varied_keys(table: pd.DataFrame) -> list[str]:
    """Return the keys in which the runs of `table` differ, without the seed and without redundant ones.

    A key is redundant if the keys before it determine its value, as `variant` does for the keys that variants set.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it: keys stand between `reason` and the metrics. Without columns, as that of
        no runs, it has no keys.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"run": ["a", "b"], "status": "done", "reason": "", "variant": ["x", "y"], "lr": [1, 2],
    ...     "seed": [0, 1], "epoch": [3, 3]})
    >>> varied_keys(table)
    ['variant']
    """
    kept: list[str] = []
    groups = 1
    for name in setting_columns(table):
        found = table.groupby([*kept, name], dropna=False).ngroups if name != SEED else groups
        if found > groups:
            kept, groups = [*kept, name], found
    return kept


def setting_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of `table` that are settings of runs, the seed among them."""
    names = [str(name) for name in table.columns]
    return names[names.index("reason") + 1 : settings_end(names)] if names else []


def settings_end(names: Sequence[str]) -> int:
    """Return the number of columns of a table of `codeq.studies.collect` before the metrics.

    Examples
    --------
    >>> settings_end(["run", "status", "reason", "seed", "epoch", "eval/accuracy"])
    4
    """
    return min((names.index(name) for name in ("epoch", "folder") if name in names), default=0)


def repetitions(table: pd.DataFrame) -> list[str]:
    """Return for each run the name of a later one with the same settings and seed; empty if there is none.

    Only runs that are done are compared, and those whose settings could be read.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"run": ["a", "b", "c"], "status": "done", "reason": "", "seed": [0, 1, 0], "epoch": 3})
    >>> repetitions(table)
    ['c', '', '']
    """
    columns = [table[name].map(str).tolist() for name in setting_columns(table)]
    settings = list(zip(*columns, strict=True)) if columns else [()] * len(table)
    counted = [status == "done" and not reason for status, reason in zip(table["status"], table["reason"], strict=True)]
    names, rows = table["run"].tolist(), list(enumerate(zip(settings, counted, strict=True)))
    last = {key: row for row, (key, is_counted) in rows if is_counted}  # by row: two folders may have one name
    return [names[last[key]] if is_counted and last[key] != row else "" for row, (key, is_counted) in rows]


def group_labels(table: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return for each run the name of its group, from the values of `keys`.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it.
    keys : sequence of str
        Columns; runs with equal values belong to the same group. Without any, all runs belong to the group ``all``.

    Raises
    ------
    CodeqError
        For an unknown column.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"variant": ["l2", "l1"], "optimizer.param_groups.dz.lr": [0.01, None]})
    >>> group_labels(table, ["variant", "optimizer.param_groups.dz.lr"])
    ['l2, lr=0.01', 'l1, lr=none']
    """
    for key in keys:
        if key not in table:
            raise unknown_column(key, table)
    columns = [
        [label if key == "variant" else f"{name}={label}" for label in short_labels(table[key].tolist(), _text)]
        for key, name in zip(keys, last_parts(keys), strict=True)
    ]
    return [", ".join(parts) for parts in zip(*columns, strict=True)] if columns else ["all"] * len(table)


def mixed_formats(table: pd.DataFrame) -> dict[str, list[str]]:
    """Return the number formats of each group whose done runs were trained in several, as ``amp: auto`` chooses them.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it, with a column `group`.
    """
    found: dict[str, set[str]] = {}
    done = table[table["status"] == "done"]
    for group, folder in zip(done["group"], done["folder"], strict=True):
        precision = (read_json(Path(folder) / ENVIRONMENT) or {}).get("precision")
        if isinstance(precision, str):  # earlier versions wrote none
            found.setdefault(group, set()).add(precision)
    return {group: sorted(formats) for group, formats in found.items() if len(formats) > 1}


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
