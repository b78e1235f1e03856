"""``codeq runs``: list runs and their results."""

from __future__ import annotations

import argparse
from typing import Any

from codeq.common.console import show
from codeq.common.errors import CodeqError
from codeq.common.paths import resolve


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("runs", help="list the runs and their results")
    parser.add_argument("root", nargs="?", help="folder to search (default: outputs)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print one line per run, the oldest first."""
    from codeq.runs import Run
    from codeq.runs.listing import describe_run

    root = resolve(options.root or "outputs")
    if options.root and not root.is_dir():
        raise CodeqError(f"{root} is not a folder")
    found = Run.list(root)
    if not found:
        show(f"no runs in {root}; `codeq notebook debug_run` makes the first one")
    for each in found:
        show(describe_run(each))
