"""The table of a study: one line a member with its state, epoch, accuracy, BOPs and expected end."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from codeq.common.console import TolerantStream
from codeq.common.errors import listed
from codeq.common.paths import short_path
from codeq.runs.settings import read_settings
from codeq.studies.attempts import file_system_time
from codeq.studies.files import HIDDEN, log_file
from codeq.studies.results import read_result, try_read
from codeq.studies.states import FAILURES, STATES, MemberState, read_state

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADINGS = ("member", "state", "epoch", "accuracy", "relative BOPs", "end", "reason")
COLOURS = {
    "done": "green",
    "running": "cyan",
    "pending": "dim",
    "pruned": "dim",
    "preempted": "yellow",
}  # the others are failures: red
MOST_LOGS = 3  # named in one line


@dataclass(frozen=True)
class Row:
    """Row of the table: the state and results of one member.

    Parameters
    ----------
    member : str
        Its name.
    found : MemberState
        State of the member.
    epoch, epochs : int
        Recorded and configured ones; 0 if unknown.
    accuracy : float
        Fraction, after the last epoch; NaN before the first.
    bops : float
        Unstructured BOPs relative to the dense 32-bit network, a fraction; NaN before the first epoch.
    end : float
        Expected end in seconds since 1970; NaN if unknown.
    """

    member: str
    found: MemberState
    epoch: int = 0
    epochs: int = 0
    accuracy: float = math.nan
    bops: float = math.nan
    end: float = math.nan


def survey(study: Path, members: Sequence[str]) -> list[Row]:
    """Return a row for each member, read from its files."""
    now = file_system_time(study / HIDDEN)
    return [_row(study, member, now) for member in members]


def _row(study: Path, member: str, now: float) -> Row:
    found, run = read_state(study, member, now), study / member
    metrics, problem = read_result(run, found.state)
    found = replace(found, reason=found.reason or problem)
    if not isinstance(metrics.get("epoch"), int):  # no row, or one of another version of codeq
        return Row(member, found, epochs=_epochs(run))
    epoch, epochs = metrics["epoch"] + 1, _epochs(run)
    ratio = metrics.get("compression/unstructured_bops_ratio", math.nan)
    end = math.nan
    if found.state == "running" and found.attempt and epoch > found.attempt.rows:
        written = (run / "metrics.csv").stat().st_mtime
        pace = (written - found.attempt.started) / (epoch - found.attempt.rows)
        end = written + pace * (epochs - epoch)
    accuracy = metrics.get("eval/accuracy", math.nan)
    return Row(member, found, epoch, epochs, accuracy, 1 / ratio if ratio else math.nan, end)


def _epochs(run: Path) -> int:
    epochs = try_read(read_settings, run / "config.yaml")[0].get("epochs", 0)
    return epochs if isinstance(epochs, int) else 0


def counts(rows: Sequence[Row]) -> str:
    """Return the number of members in each state, as text.

    Examples
    --------
    >>> counts([Row("a", MemberState("done", "", None)), Row("b", MemberState("died", "", None))])
    '2 members: 1 done, 1 died'
    """
    numbers = Counter(row.found.state for row in rows)
    in_states = ", ".join(f"{numbers[state]} {state}" for state in STATES if numbers[state])
    return f"{len(rows)} member{'s' if len(rows) != 1 else ''}: {in_states}"


def name_logs(study: Path, rows: Sequence[Row]) -> str:
    """Return a line that names the logs of the members that failed or died; empty if there are none."""
    members = [row.member for row in rows if row.found.state in FAILURES | {"died"}]
    files = [short_path(file) for member in members if (file := log_file(study, member)).is_file()]
    return f"log{'s' if len(files) > 1 else ''}: {listed(files, MOST_LOGS)}" if files else ""


def make_table(rows: Sequence[Row], longest: int | None = None) -> Table:
    """Return the table, of at most `longest` lines: then running members and failures come first."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, caption=counts(rows), caption_justify="left")
    for heading in HEADINGS:
        if heading in ("member", "state", "reason"):
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    shown = list(rows)
    if longest is not None and len(rows) > longest:
        order = {"running": 0, "pending": 2, "done": 3}
        shown = sorted(rows, key=lambda row: order.get(row.found.state, 1))[: max(longest - 1, 1)]
    for row in shown:
        member, state, *others = map(escape, texts(row))
        table.add_row(member, f"[{COLOURS.get(row.found.state, 'red')}]{state}[/]", *others)
    if len(shown) < len(rows):
        table.add_row(f"… and {len(rows) - len(shown)} more")
    return table


def texts(row: Row) -> list[str]:
    """Return the cells of a row below `HEADINGS`.

    Examples
    --------
    >>> texts(Row("a", MemberState("died", "killed", None), epoch=2, epochs=3, accuracy=0.5))
    ['a', 'died', '2/3', '50.00 %', '–', '–', 'killed']
    """
    epoch = f"{row.epoch}/{row.epochs}" if row.epochs else "–"
    figures = [epoch, _percent(row.accuracy), _percent(row.bops), _clock(row.end)]
    return [row.member, row.found.state, *figures, row.found.reason]


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %" if math.isfinite(value) else "–"


def _clock(moment: float) -> str:
    if not math.isfinite(moment):
        return "–"
    form = "%H:%M" if abs(moment - time.time()) < 20 * 3600 else "%a %H:%M"
    return f"{datetime.fromtimestamp(moment):{form}}"


def make_console() -> Console:
    """Return a console as wide as the terminal; where nobody watches, lines are as long as they need to be.

    A failure to print is ignored, as in `codeq.common.console.say`: members at work must not be lost.
    """
    from rich.console import Console

    output = cast("IO[str]", TolerantStream(sys.stdout))
    console = Console(file=output, highlight=False)
    return console if console.is_terminal else Console(file=output, highlight=False, width=1000, soft_wrap=True)
