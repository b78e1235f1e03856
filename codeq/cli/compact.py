"""``codeq compact``: remove the dead channels of a run's network, compare it with the masked network, and time it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from codeq.cli.each_run import for_each_run
from codeq.common.console import say
from codeq.runs.references import FORMS

if TYPE_CHECKING:
    from codeq.analysis.compact_run import Compacted
    from codeq.runs import Run


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("compact", help="remove the dead channels of a run's network, prove it equal, time it")
    parser.add_argument("names", nargs="+", metavar="RUN", help=FORMS)
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="checkpoint (default: last)")
    parser.add_argument(
        "--borders", choices=["map", "live", "absorb"], default="map",
        help="constant channels in front of padding: exact bias maps (default), live channels, or biases with an error",
    )  # fmt: skip
    parser.add_argument(
        "--streams", choices=["scatter", "whole"], default="scatter",
        help="remove a dead filter from a live residual stream (default), or keep it as long as its channel is live",
    )  # fmt: skip
    parser.add_argument(
        "--multiple-of", type=int, default=1, metavar="N",
        help="round channel counts up to a multiple, or cut channels down to one (--streams whole)",
    )  # fmt: skip
    parser.add_argument(
        "--trainable", action="store_true",
        help="also write compacted/trainable.pt, with the quantizers, to be trained further by init_from",
    )  # fmt: skip
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--macs", type=float, metavar="FRACTION",
        help="cut live channels first, the least important ones, until this fraction of the MACs is left (0 to 1); the "
        "accuracy falls, so it implies --trainable: train the network further",
    )  # fmt: skip
    budget.add_argument(
        "--latency", type=float, metavar="FRACTION",
        help="the same, until this fraction of the time of a batch of 128 is left, as estimated from the layers' times",
    )  # fmt: skip
    parser.add_argument("--compiled", action="store_true", help="time the models with torch.compile, too")
    parser.add_argument("--device", default="cpu", help="device of the timing: cpu, cuda, mps (default: cpu)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Compact the network of each run and print the proof and the gains."""
    from codeq.analysis.compact_run import TRAINABLE, compact_run

    trainable = options.trainable or options.macs is not None or options.latency is not None

    def act(each: Run) -> None:
        done = compact_run(
            each, options.checkpoint, options.borders, options.streams, options.multiple_of, options.compiled,
            options.device, trainable, options.macs, options.latency,
        )  # fmt: skip
        _report(done)
        if trainable:
            say(f"to train it further, in the configuration of the run: init_from: {done.folder / TRAINABLE}")

    for_each_run(options.names, act)


def _report(done: Compacted) -> None:
    proof = done.proof
    if done.cut:
        say(f"{done.cut}; its outputs have changed, and what follows is about the cut network")
    say(f"{proof.masked_macs:,} MACs masked, {proof.compacted_macs:,} compacted ({done.report.assumes})")
    say(
        f"on {proof.inputs:,} test images: largest difference of a logit {proof.max_error:.1e}, "
        f"{proof.flipped} predictions flipped, accuracy {proof.masked_accuracy:.2%} and {proof.compacted_accuracy:.2%}"
    )
    if done.report.unknown:
        say(f"not followed, so kept whole: {', '.join(done.report.unknown)}")
    for note in done.report.notes:
        say(f"note: {note}")
    say(done.gains.to_string(index=False, float_format="{:.3g}".format))
    say(f"compacted model and measurements in {done.folder}")
