"""``codeq calibrate``: quantize the activations of a finished run, without training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from codeq.cli.each_run import for_each_run
from codeq.common.console import say
from codeq.runs.references import FORMS

if TYPE_CHECKING:
    from codeq.runs import Run


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("calibrate", help="quantize the activations of a finished run, without training")
    parser.add_argument("names", nargs="+", metavar="RUN", help=FORMS)
    parser.add_argument("--bits", type=int, default=8, help="bits of the activations, 2 to 16 (default: 8)")
    parser.add_argument(
        "--method", choices=["percentile", "minmax", "lsq"], default="percentile",
        help="range of the values: without 0.1 %% at either end (default), all, or the initial step of LSQ",
    )  # fmt: skip
    parser.add_argument("--symmetric", action="store_true", help="integers on both sides of zero also behind a ReLU")
    parser.add_argument(
        "--residual", choices=["float", "shared"], default="float",
        help="operands of residual adds: as they are (default), or quantized with one step for all operands of an add",
    )  # fmt: skip
    parser.add_argument(
        "--exclude-layers", nargs="+", default=[], metavar="PATTERN", help="layers whose inputs stay float"
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="checkpoint (default: last)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Calibrate the network of each run and print its accuracy and BOPs before and after."""
    from codeq.analysis.calibrate_run import FOLDER, calibrate_run

    def act(each: Run) -> None:
        done = calibrate_run(
            each, options.bits, options.method, options.symmetric, options.checkpoint, options.residual,
            options.exclude_layers,
        )  # fmt: skip
        say(
            f"inputs of {len(done.layers)} layers at {done.bits} bits ({done.method}, ranges from "
            f"{done.calibration_images:,} training images)"
        )
        if options.residual == "shared":
            say(f"operands of {len(done.shared_adds)} residual adds share a step; of {len(done.float_adds)} stay float")
        for name, reason in done.float_adds.items():
            say(f"  {name}: {reason}")
        say(
            f"accuracy on {done.test_images:,} test images: {done.accuracy_before:.2%} with float, "
            f"{done.accuracy_after:.2%} with quantized activations"
        )
        say(f"unstructured BOPs: {done.bops_before:.2%} and {done.bops_after:.2%} of the dense 32-bit network")
        say(f"calibrated model in {each.folder / FOLDER}")

    for_each_run(options.names, act)
