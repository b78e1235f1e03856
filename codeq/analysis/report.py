"""Report of a run as one self-contained HTML file: no network, no other file, no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codeq.analysis.comparison import differing_settings
from codeq.analysis.drawings import Drawing, require_writable
from codeq.analysis.figures import draw_figures
from codeq.analysis.network import recorded_gains, recorded_proof, run_notes
from codeq.analysis.tables import layer_costs, readable_costs, readable_summary, summary_table
from codeq.common.atomic import write_atomically
from codeq.common.errors import CodeqError
from codeq.common.paths import writing
from codeq.plots.theme import is_dark
from codeq.runs import Run
from codeq.runs.references import require_runs

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

STATES = {
    "running": "The run has not ended.",
    "failed": "The run failed.",
    "diverged": "The run diverged: its loss was not finite.",
    "degenerate": "The run was stopped, because its network no longer learns.",
    "preempted": "The run was interrupted and can be resumed.",
    "died": "The process of the run ended unexpectedly.",
}


def write_report(
    runs: Run | Sequence[Run],
    folder: Path,
    layer: str | None = None,
    epoch: int | None = None,
    drawings: Mapping[str, Drawing] | None = None,
) -> Path:
    """Write ``report.html`` into `folder`: the first run in full, the others for comparison.

    The page is dark in the dark theme, see `codeq.plots.set_theme`.

    Parameters
    ----------
    runs : Run or sequence of Run
        In any state. The report of an unfinished run names what is missing and why.
    folder : Path
        Created if needed.
    layer, epoch
        As for `draw_figures`.
    drawings : mapping, optional
        Figures of the first run, if they have been drawn already.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    CodeqError
        Without a run, for a layer or an epoch that the first run does not have, and for a folder that cannot be
        written.
    """
    runs = require_runs(runs)
    if not runs:
        raise CodeqError("runs is empty: a report needs at least one run")
    require_writable(folder)
    run, others = runs[0], runs[1:]
    drawings = drawings or draw_figures(run, layer, epoch, others)
    drawings = {name: drawing.rendered(["svg"]) for name, drawing in drawings.items()}
    summary = summary_table(runs)
    settings = differing_settings(runs)
    layers, layers_missing = _layers(run, epoch)
    page = _template().render(
        contents=_contents(drawings, bool(others)),
        dark=is_dark(),
        several=bool(others),
        of_first=f" of {summary['run'].iloc[0]}" if others else "",
        settings=settings.to_html(border=0) if len(settings) else "",
        compactions=[(name, recorded_proof(each), recorded_gains(each))
                     for name, each in zip(summary["run"], runs, strict=True)],
        name=str(summary["run"].iloc[0]),
        state=_state(summary.iloc[0]),
        summary=readable_summary(summary).to_html(border=0),
        layers=layers,
        layers_missing=layers_missing,
        notes=list(dict.fromkeys(note for each in runs for note in run_notes(each))),
        missing=[drawing for drawing in drawings.values() if drawing.missing],
        figures=[(drawing, base64.b64encode(drawing.render("svg")).decode()) for drawing in drawings.values()
                 if not drawing.missing],
        folder=run.folder,
        files=_files(run),
        seconds=_seconds(run),
    )  # fmt: skip
    path = folder / "report.html"
    with writing(path):
        write_atomically(path, page.encode())
    return path


def _contents(drawings: Mapping[str, Drawing], several: bool) -> list[tuple[str, str]]:
    """Return place and title of the sections and figures."""
    sections = [("summary", "Summary"), ("layers", "Layers"), ("compaction", "Compaction"), ("figures", "Figures")]
    if several:
        sections.insert(1, ("comparison", "Settings that differ"))
    drawn = [(name, name.replace("_", " ").capitalize()) for name, drawing in drawings.items() if not drawing.missing]
    return [*sections, *drawn, ("reproduction", "Reproduction")]


def _state(row: pd.Series) -> str:
    if row["status"] == "done":
        return ""
    state = STATES.get(row["status"], f"Status: {row['status']}.")
    planned = row["epochs_asked"]
    epochs = f"{row['epochs']} of {planned:.0f}" if planned == planned else f"{row['epochs']}"
    return f"{state} Epochs recorded: {epochs}. {row['message']}".strip()


def _template() -> jinja2.Template:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")


def _layers(run: Run, epoch: int | None) -> tuple[str, str]:
    """Return the table of the layers as HTML, or else the reason why there is none."""
    try:
        return readable_costs(layer_costs(run, epoch)).to_html(index=False, border=0), ""
    except CodeqError as error:
        return "", str(error)


def _files(run: Run) -> list[tuple[str, str]]:
    paths = {"Configuration": run.folder / "config.yaml", "Environment": run.folder / "environment.json"}
    return [(title, path.read_text("utf-8", "replace")) for title, path in paths.items() if path.is_file()]


def _seconds(run: Run) -> float | None:
    try:
        return run.summary.get("seconds")
    except ValueError:  # not finished, or damaged
        return None
