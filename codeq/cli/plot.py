"""``codeq plot``: draw all figures of runs."""

from __future__ import annotations

import argparse
from typing import Any

from codeq.common.console import say
from codeq.runs.references import FORMS


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("plot", help="draw all figures of a run into its folder plots/, as PNG and SVG")
    parser.add_argument("names", nargs="+", metavar="RUN", help=FORMS)
    parser.add_argument("--layer", help="layer whose weights are drawn (default: the sparsest of the smaller ones)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw the figures of each run and print which ones."""
    from codeq.analysis import check_choice, draw_figures, find_runs, require_writable, save_drawings

    runs = find_runs(options.names)
    for each in runs:
        check_choice(each, options.layer)
        require_writable(each.folder / "plots")
    for each in runs:
        drawings = draw_figures(each, options.layer, compared=runs)
        save_drawings(drawings, each.folder / "plots")
        drawn = [drawing.name for drawing in drawings.values() if drawing.figure]
        say(f"{len(drawn)} figures, as PNG and SVG, in {each.folder / 'plots'}: {', '.join(drawn)}")
        for drawing in drawings.values():
            if drawing.missing:
                say(f"not drawn: {drawing.name}: {drawing.missing}")
