"""A run as one HTML file that needs nothing else: no network, no other file, no script."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codeq.analysis.drawings import Drawing
from codeq.analysis.figures import draw_figures
from codeq.analysis.tables import layer_costs, readable_costs, readable_summary, summary_table
from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.runs.checkpoints import write_atomically

if TYPE_CHECKING:
    import pandas as pd

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2em 0.7em; text-align: right; border-bottom: 1px solid #e4e4e4; }
tbody th, td:first-child, th:first-child { text-align: left; font-weight: normal; }
thead th { font-weight: 600; } .wide { overflow-x: auto; }
figure { margin: 1.5em 0; } figure img { max-width: 100%; height: auto; } figcaption { color: #555; }
.warning { background: #fff3d6; border-left: 4px solid #E69F00; padding: 0.6em 1em; margin: 1em 0; }
pre { background: #f5f5f5; padding: 0.8em; overflow-x: auto; font-size: 12px; }
@media print { h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""

ENDINGS = {
    "running": "The run has not ended: this is what it has recorded so far.",
    "failed": "The run failed: this is what it had recorded by then.",
    "diverged": "The run diverged: its loss was no longer finite. This is what it had recorded by then.",
    "preempted": "The run was interrupted and can be resumed: this is what it had recorded by then.",
    "died": "The run's process is gone without a word: this is what it had recorded by then.",
}


def write_report(
    runs: Run | Sequence[Run],
    folder: Path,
    layer: str | None = None,
    epoch: int | None = None,
    drawings: Mapping[str, Drawing] | None = None,
) -> Path:
    """Write ``report.html`` into `folder`: the first run in full, the others beside it in summary and comparison.

    Parameters
    ----------
    runs : Run or sequence of Run
        Finished or not: of an unfinished run the report says what there is, and what is missing and why.
    folder : Path
        Where to; it is made if needed.
    layer, epoch
        As for `draw_figures`.
    drawings : mapping, optional
        The first run's figures, if they have been drawn already.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    CodeqError
        Without a run, and for a layer or an epoch that the first run does not have.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise CodeqError("runs is empty; a report needs at least one")
    run, others = runs[0], runs[1:]
    drawings = drawings or draw_figures(run, layer, epoch, others)
    summary = summary_table(runs)
    name = str(summary["run"].iloc[0])
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        *_ending(summary.iloc[0]),
        "<h2>Summary</h2>",
        "<p>Against the dense 32-bit network; activations count as 32 bits. <em>Unstructured</em> counts the non-zero "
        "weights, <em>structured</em> all weights of the channels that are left. Accuracies are of the evaluation "
        "images.</p>",
        _table(readable_summary(summary), index=True),
        *_missing(drawings),
        "<h2>Layers</h2>",
        _layers(run, epoch),
        "<h2>Figures</h2>",
        *(_figure(drawing) for drawing in drawings.values() if drawing.figure),
        "<h2>How to do it again</h2>",
        *_recipe(run),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(name)}</title><style>{STYLE}</style>'
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def _ending(row: pd.Series) -> list[str]:
    if row["status"] == "done":
        return []
    asked = row["epochs_asked"]
    epochs = f"{row['epochs']} of {asked:.0f}" if asked == asked else f"{row['epochs']}"
    words = f"{ENDINGS[row['status']]} Epochs recorded: {epochs}. {row['message']}"
    return [f'<p class="warning">{html.escape(words.strip())}</p>']


def _missing(drawings: Mapping[str, Drawing]) -> list[str]:
    lines = [
        f"<li><code>{html.escape(drawing.name)}</code>: {html.escape(drawing.missing)}</li>"
        for drawing in drawings.values()
        if not drawing.figure
    ]
    return ['<div class="warning"><p>Not drawn:</p><ul>', *lines, "</ul></div>"] if lines else []


def _layers(run: Run, epoch: int | None) -> str:
    try:
        return _table(readable_costs(layer_costs(run, epoch)), index=False)
    except CodeqError as error:
        return f'<p class="warning">{html.escape(str(error))}</p>'


def _table(table: pd.DataFrame, index: bool) -> str:
    return f'<div class="wide">{table.to_html(index=index, border=0)}</div>'


def _figure(drawing: Drawing) -> str:
    data = base64.b64encode(drawing.render("svg")).decode()
    caption = html.escape(drawing.caption)
    return (
        f'<figure id="{drawing.name}"><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _recipe(run: Run) -> list[str]:
    parts = [f"<p>Run folder: <code>{html.escape(str(run.folder))}</code></p>"]
    for title, file in (("Configuration", "config.yaml"), ("Environment", "environment.json")):
        path = run.folder / file
        if path.is_file():
            parts += [f"<h3>{title}</h3>", f"<pre>{html.escape(path.read_text())}</pre>"]
    if (run.folder / "summary.json").is_file():
        seconds = json.loads((run.folder / "summary.json").read_text()).get("seconds")
        parts.append(f"<p>Wall time of the training: {seconds:,.0f} s</p>" if seconds is not None else "")
    return parts
