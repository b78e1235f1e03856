"""``codeq reproduce``: train the networks of the paper's main table, and print ours beside the paper's."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "reproduce", help="train the networks of the paper's table; continues where it stopped"
    )
    parser.add_argument("table", choices=["table2"], help="table2: ResNet-20 on CIFAR-10")
    parser.add_argument(
        "--budget", choices=["smoke", "laptop", "paper"], default="laptop",
        help="length of the trainings: smoke (minutes, other images), laptop (hours a network), paper (300 epochs)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each network (default: 3)")
    parser.add_argument("--data-dir", metavar="D", help="folder of the data set (default: data)")
    parser.add_argument("--dry-run", action="store_true", help="check the first study, estimate the time, and stop")
    parser.add_argument(
        "--retry", action="store_true", help="start failed, diverged, degenerate and misconfigured trainings again, too"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="trainings at a time")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Train what is missing and print the table; exit with status 1 if a training is not done."""
    from codeq.common.errors import CodeqError
    from codeq.common.launch import refuse_several_processes
    from codeq.studies.reproduction import reproduce
    from codeq.studies.rounds import Options

    refuse_several_processes("reproduce")
    for name in ("seeds", "workers"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise CodeqError(f"--{name} {number}: must be at least 1")
    changes = {"data_dir": options.data_dir} if options.data_dir is not None else {}
    wish = Options(options.dry_run, options.retry, options.workers, changes, options.imports)
    if not reproduce(options.budget, options.seeds, wish):
        raise SystemExit(1)
