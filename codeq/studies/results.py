"""Results of many runs as one table, read from the ends of their plain files."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.runs.defaults import with_defaults
from codeq.runs.folders import matching_folders, oldest_first
from codeq.runs.references import locate
from codeq.runs.settings import NEUTRAL_KEYS, read_settings, without_seeds
from codeq.runs.tables import chosen_by, complete_lines, lost_epochs
from codeq.studies.attempts import file_system_time
from codeq.studies.dotted import leaves, look_up
from codeq.studies.files import HIDDEN, read_index
from codeq.studies.groups import settings_end
from codeq.studies.states import read_state, read_states

if TYPE_CHECKING:
    import pandas as pd

# Columns of each run besides its settings and its metrics.
OWN_COLUMNS = frozenset({"run", "status", "reason", "variant", "epoch", "folder", "group"})  # `group` of `read_results`
CHOSEN_BY = "best/chosen_by"
REPEATED = "repeated"  # status of a done run that a later one repeats, see `codeq.studies.analysis.read_results`


def collect(runs: str | os.PathLike[str]) -> pd.DataFrame:
    """Return one row for each run of a study, or of a glob; those of a glob in the order in which they started.

    Parameters
    ----------
    runs : path
        Folder of a study, also by its name, or a glob that matches run folders; relative globs start at the project's
        folder.

    Returns
    -------
    DataFrame
        `run` (name of the folder; with its parent's where a glob has several parents), `status`, `reason` (why it ended
        so); for a study `variant`, if it has variants; a column for each key that varies, under its dotted name and
        with the value in force (lists and mappings as JSON; an argument of a quantizer, a loss or another part that a
        run leaves out with the default of the part that is registered now; the run's own seed in texts is ``{seed}``;
        for a glob without `codeq.runs.settings.NEUTRAL_KEYS` such as the device, which divide no groups); the last
        epoch's metrics under their log keys, except one with the name of a key that varies; `best/eval/accuracy`, the
        highest of all epochs, and `best/chosen_by`, the images on which it was measured and chosen (``validation`` or
        ``test``); with a validation split `best/test/accuracy`, of the epoch that validation images chose, and
        `test/accuracy` and `test/loss`, which runs without a split then have, too; `folder`. A run that is done but
        whose table has fewer epochs than were configured has no metrics, and a `reason` that says so.
        Members of a study that never began are left out.

    Raises
    ------
    CodeqError
        If there are no runs.

    Examples
    --------
    >>> from codeq import ExperimentConfig, Run
    >>> for seed in (0, 1):
    ...     _ = Run.create(ExperimentConfig(name="demo", seed=seed, run_dir=f"outputs/demo/{seed}"))
    >>> collect("outputs/demo/*")[["run", "status", "seed"]]
      run   status  seed
    0   0  running     0
    1   1  running     1
    """
    root = locate(runs) or resolve(runs)
    members = read_index(root)
    rows = _study_rows(root, members) if members else _glob_rows(root)
    if not rows:
        raise CodeqError(f"{root} holds no runs: name the folder of a study, or a glob that matches run folders")
    return as_table(rows)


def as_table(rows: Sequence[Mapping[str, Any]], wanted: Collection[str] = ()) -> pd.DataFrame:
    """Return rows of runs as a table in which columns of the test images hold those of all runs.

    Without a validation split the test images are those of ``eval/…``, so that `test/accuracy` compares all runs. These
    columns are there if they are `wanted` or a run has a split. `best/test/accuracy` stays that of runs with a split:
    the best epoch of the others was chosen on the test images.
    """
    import pandas as pd

    table = pd.DataFrame(rows)
    for name in ("test/accuracy", "test/loss"):
        evaluated = name.replace("test/", "eval/")
        if name in {*table.columns, *wanted} and {evaluated, CHOSEN_BY} <= {*table.columns}:
            table[name] = table[evaluated].where(table[CHOSEN_BY] == "test", table.get(name, math.nan))
    return table


def _study_rows(root: Path, members: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    now = file_system_time(root / HIDDEN)
    keys = list(dict.fromkeys(key for member in members.values() for key in member["varied"]))
    states = {name: read_state(root, name, now) for name in members}
    began = [name for name, found in states.items() if found.state != "pending"]
    incomplete = any(set(keys) - set(members[name]["varied"]) for name in began)
    configurations = [
        try_read(read_settings, root / name / "config.yaml") if incomplete else ({}, "") for name in began
    ]
    # Of a key that only some variants set, the others have the value in force, with their seed in it.
    settings, rows = without_seeds([content for content, _ in configurations]), []
    for name, one, (_, problem) in zip(began, settings, configurations, strict=True):
        row = {"run": name, "status": states[name].state, "reason": states[name].reason or problem}
        if any(member["variant"] for member in members.values()):
            row["variant"] = members[name]["variant"]
        row |= {key: _cell(members[name]["varied"].get(key, look_up(one, key))) for key in keys}
        rows.append(_with_metrics(row, root / name))
    return rows


def _glob_rows(pattern: Path) -> list[dict[str, Any]]:
    folders = matching_folders(pattern)
    if len(folders) == 1 and not (folders[0] / "config.yaml").is_file():
        folders = [path.parent for path in folders[0].glob("*/config.yaml")]
    runs = [folder for folder in folders if (folder / "config.yaml").is_file() and (folder / "status.json").is_file()]
    return read_runs(oldest_first(runs))


def read_runs(folders: Sequence[Path], constant: bool = False) -> list[dict[str, Any]]:
    """Return a row for each run folder, as `collect` describes them.

    Parameters
    ----------
    folders : sequence of Path
        Run folders.
    constant : bool
        Whether all keys of the configurations are columns, also those that do not differ, divide no groups or are
        inside of lists (``loss_terms.0.lambda``), and texts as they are.
    """
    read = partial(read_settings, incidental=constant)
    configurations = [try_read(read, folder / "config.yaml") for folder in folders]
    contents = [content for content, _ in configurations]
    if constant:
        settings = [leaves(content) | leaves(content, lists=True) for content in with_defaults(contents)]
    else:
        settings = [leaves(content) for content in without_seeds(contents)]
    names = {key for one in settings for key in one}
    above = {name[:k] for name in names for k, sign in enumerate(name) if sign == "."}
    # Where other runs have keys inside of it, an empty mapping is the lack of these keys, and no value.
    settings = [{key: value for key, value in one.items() if value != {} or key not in above} for one in settings]
    known = [one for one, (_, problem) in zip(settings, configurations, strict=True) if not problem]
    keys = dict.fromkeys(key for one in known for key in one if constant or key.partition(".")[0] not in NEUTRAL_KEYS)
    varied = [key for key in keys if constant or len({json.dumps(one.get(key)) for one in known}) > 1]
    several, rows = len({folder.parent for folder in folders}) > 1, []
    for folder, one, (_, problem), found in zip(folders, settings, configurations, read_states(folders), strict=True):
        row = {"run": f"{folder.parent.name}/{folder.name}" if several else folder.name}
        row |= {"status": found.state, "reason": found.reason or problem}
        row |= {key: _cell(one.get(key)) for key in varied}
        rows.append(_with_metrics(row, folder))
    return rows


def read_again(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of `collect` with status and metrics as they are now, for runs that are still training.

    Parameters
    ----------
    table : DataFrame
        As `collect` returns it. Its runs and their settings stay; runs that began later are not added.
    """
    names = [str(name) for name in table.columns]
    settings = names[: settings_end(names)]
    rows = []
    for row in table.to_dict("records"):
        folder = Path(row["folder"])
        found = read_state(folder.parent, folder.name, file_system_time(folder.parent / HIDDEN))
        kept = {str(name): row[name] for name in settings}
        if not (row["status"] == REPEATED and found.state == "done"):  # which its own files do not know
            kept |= {"status": found.state, "reason": found.reason}
        rows.append(_with_metrics(kept, folder))
    return as_table(rows, names)


