"""``codeq export``: files of a run's network for other runtimes, each executed on the test set before it is kept."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from codeq.cli.each_run import for_each_run
from codeq.common.console import say
from codeq.common.errors import CodeqError
from codeq.runs.references import FORMS

if TYPE_CHECKING:
    from codeq.export.verdict import Verdict
    from codeq.runs import Run

FORMATS = ("onnx", "qdq", "qonnx", "openvino", "pt2", "packed")


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "export", help="write a run's network for other runtimes, execute and compare the file"
    )
    parser.add_argument("names", nargs="+", metavar="RUN", help=FORMS)
    parser.add_argument(
        "--to", required=True, nargs="+", choices=FORMATS, metavar="FORMAT",
        help="one or more of onnx: float; qdq: 8-bit integers; qonnx: Quant nodes for FINN and hls4ml; openvino; "
        "pt2: torch.export; packed: entropy-coded weights",
    )  # fmt: skip
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last", help="checkpoint (default: last)")
    parser.add_argument("--whole", action="store_true", help="the network as it was trained, not compacted")
    parser.add_argument(
        "--int4", action="store_true",
        help="for qdq: weights of layers with integers from -8 to 7 in 4 bits; a smaller file that runs slower",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, metavar="T",
        help="largest difference of a logit relative to the largest (default 1e-4), for qdq, qonnx and quantized "
        "activations largest fraction of flipped predictions (default 0.005); above it nothing is kept",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Export the network of each run and print the verdict."""
    from codeq.export.export_run import check_export

    check_export(options.to, options.tolerance, options.int4)
    for_each_run(options.names, lambda run: _export(run, options))


def _export(run: Run, options: argparse.Namespace) -> None:
    """Export a run; with a calibration that is not that of its weights now, the formats that need none."""
    from codeq.analysis.calibrate_run import FOLDER, calibrated_copy
    from codeq.export.activation_scales import describe_ranges
    from codeq.export.export_run import INTEGER_FORMATS, export_network
    from codeq.runs.checkpoints import checkpoint_entry

    # Read once: a training may save others, and delete this one, while the calibration is read.
    file = checkpoint_entry(run.checkpoints, options.checkpoint).file
    model = run.load_model(file)
    formats, calibrated, refusals = list(options.to), None, []
    integers = sorted(set(formats) & set(INTEGER_FORMATS))
    if integers and (run.folder / FOLDER).is_dir():
        try:
            calibrated = calibrated_copy(run, model, file, options.checkpoint)
            say(describe_ranges(integers, calibrated, run.folder / FOLDER))
        except CodeqError as error:
            formats = [name for name in formats if name not in integers]
            refusals.append(f"{' and '.join(integers)}: {error}")
    int4 = options.int4 and "qdq" in formats
    try:
        if formats:
            verdicts = export_network(run, model, file, formats, options.whole, options.tolerance, calibrated, int4)
            for verdict in verdicts:
                _report(verdict)
                say(f"{verdict.file} and verdict.json in {run.folder / 'exports'}")
    except CodeqError as error:
        refusals.append(str(error))
    if refusals:
        raise CodeqError("\n".join(refusals))


def _report(verdict: Verdict) -> None:
    found = verdict.comparison
    say(
        f"{verdict.format} in {verdict.runtime}, on {found.inputs:,} test images: largest difference of a logit "
        f"{found.max_error:.1e}, {found.flipped} predictions flipped, accuracy {found.accuracy:.2%} "
        f"({found.reference_accuracy:.2%} before)"
    )
    if verdict.weight_errors:
        worst = max(verdict.weight_errors, key=lambda name: verdict.weight_errors[name])
        say(
            f"{len(verdict.weight_errors)} weights are on the nearest grid of 8 bits, at most "
            f"{verdict.weight_errors[worst]:.2%} of the largest weight away ({worst})"
        )
    if verdict.weight_bits:
        wide = [name for name, bits in verdict.weight_bits.items() if bits > 4]
        narrow = len(verdict.weight_bits) - len(wide)
        say(f"weights of 4 bits in {narrow} layers, of 8 bits in: {', '.join(wide) or 'none'}")
    say(f"{'':18}{'bytes':>12}{'batch 1, ms':>14}{'batch 64, ms':>14}  ({verdict.threads} threads)")
    own = {"bytes": verdict.bytes, "latency_ms": verdict.latency_ms}
    for name, row in {verdict.format: own, **verdict.compared}.items():
        size = "" if row["bytes"] is None else f"{row['bytes']:,}"
        first, second = (f"{time:.2f}" for time in row["latency_ms"].values())
        say(f"{name:18}{size:>12}{first:>14}{second:>14}")
