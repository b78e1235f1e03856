"""``codeq train``: train the experiment of a YAML file, or resume an interrupted run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from codeq.common.console import say
from codeq.common.errors import CodeqError
from codeq.common.launch import environment_ranks, warnings_of_first
from codeq.runs.references import FORMS, find_config

if TYPE_CHECKING:
    from codeq.runs import Run


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("train", help="train the experiment of a YAML file, or resume an interrupted run")
    parser.add_argument(
        "--config", metavar="FILE",
        help="the experiment; examples are in configs/. RUN/config.yaml repeats a run in a new folder",
    )  # fmt: skip
    parser.add_argument("--resume", metavar="RUN|CHECKPOINT", help=f"resume a run: {FORMS}, or RUN/checkpoints/NAME.pt")
    parser.add_argument(
        "--device", help="cpu, mps, cuda or cuda:N (default: that of the file, else the best available one)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="changes", metavar="KEY=VALUE",
        help="set a key of the configuration, dotted: quantizer.kwargs.max_bits=4",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Train, then print one line about the run."""
    if options.config is None and options.resume is None:
        raise CodeqError("codeq train needs --config FILE or --resume RUN")

    rank, _ = environment_ranks()
    with warnings_of_first(rank):  # also while files are read, before the processes have found each other
        trained = _train(options)
    if rank == 0:
        from codeq.analysis.network import run_notes
        from codeq.runs.listing import describe_run

        say(f"\n{describe_run(trained)}")
        for note in run_notes(trained):
            say(f"note: {note}")


def _train(options: argparse.Namespace) -> Run:
    from codeq.config import ExperimentConfig, parse_overrides
    from codeq.trainer import run_experiment
    from codeq.training.resuming import find_resumable

    resumed = find_resumable(options.resume) if options.resume is not None else None
    if options.config is not None:
        config = ExperimentConfig.from_yaml(find_config(options.config))
    else:
        assert resumed
        config = resumed.run.config
    changes = parse_overrides(options.changes)
    if options.device is not None:
        changes["device"] = options.device
    return run_experiment(config.override(changes) if changes else config, resume=resumed.path if resumed else None)
