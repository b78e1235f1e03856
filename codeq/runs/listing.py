"""Status and results of runs for ``codeq runs``, from the summary and the table of epochs alone."""

from __future__ import annotations

import math
from typing import Any

from codeq.common.console import compression
from codeq.common.errors import CodeqError
from codeq.common.paths import short_path
from codeq.runs.run import Run
from codeq.runs.tables import chosen_by, configured_epochs, lost_epochs, read_rows

ACCURACY, BEST, CHOSEN_BY = "eval/accuracy", "best/eval/accuracy", "best/chosen_by"
# Keys of the results in metrics.csv, and their names in summary.json.
KEYS = {
    ACCURACY: "accuracy_last",
    "sparsity/unstructured": "unstructured_sparsity",
    "sparsity/structured": "structured_sparsity",
    "quantizer/mean_bits": "mean_bits",
    "compression/unstructured_bops_ratio": "unstructured_bops_ratio",
    "compression/structured_bops_ratio": "structured_bops_ratio",
}
UNKNOWN = "–"


def run_row(run: Run) -> dict[str, Any]:
    """Return status and results of a run in any state.

    Neither torch nor pandas is imported, and the configuration is not rebuilt.

    Returns
    -------
    dict
        `run` (folder, relative to the project's where it is below it), `status`, `epochs` (recorded and configured,
        as ``3/20``), the metrics `KEYS` of the last epoch and `BEST` (NaN where unknown), `CHOSEN_BY` (the images of
        both accuracies, ``validation`` or ``test``), `reason` (of the status, or the name of what cannot be read).

    Examples
    --------
    >>> from codeq import ExperimentConfig
    >>> row = run_row(Run.create(ExperimentConfig("demo", run_dir="outputs/demo", epochs=5)))
    >>> row["run"], row["status"], row["epochs"], row["eval/accuracy"]
    ('outputs/demo', 'running', '0/5', nan)
    """
    status = run.status
    row = {
        "run": short_path(run.folder),
        "status": status,
        "epochs": "?",
        **dict.fromkeys([*KEYS, BEST], math.nan),
        CHOSEN_BY: "",
    }
    reason = run.message
    try:
        row |= _from_summary(run) if status == "done" else _from_epochs(run)
        reason = reason or (lost_epochs(run.folder) if status == "done" else "")  # the summary has all results
    except CodeqError as error:
        reason = reason or str(error).splitlines()[0]
    return row | {"reason": " ".join(reason.split())}


def _from_summary(run: Run) -> dict[str, Any]:
    summary = run.summary
    epochs = summary.get("epochs", "?")
    row: dict[str, Any] = {key: _number(summary.get(name)) for key, name in KEYS.items()}
    images = "validation" if summary.get("best_chosen_by") == "validation" else "test"
    return row | {"epochs": f"{epochs}/{epochs}", BEST: _number(summary.get("accuracy_best")), CHOSEN_BY: images}


def _from_epochs(run: Run) -> dict[str, Any]:
    rows = read_rows(run.folder / "metrics.csv")
    row: dict[str, Any] = {"epochs": f"{len(rows)}/{configured_epochs(run.folder) or '?'}"}
    if rows:
        row |= {key: _number(rows[-1].get(key)) for key in KEYS}
        row[CHOSEN_BY] = chosen_by(rows[-1])
        row[BEST] = max((_number(one.get(ACCURACY)) for one in rows), key=lambda value: (not math.isnan(value), value))
    return row


def describe_run(run: Run) -> str:
    """Describe `run` in one line: status, results so far or the reason why there are none, folder."""
    row = run_row(run)
    last, zeros, dead, bits, unstructured, structured = (row[key] for key in KEYS)
    if row["epochs"] == "?":
        results = row["reason"]
    elif row["epochs"].startswith("0/"):
        results = "no epoch finished"
    else:
        results = (
            f"epoch {row['epochs']}  accuracy {_text(last, '6.2%')}  "
            f"best {_text(row[BEST], '6.2%')} ({row[CHOSEN_BY]})  "
            f"zero weights {_text(zeros, '5.1%')}  dead filters {_text(dead, '5.1%')}  {_text(bits, '.2f')} bits  "
            f"BOPs {_ratio(unstructured)} unstructured, {_ratio(structured)} structured"
        )
    return f"{row['status']:<10} {results}  {run.folder}"


def _text(value: float, form: str) -> str:
    """Return a number as text; a dash, as in the table of runs, for one that was not recorded."""
    return UNKNOWN if math.isnan(value) else format(value, form)


def _ratio(value: float) -> str:
    return UNKNOWN if math.isnan(value) else compression(value)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan  # a column that another version of codeq did not write
