"""Dense costs of networks that began their training compacted."""

import pytest
import torch
from torch import nn

from codeq import ExperimentConfig, analysis, run_experiment
from codeq.compaction import compact
from codeq.compaction.structure import describe
from codeq.models import MODELS, build_model


class Residual(nn.Module):
    """A residual branch that vanishes with the weights of `second`."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.second(torch.relu(self.first(x)))
        return self.head(x.mean((2, 3)))


def test_a_branch_that_a_compaction_removed_has_its_dense_cost(tmp_path, monkeypatch, without_figures):
    monkeypatch.setitem(MODELS, "residual", Residual)
    settings = {"dataset": "synthetic", "model": "residual", "epochs": 1, "batch_size": 256, "device": "cpu"}
    settings |= {"quantizer": None, "init_from": str(tmp_path / "small.pt")}
    config = ExperimentConfig("r", run_dir="outputs/r", **settings)
    torch.manual_seed(0)
    whole = build_model("residual", 10, {})
    with torch.no_grad():
        whole.second.weight.zero_()
        whole.second.bias.zero_()
        whole.stem.weight[0] = whole.stem.bias[0] = 0  # a channel that all layers lose
    small = compact(whole.eval(), torch.rand(4, 3, 32, 32), keep_quantizers=True).model
    content = {"model": small.state_dict(), "structure": describe(small), "num_classes": 10}
    torch.save(content | {"input_size": [3, 32, 32], "config": config.to_dict()}, tmp_path / "small.pt")
    run = run_experiment(config)
    assert set(run.last_layers()["layer"]) == {"stem", "head"}
    costs = analysis.layer_costs(run)
    assert costs["layer"].tolist() == ["stem", "first", "second", "head"]
    dense = [3 * 16 * 4 * 64, 4 * 9 * 8 * 64, 8 * 9 * 4 * 64, 4 * 10]  # weights of a position × positions
    assert costs["dense_macs"].tolist() == dense
    assert sum(dense) == run.summary["baseline_macs"]
    assert costs["structured_macs"].tolist() == [3 * 16 * 3 * 64, 0, 0, 3 * 10]
    assert costs["dense_share"].tolist() == pytest.approx([macs / sum(dense) for macs in dense])
    assert costs["dead_filters"].tolist() == [0, 8, 4, 0]
