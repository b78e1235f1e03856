"""The command line: ``codeq train``, ``codeq notebook``, ``codeq runs``, ``codeq plot``, ``codeq compact``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import get_args

from codeq.analysis import check_choice, draw_figures, find_runs, save_drawings
from codeq.cli.notebooks import run_notebook
from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.compaction.compact import Padding
from codeq.compaction.compact_run import compact_run
from codeq.config import ExperimentConfig, parse_overrides, parse_scalar
from codeq.flow import Streams
from codeq.runs import Run
from codeq.trainer import run_experiment
from codeq.training.interruption import EXIT_STATUS, Preempted
from codeq.training.resuming import find_resumable


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line; every command stores the function that does it as ``run``."""
    parser = argparse.ArgumentParser(prog="codeq", description="Joint pruning and quantization of neural networks.")
    parser.add_argument("--version", action="version", version=f"codeq {version('codeq')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train what a YAML file describes, or go on with an interrupted run")
    train.add_argument("--config", metavar="FILE", help="the experiment; examples lie in configs/")
    train.add_argument("--resume", metavar="RUN|CHECKPOINT", help="folder or checkpoint of the run to go on with")
    train.add_argument("--device", help="cpu, mps, cuda or cuda:N (default: the best one here)")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], dest="changes", metavar="KEY=VALUE",
        help="set a key of the configuration, dotted: quantizer.kwargs.max_bits=4",
    )  # fmt: skip
    train.set_defaults(run=_train)

    notebook = commands.add_parser("notebook", help="execute a notebook headlessly into outputs/")
    notebook.add_argument("name", help="its name in notebooks/, or a path")
    notebook.add_argument(
        "-p", nargs=2, action="append", default=[], dest="parameters", metavar=("NAME", "VALUE"),
        help="set a parameter of the notebook; may be repeated",
    )  # fmt: skip
    notebook.add_argument("--run-dir", help="folder for the results (default: a new one in outputs/)")
    notebook.set_defaults(run=_notebook)

    runs = commands.add_parser("runs", help="list the runs and their results")
    runs.add_argument("root", nargs="?", default="outputs", help="folder to search (default: outputs)")
    runs.set_defaults(run=_runs)

    plot = commands.add_parser("plot", help="draw all figures of a run into its folder plots/, as PNG and SVG")
    plot.add_argument("names", nargs="+", metavar="RUN", help="run folder, folder of runs or glob")
    plot.add_argument("--layer", help="whose weights are drawn (default: the sparsest of the smaller ones)")
    plot.set_defaults(run=_plot)

    compact = commands.add_parser(
        "compact", help="remove the dead channels of a run's network, prove it equal, time it"
    )
    compact.add_argument("name", metavar="RUN", help="run folder")
    compact.add_argument("--checkpoint", choices=["last", "best"], default="last", help="checkpoint (default: last)")
    compact.add_argument(
        "--borders", choices=get_args(Padding), default="map",
        help="constant channels in front of padding: exact bias maps (default), live channels, or biases with an error",
    )  # fmt: skip
    compact.add_argument(
        "--streams",
        choices=get_args(Streams),
        default="scatter",
        help="a dead filter leaves a residual stream that lives (default), or stays as long as its channel lives",
    )
    compact.add_argument(
        "--multiple-of", type=int, default=1, metavar="N", help="round channel counts up (whole streams)"
    )
    compact.add_argument("--compiled", action="store_true", help="time the models with torch.compile, too")
    compact.add_argument("--device", default="cpu", help="where to time them: cpu, cuda, mps (default: cpu)")
    compact.set_defaults(run=_compact)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for a user's mistake, 143 after a signal."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        options.run(options)
    except Preempted as error:
        print(f"codeq: {error}", file=sys.stderr)
        return EXIT_STATUS
    except CodeqError as error:
        print(f"codeq: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("codeq: interrupted", file=sys.stderr)
        return 130
    return 0


def _train(options: argparse.Namespace) -> None:
    if not options.config and not options.resume:
        raise CodeqError("codeq train needs --config FILE or --resume RUN")
    given = options.config
    config = ExperimentConfig.from_yaml(given) if given else find_resumable(options.resume)[0].config
    changes = parse_overrides(options.changes)
    if options.device:
        changes["device"] = options.device
    run = run_experiment(config.override(changes) if changes else config, resume=options.resume)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"\n{describe_run(run)}")


def _notebook(options: argparse.Namespace) -> None:
    parameters = {name: parse_scalar(value) for name, value in options.parameters}
    executed = run_notebook(options.name, parameters, options.run_dir)
    pictures = sorted(executed.parent.glob("plots/*.png"))
    print(f"\nexecuted notebook: {executed}")
    if pictures:
        print(f"pictures in {pictures[0].parent}: {', '.join(p.name for p in pictures)}")


def _runs(options: argparse.Namespace) -> None:
    root = resolve(options.root)
    if options.root != "outputs" and not root.is_dir():
        raise CodeqError(f"{root} is no folder")
    runs = Run.list(root)
    if not runs:
        print(f"no runs in {root}; `make debug` makes the first one")
    for run in runs:
        print(describe_run(run))


def _plot(options: argparse.Namespace) -> None:
    runs = find_runs(options.names)
    for run in runs:
        check_choice(run, options.layer)
    for run in runs:
        drawings = draw_figures(run, options.layer, compared=runs)
        save_drawings(drawings, run.folder / "plots")
        drawn = [drawing.name for drawing in drawings.values() if drawing.figure]
        print(f"{len(drawn)} figures, as PNG and SVG, in {run.folder / 'plots'}: {', '.join(drawn)}")
        for drawing in drawings.values():
            if drawing.missing:
                print(f"not drawn: {drawing.name}: {drawing.missing}")


def _compact(options: argparse.Namespace) -> None:
    done = compact_run(
        Run.open(options.name), options.checkpoint, options.borders, options.streams, options.multiple_of,
        options.compiled, options.device,
    )  # fmt: skip
    proof = done.proof
    print(f"{proof.masked_macs:,} MACs masked, {proof.compacted_macs:,} compacted ({done.report.assumes})")
    print(
        f"on {proof.inputs:,} test images: largest difference of a logit {proof.max_error:.1e}, "
        f"{proof.flipped} predictions flipped, accuracy {proof.masked_accuracy:.2%} and {proof.compacted_accuracy:.2%}"
    )
    if done.report.unknown:
        print(f"not followed, so kept whole: {', '.join(done.report.unknown)}")
    print(done.gains.to_string(index=False, float_format="{:.3g}".format))
    print(f"compacted model and measurements in {done.folder}")


def describe_run(run: Run) -> str:
    """Write one run as one line: status, results so far, folder."""
    history = run.history
    results = "" if len(history) else "no epoch finished"
    try:
        epochs = run.config.epochs
    except CodeqError as error:  # of another version of codeq, or damaged
        return f"{run.status:<10} {str(error).splitlines()[0]:<120} {run.folder}"
    if len(history):
        last = history.iloc[-1]
        results = (
            f"epoch {len(history):>3}/{epochs}  accuracy {last['eval/accuracy']:6.2%}  "
            f"best {history['eval/accuracy'].max():6.2%}  zero weights {last['sparsity/unstructured']:5.1%}  "
            f"dead filters {last['sparsity/structured']:5.1%}  {last['quantizer/mean_bits']:.2f} bits  "
            f"BOPs ÷{last['compression/unstructured_bops_ratio']:.1f} unstructured "
            f"÷{last['compression/structured_bops_ratio']:.1f} structured"
        )
    return f"{run.status:<10} {results:<120} {run.folder}"
