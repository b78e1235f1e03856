"""Run folders with invented tables or networks, made without a training."""

from pathlib import Path

import pandas as pd
import torch
from torch import nn

from codeq import ExperimentConfig, Run
from codeq.compaction import compact
from codeq.compaction.structure import describe
from codeq.models import MODELS, build_model
from codeq.runs.checkpoints import save_checkpoint

LAYERS = ("conv1", "layer1.0.conv1", "linear")


def written_run(
    folder: Path, accuracies=(0.5, 0.75), bits=8, layers=LAYERS, filters=8, status="running", **settings
) -> Run:
    """A run that has recorded an epoch for each accuracy, all if it is done; each layer has a dead filter more."""
    if status == "done":
        settings = {"epochs": len(accuracies), **settings}
    run = Run.create(ExperimentConfig(folder.name, run_dir=str(folder), **settings))
    record(run, accuracies, bits, layers, filters)
    if status != "running":
        run.set_status(status)
    return run


class Halved(nn.Module):
    """A network of which compaction leaves two of four filters."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4), nn.Linear(4, num_classes)
        with torch.no_grad():
            for parameter in (self.stem.weight, self.stem.bias):
                parameter[2:] = 0

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.stem(x))).mean((2, 3)))


DENSE_WEIGHTS, COMPACTED_WEIGHTS = 4 * 3 * 16 + 10 * 4, 2 * 3 * 16 + 10 * 2  # of its layers


def compacted_run(folder: Path, monkeypatch) -> Run:
    """A run of a float network whose training began with a compacted one."""
    monkeypatch.setitem(MODELS, "halved", Halved)
    config = ExperimentConfig("r", model="halved", dataset="synthetic", quantizer=None, run_dir=str(folder))
    run = Run.create(config)
    small = compact(build_model("halved", 10, {}).eval(), torch.rand(4, 3, 32, 32), keep_quantizers=True).model
    content = {"model": small.state_dict(), "structure": describe(small), "num_classes": 10, "input_size": [3, 32, 32]}
    save_checkpoint(run.folder / "checkpoints", content, epoch=0, step=1, accuracy=0.5)
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
