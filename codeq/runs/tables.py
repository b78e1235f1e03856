"""Reading of ``metrics.csv``, ``layers.csv`` and JSON files of run folders, also while they are written."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeq.common.errors import CodeqError

if TYPE_CHECKING:
    import pandas as pd


def complete_lines(path: Path) -> str:
    """Return the text of `path` up to its last line break: a row that is being written is left out.

    A missing file is an empty text.

    Raises
    ------
    CodeqError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "metrics.csv")
    ...     _ = path.write_bytes(bytes([101, 10, 48]))
    ...     complete_lines(path).splitlines()
    ['e']
    """
    try:
        data = path.read_bytes()
        return data[: data.rfind(b"\n") + 1].decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise CodeqError(f"{path} cannot be read: {error}") from error


def read_table(path: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of a run folder; one that is missing or empty has no rows.

    Parameters
    ----------
    path : Path
        The CSV file.
    text : sequence of str
        Columns to keep as strings.

    Raises
    ------
    CodeqError
        If the file is no table with the column ``epoch``, its rows have more cells than columns, or a cell outside of
        `text` is no number.
    """
    import pandas as pd

    lines = complete_lines(path)
    if not lines.strip():
        return pd.DataFrame()
    try:
        table = pd.read_csv(io.StringIO(lines), dtype=dict.fromkeys(text, str))
    except (ValueError, pd.errors.ParserError) as error:
        raise CodeqError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    try:  # as the first row of data pandas would take surplus cells for an index, and the others for the wrong columns
        pd.read_csv(io.StringIO(lines), header=None, nrows=2)
    except pd.errors.ParserError as error:
        raise CodeqError(f"{path} is damaged: its rows have more cells than columns") from error
    require_columns(path, table, ["epoch"])
    wrong = [name for name in table if name not in text and table[name].dtype.kind not in "iufb"]
    if len(table) and (wrong or table["epoch"].isna().any()):  # after which no reader could compute with the column
        raise CodeqError(f"{path} is damaged: not every {(wrong or ['epoch'])[0]} in it is a number")
    return table


def require_columns(path: Path, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Raise a `CodeqError` for a table of `path` that lacks columns, as one of another version of codeq may."""
    missing = [name for name in names if name not in table]
    if missing:
        raise CodeqError(f"{path} has no column {', '.join(missing)}; another version of codeq may have written it")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a CSV file by column, without pandas; rows of another length are left out.

    Raises
    ------
    CodeqError
        If it cannot be read.
    """
    rows = csv.reader(io.StringIO(complete_lines(path)))
    header = next(rows, [])
    return [dict(zip(header, row, strict=True)) for row in rows if row and len(row) == len(header)]


def configured_epochs(folder: Path) -> int | None:
    """Return the number of epochs in the text of ``config.yaml``, which each run wrote; `None` if there is none."""
    try:
        found = re.search(r"^epochs: *(\d+)", (folder / "config.yaml").read_text("utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return int(found[1]) if found else None


def lost_epochs(folder: Path) -> str:
    """Return which epochs the table of a run that is done lacks; empty if it has all that were configured.

    A training is done after its last epoch. Its table is shorter where the folder was copied while it trained or the
    disk was full: what the last row says is then no result.

    Raises
    ------
    CodeqError
        If the table cannot be read.
    """
    lacking = lacking_epochs(folder, len({row.get("epoch") for row in read_rows(folder / "metrics.csv")}))
    return lacking and f"done, but metrics.csv has {lacking}"


def lacking_epochs(folder: Path, recorded: int) -> str:
    """Return ``2 of 3 epochs`` for a table of a run with fewer epochs than were configured, else nothing."""
    total = configured_epochs(folder)
    return "" if total is None or recorded >= total else f"{recorded} of {total} epochs"


def chosen_by(columns: Container[str]) -> str:
    """Return the images on which `eval/…` was measured, and by which the best epoch was chosen.

    Parameters
    ----------
    columns : container of str
        Of the table of epochs: only a run with a validation split measures the test images beside ``eval/…``.

    Examples
    --------
    >>> chosen_by(["eval/accuracy", "test/accuracy"]), chosen_by(["eval/accuracy"])
    ('validation', 'test')
    """
    return "validation" if "test/accuracy" in columns else "test"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that the JSON file `path` holds.

    Raises
    ------
    CodeqError
        If it cannot be read, or holds anything else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CodeqError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CodeqError(f"{path} is damaged: it holds no JSON object")
    return content
