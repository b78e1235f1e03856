"""Tables of runs as text, which fit the width of a terminal."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# Headings of well-known columns; the others have their names. `epochs` has "epoch" where it is text: 5/20.
HEADINGS = {
    "eval/accuracy": "accuracy",
    "best/eval/accuracy": "best",
    "best/chosen_by": "images",
    "compression/unstructured_bops_ratio": "BOPs × unstructured",
    "compression/structured_bops_ratio": "BOPs × structured",
    "quantizer/mean_bits": "bits",
    "sparsity/unstructured": "zero weights",
    "sparsity/structured": "dead filters",
}
PERCENT = re.compile(r"(^|/)(accuracy|sparsity)(/|$)")
UNLIMITED = 100_000  # characters of a line where no terminal limits it
FOLDED = ("run", "reason")  # texts of any length, which continue in the next line
MIN_FOLDED = 16  # characters
MIN_HEADING = 12  # characters in a line of a heading that is broken
GAP = 2  # spaces after a column


def text_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int | None = None) -> str:
    """Return a table with a heading as text.

    Parameters
    ----------
    rows : sequence of mapping
        Values by column.
    columns : sequence of str
        The columns to show. `reason` is left out if it is empty in all rows.
    width : int, optional
        Characters of a line. Columns that do not fit are left out from the right, `reason` excepted, and named below
        the table. Default: unlimited.

    Examples
    --------
    >>> rows = [{"run": "a", "eval/accuracy": 0.5}, {"run": "b", "eval/accuracy": float("nan")}]
    >>> print(text_table(rows, ["run", "eval/accuracy"]))
    run  accuracy
    a     50.00 %
    b           –
    """
    from rich.console import Console

    room = width or UNLIMITED
    shown = [name for name in columns if name != "reason" or any(row.get(name) for row in rows)]
    headings = dict(HEADINGS)
    if any(isinstance(row.get("epochs"), str) for row in rows):
        headings["epochs"] = "epoch"
    cells = {name: [format_cell(name, row.get(name)) for row in rows] for name in shown}
    hidden: list[str] = []
    while not (widths := _fitting({name: cells[name] for name in shown}, headings, room)):
        droppable = [name for name in shown[1:] if name != "reason"]
        if not droppable:
            widths = dict.fromkeys(shown, max(room // len(shown) - GAP, 1))
            break
        shown.remove(droppable[-1])
        hidden.insert(0, droppable[-1])
    right = {name for name in shown if name == "epochs" or any(isinstance(row.get(name), int | float) for row in rows)}
    console = Console(file=io.StringIO(), width=room, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(_table(cells, headings, widths, right))
        if hidden:
            console.print(f"no room for {', '.join(hidden)}", markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _fitting(cells: Mapping[str, Sequence[str]], headings: Mapping[str, str], room: int) -> dict[str, int]:
    """Return the widths of columns that fit into `room`; empty if there are none."""
    from rich.cells import cell_len

    widths = {}
    for name, texts in cells.items():
        lines = _broken(headings.get(name, name), max(map(cell_len, texts), default=0)).splitlines()
        widths[name] = max(map(cell_len, [*lines, *texts]))
    folded = [name for name in FOLDED if name in cells]
    free = room - sum(width + GAP for name, width in widths.items() if name not in folded)
    for k, name in enumerate(folded):  # the first gets what the least widths of the others leave
        others = sum(min(widths[other], MIN_FOLDED) + GAP for other in folded[k + 1 :])
        least = min(widths[name], MIN_FOLDED)
        widths[name] = min(widths[name], free - GAP - others)
        if widths[name] < least:
            return {}
        free -= widths[name] + GAP
    return widths if free >= 0 else {}


def _table(
    cells: Mapping[str, Sequence[str]], headings: Mapping[str, str], widths: Mapping[str, int], right: Set[str]
) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=True, header_style="")
    for name, width in widths.items():
        heading = escape(_broken(headings.get(name, name), max(map(len, cells[name]), default=0)))
        table.add_column(heading, overflow="fold", justify="right" if name in right else "left", width=width)
    for texts in zip(*(cells[name] for name in widths), strict=True):
        table.add_row(*map(escape, texts))
    return table


def _broken(heading: str, width: int) -> str:
    """Return a heading with line breaks after separators, so that its lines are hardly wider than the cells below."""
    lines, width = [""], max(width, MIN_HEADING)
    for piece in re.findall(r"[^/._ ]*[/._ ]?", heading):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def format_cell(column: str, value: Any) -> str:
    """Return a value as text: fractions of accuracy and sparsity in percent, other numbers with four digits.

    Examples
    --------
    >>> format_cell("sparsity/structured", 0.125), format_cell("lr", 1e-05), format_cell("seed", 3)
    ('12.50 %', '1e-05', '3')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{100 * value:.2f} %" if PERCENT.search(column) else f"{value:.4g}"
    return " ".join(str(value).split())
