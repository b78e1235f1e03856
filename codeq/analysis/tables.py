"""What runs achieved and what their layers cost, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from codeq.analysis.selection import recorded_layers, run_labels
from codeq.common.errors import CodeqError
from codeq.metrics import storage_bytes
from codeq.quantizer import dead_zone_width
from codeq.quantizer.attach import FLOAT_BITS
from codeq.runs import Run

if TYPE_CHECKING:
    import pandas as pd

ACTIVATION_BITS = 32
KINDS = ("dense", "structured", "unstructured")


def summary_table(runs: Run | Sequence[Run]) -> pd.DataFrame:
    """Return what each run achieved, finished or not: a row a run.

    Returns
    -------
    DataFrame
        `run`, `model`, `dataset`, `status`; `epochs` (recorded), `epochs_asked`; `accuracy` (last epoch),
        `accuracy_best`, `best_epoch` (0-based); `bits` (mean over quantized layers); `zero_weights`, `dead_filters`
        (fractions); `unstructured_bops`, `structured_bops` (relative to the dense 32-bit network, fractions),
        `unstructured_macs`, `structured_macs` (the same); `float_bytes`, `packed_bytes`, `entropy_bytes` (of conv and
        linear weights in the last checkpoint, see `codeq.metrics.StorageBytes`); `message` (why it ended), `folder`.
        NaN stands for what was not recorded.
    """
    import pandas as pd

    runs = [runs] if isinstance(runs, Run) else list(runs)
    return pd.DataFrame([_summary(run, label) for run, label in zip(runs, run_labels(runs), strict=True)])


def _summary(run: Run, label: str) -> dict[str, Any]:
    row: dict[str, Any] = {"run": label, "model": "?", "dataset": "?", "status": run.status}
    problem = run.message
    history = run.history
    row |= {"epochs": len(history), "epochs_asked": nan}
    try:
        config = run.config
        row |= {"model": config.model, "dataset": config.dataset, "epochs_asked": config.epochs}
    except CodeqError as error:  # written by another version of codeq, or damaged
        problem = f"{problem} {error}".strip()
    last: dict[Any, Any] = history.iloc[-1].to_dict() if len(history) else {}
    best: dict[Any, Any] = {}
    if len(history) and history["eval/accuracy"].notna().any():
        best = history.iloc[int(history["eval/accuracy"].argmax())].to_dict()
    row |= {
        "accuracy": last.get("eval/accuracy", nan),
        "accuracy_best": best.get("eval/accuracy", nan),
        "best_epoch": best.get("epoch", nan),
        "bits": last.get("quantizer/mean_bits", nan),
        "zero_weights": last.get("sparsity/unstructured", nan),
        "dead_filters": last.get("sparsity/structured", nan),
    }
    for unit, key in (("bops", "bops_ratio"), ("macs", "mac_ratio")):
        for kind in ("unstructured", "structured"):
            row[f"{kind}_{unit}"] = 1 / last.get(f"compression/{kind}_{key}", nan)
    row |= dict(zip(("float_bytes", "packed_bytes", "entropy_bytes"), _bytes(run), strict=True))
    return row | {"message": problem, "folder": str(run.folder)}


def _bytes(run: Run) -> tuple[float, float, float]:
    manifest = run.folder / "checkpoints" / "manifest.json"
    if not manifest.is_file():
        return nan, nan, nan
    try:
        return _bytes_of(run.folder, manifest.stat().st_mtime_ns)
    except CodeqError:  # a damaged checkpoint, or a model that is registered elsewhere
        return nan, nan, nan


@cache  # each report of a sweep compares all runs: their checkpoints are read once, until later ones are written
def _bytes_of(folder: Path, written: int) -> tuple[float, float, float]:  # noqa: ARG001
    stored = storage_bytes(Run(folder).load_model())
    return stored.float32, stored.packed, stored.entropy


def readable_summary(summary: pd.DataFrame) -> pd.DataFrame:
    """Write `summary_table` for people: a column a run, a row a figure, with units."""
    import pandas as pd

    return pd.DataFrame({row["run"]: _readable(row) for _, row in summary.iterrows()})


def _readable(row: Any) -> dict[str, str]:
    def percent(value: float, digits: int = 2) -> str:
        return f"{100 * value:.{digits}f} %" if value == value else "–"

    def saved(value: float) -> str:
        if value != value:
            return "–"
        return f"{1 / value:.2f} × ({percent(value)} left)" if value else "nothing left"

    def size(kind: str) -> str:
        value = row[f"{kind}_bytes"]
        if value != value:
            return "–"
        times = f"; {row['float_bytes'] / value:.2f} × smaller" if kind != "float" and value else ""
        return f"{value:,.0f} ({value / 1024:,.1f} KiB{times})"

    asked = f" of {row['epochs_asked']:.0f}" if row["epochs_asked"] == row["epochs_asked"] else ""
    best = percent(row["accuracy_best"])
    best += f" (epoch {row['best_epoch'] + 1:.0f})" if row["best_epoch"] == row["best_epoch"] else ""
    return {
        "status": row["status"],
        "model, data set": f"{row['model']}, {row['dataset']}",
        "epochs": f"{row['epochs']}{asked}",
        "accuracy, last epoch": percent(row["accuracy"]),
        "accuracy, best epoch": best,
        "bits, mean over quantized layers": f"{row['bits']:.2f}" if row["bits"] == row["bits"] else "–",
        "zero weights (unstructured sparsity)": percent(row["zero_weights"], 1),
        "dead filters (structured sparsity)": percent(row["dead_filters"], 1),
        "BOPs saved, unstructured": saved(row["unstructured_bops"]),
        "BOPs saved, structured": saved(row["structured_bops"]),
        "MACs saved, unstructured": saved(row["unstructured_macs"]),
        "MACs saved, structured": saved(row["structured_macs"]),
        "bytes of weights, float32": size("float"),
        "bytes of weights, packed at their bits": size("packed"),
        "bytes of weights, entropy of their levels": size("entropy"),
    }


def layer_costs(run: Run, epoch: int | None = None) -> pd.DataFrame:
    """Return what every layer was given and what it costs before and after: a row a layer, in order of execution.

    Parameters
    ----------
    run : Run
        With at least one recorded epoch; its checkpoints are not read.
    epoch : int, optional
        0-based; default the last recorded one.

    Returns
    -------
    DataFrame
        `layer`, `quantized`, `bits`; `dead_zone` (d / 2R: the share of the scale R below which weights become 0; NaN
        without a dead-zone); `density` (non-zero weights, a fraction); `filters`, `dead_filters`, `null_in`,
        `null_out` (channels); `dense_macs`, `structured_macs`, `unstructured_macs`, the same three as `…_bops` (of one
        input, activations of 32 bits) and as `…_share` (of the network's BOPs, fractions).

    Raises
    ------
    CodeqError
        If nothing was recorded, or not for that epoch.
    """
    layers = recorded_layers(run)
    rows = layers[layers["epoch"] == (layers["epoch"].max() if epoch is None else epoch)].reset_index(drop=True)
    if not len(rows):
        raise CodeqError(f"epoch={epoch}: {run.folder.name} has recorded {layers['epoch'].nunique()} epochs (0-based)")
    columns = ["layer", "quantized", "bits", "density", "filters", "dead_filters", "null_in", "null_out"]
    costs = rows[columns + [f"{kind}_{unit}" for unit in ("macs", "bops") for kind in KINDS[1:]]].copy()
    theta = torch.tensor(rows["theta_dz"].tolist(), dtype=torch.double)
    costs.insert(3, "dead_zone", dead_zone_width(theta, torch.ones(())).numpy() / 2)
    # Unstructured MACs are a layer's dense ones times its density, so any epoch in which it had a weight tells them.
    alive = layers[layers["density"] > 0]
    dense = (alive["unstructured_macs"] / alive["density"]).groupby(alive["layer"]).first().round()
    costs["dense_macs"] = costs["layer"].map(dense)
    costs["dense_bops"] = costs["dense_macs"] * FLOAT_BITS * ACTIVATION_BITS
    for kind in KINDS:
        total = costs[f"{kind}_bops"].sum()
        costs[f"{kind}_share"] = costs[f"{kind}_bops"] / total if total else np.zeros(len(costs))
    return costs


def readable_costs(costs: pd.DataFrame) -> pd.DataFrame:
    """Write `layer_costs` for people: short headings, percent, thousands of MACs and millions of BOPs."""
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
        table[f"{kind} MBOPs"] = (costs[f"{kind}_bops"] / 1e6).map("{:,.1f}".format)
        table[f"{kind} share (%)"] = percent(f"{kind}_share")
    return pd.DataFrame(table)
