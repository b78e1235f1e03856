"""Tables of the results of runs and of the costs of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from codeq.analysis.dense import dense_costs, with_lost_layers
from codeq.analysis.network import input_size_of
from codeq.analysis.recorded import last_layers
from codeq.analysis.selection import run_labels
from codeq.common.console import compression
from codeq.common.errors import CodeqError
from codeq.metrics import storage_bytes
from codeq.metrics.reference import dense_bytes
from codeq.quantizer.functions import Grid, dead_zone_grid, dead_zone_share
from codeq.quantizer.layers import FLOAT_BITS
from codeq.runs import Run
from codeq.runs.checkpoints import MANIFEST
from codeq.runs.references import require_runs
from codeq.runs.tables import chosen_by, lost_epochs

if TYPE_CHECKING:
    import pandas as pd

ACTIVATION_BITS = 32
KINDS = ("dense", "structured", "unstructured")


def summary_table(runs: Run | Sequence[Run]) -> pd.DataFrame:
    """Return the results of runs, finished or not: one row per run.

    Returns
    -------
    DataFrame
        `run`, `model`, `dataset`, `status`; `epochs` (recorded), `epochs_asked`; `accuracy` (last epoch),
        `accuracy_best`, `best_epoch` (0-based), `chosen_by` (images of both accuracies, ``validation`` or ``test``),
        `test_accuracy` and `test_accuracy_last` (on the test images, of the best and the last epoch); `bits` (mean over
        quantized layers); `zero_weights`, `dead_filters` (fractions); `unstructured_bops`, `structured_bops` (relative
        to the dense 32-bit network, fractions), `unstructured_macs`, `structured_macs` (the same); `dense_bytes`
        (of conv and linear weights of the dense network as float32), `float_bytes`, `packed_bytes`, `entropy_bytes` (of
        those in the last checkpoint, see `codeq.metrics.StorageBytes`); `message` (reason of the status), `folder`.
        What was not recorded is NaN, and so are results of a done run whose table lacks epochs. The dense network of
        one that was compacted is that before its compaction.
    """
    import pandas as pd

    runs = require_runs(runs)
    return pd.DataFrame([_summary(run, label) for run, label in zip(runs, run_labels(runs), strict=True)])


def _summary(run: Run, label: str) -> dict[str, Any]:
    row: dict[str, Any] = {"run": label, "model": "?", "dataset": "?", "status": run.status}
    problems = [run.message]
    rows: list[dict[Any, Any]] = []
    row["epochs_asked"], lost = nan, ""
    try:
        rows = run.history.to_dict("records")
        lost = lost_epochs(run.folder) if row["status"] == "done" else ""
    except CodeqError as error:  # of another version of codeq, or damaged
        problems.append(str(error))
    try:
        config = run.config
        row |= {"model": config.model, "dataset": config.dataset, "epochs_asked": config.epochs}
    except CodeqError as error:  # the same
        problems.append(str(error))
    problems.append(lost)
    last = rows[-1] if rows and not lost else {}
    evaluated = [] if lost else [row for row in rows if row.get("eval/accuracy", nan) >= 0]  # not NaN
    best = max(evaluated, key=lambda row: row["eval/accuracy"], default={})
    row |= {
        "epochs": len(rows),
        "accuracy": last.get("eval/accuracy", nan),
        "accuracy_best": best.get("eval/accuracy", nan),
        "best_epoch": best.get("epoch", nan),
        "chosen_by": chosen_by(best),
        "test_accuracy": best.get("test/accuracy", best.get("eval/accuracy", nan)),
        "test_accuracy_last": last.get("test/accuracy", last.get("eval/accuracy", nan)),
        "bits": last.get("quantizer/mean_bits", nan),
        "zero_weights": last.get("sparsity/unstructured", nan),
        "dead_filters": last.get("sparsity/structured", nan),
    }
    for unit, key in (("bops", "bops_ratio"), ("macs", "mac_ratio")):
        for kind in ("unstructured", "structured"):
            row[f"{kind}_{unit}"] = 1 / last.get(f"compression/{kind}_{key}", nan)
    row |= dict(zip(("dense_bytes", "float_bytes", "packed_bytes", "entropy_bytes"), _bytes(run), strict=True))
    return row | {"message": " ".join(filter(None, problems)), "folder": str(run.folder)}


def _bytes(run: Run) -> tuple[float, float, float, float]:
    manifest = run.checkpoints / MANIFEST
    if not manifest.is_file():
        return nan, nan, nan, nan
    try:
        return _bytes_of(run.folder, manifest.stat().st_mtime_ns)
    except CodeqError:  # a damaged checkpoint, or a model that this process does not know
        return nan, nan, nan, nan


@cache  # a sweep has a report per run that compares all runs: each checkpoint is read once
def _bytes_of(folder: Path, written: int) -> tuple[float, float, float, float]:  # noqa: ARG001
    run = Run(folder)
    model = run.load_model()
    size = input_size_of(run, model)
    stored = storage_bytes(model, size)
    return dense_bytes(model, size), stored.float32, stored.packed, stored.entropy


def readable_summary(summary: pd.DataFrame) -> pd.DataFrame:
    """Format `summary_table` as text with units: one column per run, one row per quantity."""
    import pandas as pd

    return pd.DataFrame({row["run"]: _readable(row) for _, row in summary.iterrows()})


def _readable(row: Any) -> dict[str, str]:
    def percent(value: float, digits: int = 2) -> str:
        return f"{100 * value:.{digits}f} %" if value == value else "–"

    def relative(value: float) -> str:
        return compression(1 / value if value else inf, 2) if value == value else "–"

    def size(kind: str) -> str:
        value = row[f"{kind}_bytes"]
        if value != value:
            return "–"
        whole = row["dense_bytes"]
        times = f"; {whole / value:.2f} × smaller" if value and (kind != "float" or value != whole) else ""
        return f"{value:,.0f} ({value / 1024:,.1f} KiB{times})"

    asked = f" of {row['epochs_asked']:.0f}" if row["epochs_asked"] == row["epochs_asked"] else ""
    best = percent(row["accuracy_best"])
    if row["best_epoch"] == row["best_epoch"]:
        best += f" (epoch {row['best_epoch'] + 1:.0f}, chosen on {row['chosen_by']} images)"
    return {
        "status": row["status"],
        "model, data set": f"{row['model']}, {row['dataset']}",
        "epochs": f"{row['epochs']}{asked}",
        "accuracy, last epoch": percent(row["accuracy"]),
        "accuracy, best epoch": best,
        "accuracy on the test images, last epoch": percent(row["test_accuracy_last"]),
        "accuracy on the test images, best epoch": percent(row["test_accuracy"]),
        "bits, mean over quantized layers": f"{row['bits']:.2f}" if row["bits"] == row["bits"] else "–",
        "zero weights (unstructured sparsity)": percent(row["zero_weights"], 1),
        "dead filters (structured sparsity)": percent(row["dead_filters"], 1),
        "BOPs, unstructured: compression (relative)": relative(row["unstructured_bops"]),
        "BOPs, structured: compression (relative)": relative(row["structured_bops"]),
        "MACs, unstructured: compression (relative)": relative(row["unstructured_macs"]),
        "MACs, structured: compression (relative)": relative(row["structured_macs"]),
        "bytes of weights, float32": size("float"),
        "bytes of weights, packed at their bits": size("packed"),
        "bytes of weights, entropy of their levels": size("entropy"),
    }


def layer_costs(run: Run, epoch: int | None = None) -> pd.DataFrame:
    """Return quantizer settings, sparsity and cost of each layer: one row per layer, in order of execution.

    Parameters
    ----------
    run : Run
        With at least one recorded epoch. Checkpoints are not read.
    epoch : int, optional
        0-based; default the last recorded one.

    Returns
    -------
    DataFrame
        `layer`, `quantized`, `bits`; `dead_zone` (d / 2R: the share of the scale R below which weights become 0; NaN
        without an active dead-zone); `density` (non-zero weights, a fraction); `filters`, `dead_filters`, `null_in`,
        `null_out` (channels); `dense_macs`, `structured_macs`, `unstructured_macs` (of one input, paper eq. (20) and
        (21)), the same three as `…_bops` (eq. (22), activations of 32 bits or those of their quantizers; 32 in the
        dense network) and as `…_share` (of the network's BOPs, fractions). Dense costs are NaN for a layer without
        weights in all epochs if its model cannot be rebuilt; the dense shares are then NaN for all layers. Those of a
        compacted network are of the layers before its compaction; a layer that it lost has a row with 0 bits, a density
        of 0 and dead filters alone, and the parts of a layer that it split have a row and a share of its MACs each.

    Raises
    ------
    CodeqError
        If no epoch, or not this one, was recorded.
    """
    rows = last_layers(run, epoch)
    columns = ["layer", "quantized", "bits", "density", "filters", "dead_filters", "null_in", "null_out"]
    costs = rows[columns + [f"{kind}_{unit}" for unit in ("macs", "bops") for kind in KINDS[1:]]].copy()
    theta = torch.tensor(rows["theta_dz"].tolist(), dtype=torch.double, device="cpu")
    bits = torch.tensor(rows["bits"].tolist(), dtype=torch.double, device="cpu")
    dead_zone = dead_zone_grid(torch.ones_like(theta), dead_zone_share(theta), bits, _grid(run))[2].numpy()
    costs.insert(3, "dead_zone", np.where(rows["quantized"], dead_zone, nan))
    dense, whole = dense_costs(run)
    costs["dense_macs"] = costs["layer"].map(dense)
    costs = with_lost_layers(costs, whole)
    costs["dense_bops"] = costs["dense_macs"] * FLOAT_BITS * ACTIVATION_BITS
    for kind in KINDS:
        total = costs[f"{kind}_bops"].sum(skipna=False)
        costs[f"{kind}_share"] = costs[f"{kind}_bops"] / total if total else np.zeros(len(costs))
    return costs


def _grid(run: Run) -> Grid:
    with suppress(CodeqError):  # a configuration of another version of codeq
        return (run.config.quantizer_kwargs or {}).get("grid", "paper")
    return "paper"


def readable_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """Format `layer_costs` as text: short headings, percent and millions of BOPs."""
    import pandas as pd

    def percent(column: str) -> pd.Series:
        return costs[column].map(lambda value: f"{100 * value:.1f}" if value == value else "–")

    table = {
        "layer": costs["layer"],
        "bits": costs["bits"].map("{:.0f}".format),
        "dead-zone d / 2R (%)": percent("dead_zone"),
        "non-zero weights (%)": percent("density"),
        "filters": costs["filters"],
        "dead": costs["dead_filters"],
        "null in": costs["null_in"],
        "null out": costs["null_out"],
    }
    for kind in KINDS:
        table[f"{kind} MBOPs"] = (costs[f"{kind}_bops"] / 1e6).map("{:,.1f}".format).replace("nan", "–")
        table[f"{kind} share (%)"] = percent(f"{kind}_share")
    return pd.DataFrame(table)
