"""``codeq runs``: list runs and their results."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from typing import TYPE_CHECKING, Any

from codeq.common.console import say, show
from codeq.common.paths import resolve, short_path
from codeq.runs.references import FORMS, find_runs

if TYPE_CHECKING:
    import pandas as pd

    from codeq.runs import Run

COLUMNS = (
    "run", "status", "epochs", "eval/accuracy", "best/eval/accuracy", "best/chosen_by",
    "compression/unstructured_bops_ratio", "quantizer/mean_bits", "sparsity/unstructured", "sparsity/structured",
    "compression/structured_bops_ratio", "reason",
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("runs", help="list the runs and their results")
    parser.add_argument("names", nargs="*", metavar="RUN", help=f"{FORMS} (default: all runs in outputs)")
    parser.add_argument(
        "--where", metavar="EXPRESSION", help="runs for which it is true: \"dataset == 'cifar10' and epochs > 20\""
    )
    parser.add_argument("--sort", metavar="COLUMN", help="ascending order (default: the oldest first)")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="COLUMN",
        help="columns to show: run, status, reason, keys of the configuration (also loss_terms.0.lambda) and of "
        "metrics.csv, best/eval/accuracy",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    for name in ("csv", "latex", "json"):
        form.add_argument(f"--{name}", action="store_const", const=name, dest="form", help=f"print the table as {name}")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print a table with one row per run, the oldest first; of named runs in the order of the names."""
    from codeq.runs import Run

    found = find_runs(options.names) if options.names else Run.list()
    if not found:
        none = f"no runs in {resolve('outputs')}; `codeq notebook debug_run` makes the first one"
        if options.form:  # programs read the output
            say(none, sys.stderr)
            none = _empty(options)
        show(none)
        return
    if options.where is not None or options.sort is not None or options.columns or options.form:
        show(_select(found, options))
    else:
        show(_list(found))


def _list(runs: list[Run]) -> str:
    from codeq.runs.listing import run_row
    from codeq.runs.text_table import text_table
    from codeq.studies.states import read_states

    rows = [run_row(each) for each in runs]
    # A member of a study may have been pruned, or killed on another machine, which its own files do not say.
    for row, found in zip(rows, read_states([each.folder for each in runs]), strict=True):
        row |= {"status": found.state, "reason": " ".join((found.reason or row["reason"]).split())}
    return text_table(rows, COLUMNS, _width())


def _width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _columns(options: argparse.Namespace) -> list[str]:
    return [name for words in options.columns for name in words.split(",") if name]


def _empty(options: argparse.Namespace) -> str:
    """Return the table of no runs, with the chosen columns or those of the list."""
    import pandas as pd

    return _formatted(pd.DataFrame(columns=_columns(options) or list(COLUMNS)), options.form)


def _formatted(table: pd.DataFrame, form: str) -> str:
    if form == "csv":
        return str(table.to_csv(index=False)).rstrip("\n")
    if form == "json":
        # Not by pandas, which rounds to 15 decimals: a learning rate of 1e-9 would keep six digits.
        records = [{key: _finite(value) for key, value in row.items()} for row in table.to_dict("records")]
        return json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False)
    return str(table.to_latex(index=False, escape=True, float_format="{:.4g}".format, na_rep="--")).rstrip("\n")


def _finite(value: Any) -> Any:
    """Return a value, or `None` for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _select(runs: list[Run], options: argparse.Namespace) -> str:
    """Return the table of the chosen runs and columns in the chosen form."""
    from codeq.runs import Run
    from codeq.runs.text_table import text_table
    from codeq.studies.query import select, where
    from codeq.studies.results import as_table, read_runs

    table = as_table(read_runs([each.folder for each in runs], constant=True))
    table["run"] = [short_path(each.folder) for each in runs]  # as in the list, whatever else is selected
    if options.where is not None:
        table = where(table, options.where)
    columns = _columns(options)
    table = select(table, options.sort)
    if options.form == "latex" and not columns:
        columns = [name for name in COLUMNS if name in table and name != "reason"]
    chosen = select(table, columns=columns)
    if options.form:
        return _formatted(chosen, options.form)
    if not len(table):
        return f"none of {len(runs)} runs is selected by --where {options.where}"
    if not columns:
        return _list([Run(resolve(folder)) for folder in table["folder"]])
    rows = [{str(name): value for name, value in row.items()} for row in chosen.to_dict("records")]
    return text_table(rows, columns, _width())
