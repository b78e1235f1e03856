"""``codeq notebook``: execute a notebook headlessly."""

from __future__ import annotations

import argparse
from typing import Any

from codeq.common.console import say


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("notebook", help="execute a notebook headlessly into outputs/")
    parser.add_argument("name", help="its name in notebooks/, or a path")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], dest="parameters", metavar=("NAME", "VALUE"),
        help="set a parameter of the notebook; may be repeated",
    )  # fmt: skip
    parser.add_argument("--run-dir", help="folder for the results (default: a new one in outputs/)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Execute the notebook and print the paths of what it made."""
    from codeq.cli.notebook_parameters import parse_parameters
    from codeq.cli.notebooks import find_notebook, run_notebook
    from codeq.common.launch import refuse_several_processes

    refuse_several_processes("notebook")
    notebook = find_notebook(options.name)
    executed = run_notebook(str(notebook), parse_parameters(notebook, options.parameters), options.run_dir)
    figures = sorted(executed.parent.glob("plots/*.png"))
    say(f"\nexecuted notebook: {executed}")
    if figures:
        say(f"figures in {figures[0].parent}: {', '.join(path.name for path in figures)}")
