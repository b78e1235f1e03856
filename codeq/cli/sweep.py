"""``codeq sweep``: run the members of a study, or show how they stand."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("sweep", help="run the members of a study; done ones are skipped, others resumed")
    parser.add_argument("study", metavar="STUDY", help="the study file; examples are in configs/studies/")
    parser.add_argument("--dry-run", action="store_true", help="check every member, estimate the time, and stop")
    parser.add_argument("--status", action="store_true", help="show the table of members and stop")
    parser.add_argument(
        "--retry", action="store_true", help="start failed, diverged, degenerate and misconfigured members again, too"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="members at a time (default: as in the study file)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="changes", metavar="KEY=VALUE",
        help="set a key for all members, dotted: epochs=2; or one of the study's sections: search.trials=20",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run or show the study; exit with status 1 if a member is not done."""
    from codeq.cli.notebook_parameters import check_parameters
    from codeq.cli.notebooks import find_notebook
    from codeq.common.errors import CodeqError
    from codeq.common.launch import refuse_several_processes
    from codeq.config import parse_overrides
    from codeq.studies.status import show_status

    changes = parse_overrides(options.changes)
    if options.workers is not None and options.workers < 1:
        raise CodeqError(f"--workers {options.workers}: must be at least 1")
    if options.status:
        done = show_status(options.study, changes)
    else:
        refuse_several_processes("sweep")
        from codeq.studies.rounds import Options
        from codeq.studies.sweep import sweep

        wish = Options(options.dry_run, options.retry, options.workers, changes, options.imports)
        done = sweep(options.study, wish, lambda name, values: check_parameters(find_notebook(name), values))
    if not done:
        raise SystemExit(1)
