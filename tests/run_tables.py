"""Run folders with invented tables, made without a training."""

from pathlib import Path

import pandas as pd

from codeq import ExperimentConfig, Run

LAYERS = ("conv1", "layer1.0.conv1", "linear")


def written_run(
    folder: Path, accuracies=(0.5, 0.75), bits=8, layers=LAYERS, filters=8, status="running", **settings
) -> Run:
    """A run that has recorded an epoch for each accuracy; from layer to layer it has one dead filter more."""
    run = Run.create(ExperimentConfig(folder.name, run_dir=str(folder), **settings))
    record(run, accuracies, bits, layers, filters)
    if status != "running":
        run.set_status(status)
    return run


def record(run: Run, accuracies, bits=8, layers=LAYERS, filters=8) -> None:
    rows = [
        {
            "epoch": epoch, "eval/accuracy": accuracy, "quantizer/mean_bits": bits, "sparsity/unstructured": 0.25,
            "sparsity/structured": 0.125, "compression/unstructured_bops_ratio": 20.0 + epoch,
            "compression/structured_bops_ratio": 10.0,
        }
        for epoch, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(run.folder / "metrics.csv", index=False)
    rows = [
        {
            "epoch": epoch, "layer": layer, "quantized": True, "bits": bits, "theta_dz": 0.0, "filters": filters,
            "dead_filters": k, "alive": "ff", "density": 0.75, "null_in": 0, "null_out": k, "structured_pruning": 0.125,
            "unstructured_pruning": 0.25, "structured_macs": 1e6, "unstructured_macs": 1e6,
            "structured_bops": 32e6 * bits, "unstructured_bops": 24e6 * bits,
        }
        for epoch in range(len(accuracies))
        for k, layer in enumerate(layers)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(run.folder / "layers.csv", index=False)
