"""``codeq train``: train the experiment of a YAML file, or resume an interrupted run."""

from __future__ import annotations

import argparse
import os
from typing import Any

from codeq.common.console import say
from codeq.common.errors import CodeqError
from codeq.common.imports import recorded_name
from codeq.runs.references import FORMS, find_config


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
    if not options.config and options.resume is None:
        raise CodeqError("codeq train needs --config FILE or --resume RUN")

    from codeq.analysis.network import run_notes
    from codeq.config import ExperimentConfig, parse_overrides
    from codeq.config.own_parts import with_imports
    from codeq.runs.listing import describe_run
    from codeq.trainer import run_experiment
    from codeq.training.resuming import find_resumable

    resumed = find_resumable(options.resume) if options.resume is not None else None
    if options.config:
        config = ExperimentConfig.from_yaml(find_config(options.config))
    else:
        assert resumed
        config = resumed.run.config
    changes = parse_overrides(options.changes)
    if options.device:
        changes["device"] = options.device
    config = config.override(changes) if changes else config
    if options.imports:  # recorded only: they have been made, and those of a run from a stranger are not to be made
        imports = with_imports(config.imports, map(recorded_name, options.imports))
        config = ExperimentConfig.from_dict({**config.to_dict(), "imports": imports})
    trained = run_experiment(config, resume=resumed.path if resumed else None)
    if int(os.environ.get("RANK", "0")) == 0:
        say(f"\n{describe_run(trained)}")
        for note in run_notes(trained):
            say(f"note: {note}")