def _with_metrics(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    metrics, problem = read_result(folder, row["status"])
    # A parameter of a notebook may have the name of a metric, as `lr` does: what varies is the parameter.
    logged = {key: value for key, value in metrics.items() if key not in row}
    return row | logged | {"reason": row["reason"] or problem, "folder": str(folder)}


def read_result(run: Path, status: str) -> tuple[dict[str, Any], str]:
    """Return `read_metrics` of a run, and why there is none: an early epoch is no result of a run that is done."""

    def read(path: Path) -> dict[str, Any]:
        if status == "done" and (lost := lost_epochs(path.parent)):
            raise CodeqError(lost)
        return read_metrics(path)

    return try_read(read, run / "metrics.csv")


def try_read(read: Callable[[Path], dict[str, Any]], path: Path) -> tuple[dict[str, Any], str]:
    """Return the content of a file of one run and no problem, or nothing and the problem: it costs that run alone.

    Examples
    --------
    >>> try_read(read_metrics, Path("outputs/no-run/metrics.csv"))
    ({}, '')
    """
    try:
        return read(path), ""
    except CodeqError as error:
        return {}, str(error)


def _cell(value: Any) -> Any:
    return json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, list | dict) else value


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the last complete row of ``metrics.csv`` and the best epoch's figures; empty before the first epoch.

    Raises
    ------
    CodeqError
        If the file cannot be read, or its rows have more cells than columns.
    """
    rows = [row for row in csv.reader(io.StringIO(complete_lines(path))) if row]
    if len(rows) < 2:
        return {}
    if len(max(rows, key=len)) > len(rows[0]):  # each cell may be of another column
        raise CodeqError(f"{path} is damaged: its rows have more cells than columns")
    header, last = rows[0], rows[-1]
    row: dict[str, Any] = {key: _number(value) for key, value in zip(header, last, strict=False)}
    if "eval/accuracy" in header:
        column = header.index("eval/accuracy")
        values = {k: _number(one[column]) for k, one in enumerate(rows) if k and len(one) > column}
        best = max((k for k, value in values.items() if not math.isnan(value)), key=values.__getitem__, default=None)
        row["best/eval/accuracy"] = math.nan if best is None else values[best]
        row[CHOSEN_BY] = chosen_by(header)
        if best is not None and "test/accuracy" in header:
            row["best/test/accuracy"] = _number(rows[best][header.index("test/accuracy")])
    return row


def _number(text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return math.nan  # empty, or not a number: of another version of codeq, or damaged
