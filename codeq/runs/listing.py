"""One line a run, as ``codeq runs`` prints it, from the summary and the table of epochs alone."""

from __future__ import annotations

import math
import re
from pathlib import Path

from codeq.common.errors import CodeqError
from codeq.runs.run import Run
from codeq.runs.tables import read_rows

# The names of one figure in metrics.csv and in summary.json.
ACCURACY = "eval/accuracy"
COLUMNS = {
    ACCURACY: "accuracy_last",
    "sparsity/unstructured": "unstructured_sparsity",
    "sparsity/structured": "structured_sparsity",
    "quantizer/mean_bits": "mean_bits",
    "compression/unstructured_bops_ratio": "unstructured_bops_ratio",
    "compression/structured_bops_ratio": "structured_bops_ratio",
}


def describe_run(run: Run) -> str:
    """Describe `run` in one line: status, results so far, folder.

    Neither torch nor pandas is imported, and the configuration is not rebuilt. The line names what cannot be read.
    """
    try:
        results = _describe_summary(run) if run.status == "done" else _describe_epochs(run)
    except CodeqError as error:
        results = str(error).splitlines()[0]
    return f"{run.status:<10} {results:<120} {run.folder}"


def _describe_summary(run: Run) -> str:
    summary = run.summary
    figures = {column: _number(summary.get(key)) for column, key in COLUMNS.items()}
    epochs = summary.get("epochs", "?")
    return _format(epochs, epochs, figures, _number(summary.get("accuracy_best")))


def _describe_epochs(run: Run) -> str:
    rows = read_rows(run.folder / "metrics.csv")
    if not rows:
        return "no epoch finished"
    figures = {column: _number(rows[-1].get(column)) for column in COLUMNS}
    best = max((_number(row.get(ACCURACY)) for row in rows), key=lambda value: (not math.isnan(value), value))
    return _format(len(rows), _total_epochs(run.folder), figures, best)


def _format(done: object, total: object, figures: dict[str, float], best: float) -> str:
    last, zeros, dead, bits, unstructured, structured = figures.values()
    return (
        f"epoch {done:>3}/{total}  accuracy {last:6.2%}  best {best:6.2%}  zero weights {zeros:5.1%}  "
        f"dead filters {dead:5.1%}  {bits:.2f} bits  "
        f"BOPs ÷{unstructured:.1f} unstructured ÷{structured:.1f} structured"
    )


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan  # a column that another version of codeq did not write


def _total_epochs(folder: Path) -> str:
    """Read the number of epochs from the text of ``config.yaml``, of which each run wrote its own."""
    try:
        found = re.search(r"^epochs: *(\d+)", (folder / "config.yaml").read_text("utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return found[1] if found else "?"
