"""``codeq plot``: draw all figures of runs."""

from __future__ import annotations

import argparse
from typing import Any

from codeq.common.console import say
from codeq.runs.references import FORMS


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "plot",
        help="draw all figures of a run into its folder plots/; the first of several is compared with the others",
    )
    parser.add_argument("names", nargs="+", metavar="RUN", help=FORMS)
    parser.add_argument("--layer", help="layer whose weights are drawn (default: the sparsest of the smaller ones)")
    parser.add_argument(
        "--format",
        action="append",
        choices=["png", "svg", "pdf"],
        help="format of the files, repeatable (default: png and svg)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw the figures of each run and print which ones."""
    from codeq.analysis import check_choice, find_runs, require_writable, save_drawings
    from codeq.analysis.drawings import DEFAULT_FORMATS
    from codeq.analysis.figures import planned_figures
    from codeq.analysis.rendering import draw_in_parallel

    runs, formats = find_runs(options.names), options.format or DEFAULT_FORMATS
    for each in runs:
        check_choice(each, options.layer)
        require_writable(each.folder / "plots")
    for each in runs:
        planned = planned_figures(each, options.layer, compared=runs if each is runs[0] else ())
        drawings = draw_in_parallel(planned, formats)
        save_drawings(drawings, each.folder / "plots", formats)
        drawn = [drawing.name for drawing in drawings.values() if not drawing.missing]
        listed = " and ".join(map(str.upper, formats))
        say(f"{len(drawn)} figures, as {listed}, in {each.folder / 'plots'}: {', '.join(drawn)}")
        for drawing in drawings.values():
            if drawing.missing:
                say(f"not drawn: {drawing.name}: {drawing.missing}")
