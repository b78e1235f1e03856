"""Dense costs of networks that began their training compacted."""

import pytest
import torch
from torch import nn

from codeq import ExperimentConfig, Run, analysis, run_experiment
from codeq.analysis.dense import _whole_name
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


class Grouped(nn.Module):
    """A grouped convolution beside a branch that vanishes with the weights of `spare`."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.grouped, self.spare = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head((torch.relu(self.grouped(x)) + self.spare(x)).mean((2, 3)))


def trained_after_compaction(folder, name, whole) -> Run:
    settings = {"dataset": "synthetic", "model": name, "epochs": 1, "batch_size": 256, "device": "cpu"}
    settings |= {"quantizer": None, "init_from": str(folder / "small.pt")}
    config = ExperimentConfig("r", run_dir="outputs/r", **settings)
    small = compact(whole.eval(), torch.rand(4, 3, 32, 32), keep_quantizers=True).model
    content = {"model": small.state_dict(), "structure": describe(small), "num_classes": 10}
    torch.save(content | {"input_size": [3, 32, 32], "config": config.to_dict()}, folder / "small.pt")
    return run_experiment(config)


def test_the_parts_of_a_layer_that_a_compaction_split_share_its_dense_cost(tmp_path, monkeypatch, without_figures):
    monkeypatch.setitem(MODELS, "grouped", Grouped)
    torch.manual_seed(0)
    whole = build_model("grouped", 10, {})
    with torch.no_grad():
        for parameter in (*whole.spare.parameters(), whole.grouped.weight[0], whole.grouped.bias[0]):
            parameter.zero_()
    costs = analysis.layer_costs(run := trained_after_compaction(tmp_path, "grouped", whole))
    assert costs["layer"].tolist() == ["stem", "grouped.parts.0", "grouped.parts.1", "spare", "head"]
    dense = costs["dense_macs"].tolist()
    grouped = 4 * 9 * 8 * 64  # weights of a position × positions
    assert dense == [3 * 16 * 8 * 64, *dense[1:3], 8 * 8 * 64, 8 * 10]
    assert dense[1:3] == [round(grouped * 3 / 7), grouped - round(grouped * 3 / 7)]  # 3 and 4 filters are left
    assert sum(dense) == run.summary["baseline_macs"]
    assert costs["structured_macs"].tolist() == [3 * 16 * 8 * 64, 4 * 9 * 3 * 64, 4 * 9 * 4 * 64, 0, 7 * 10]
    assert costs["dense_share"].sum() == pytest.approx(1)


def test_parts_are_those_of_the_layer_with_the_longest_name():
    whole = {"conv", "conv_1"}
    parts = ("conv", "conv_2", "conv.parts.0", "conv_1", "conv_1.parts.0", "conv_1_3.parts.1", "other_1")
    assert [_whole_name(name, whole) for name in parts] == ["conv"] * 3 + ["conv_1"] * 3 + ["other_1"]


def test_a_branch_that_a_compaction_removed_has_its_dense_cost(tmp_path, monkeypatch, without_figures):
    monkeypatch.setitem(MODELS, "residual", Residual)
    torch.manual_seed(0)
    whole = build_model("residual", 10, {})
    with torch.no_grad():
        whole.second.weight.zero_()
        whole.second.bias.zero_()
        whole.stem.weight[0] = whole.stem.bias[0] = 0  # a channel that all layers lose
    run = trained_after_compaction(tmp_path, "residual", whole)
    assert set(run.last_layers()["layer"]) == {"stem", "head"}
    costs = analysis.layer_costs(run)
    assert costs["layer"].tolist() == ["stem", "first", "second", "head"]
    dense = [3 * 16 * 4 * 64, 4 * 9 * 8 * 64, 8 * 9 * 4 * 64, 4 * 10]  # weights of a position × positions
    assert costs["dense_macs"].tolist() == dense
    assert sum(dense) == run.summary["baseline_macs"]
    assert costs["structured_macs"].tolist() == [3 * 16 * 3 * 64, 0, 0, 3 * 10]
    assert costs["dense_share"].tolist() == pytest.approx([macs / sum(dense) for macs in dense])
    assert costs["dead_filters"].tolist() == [0, 8, 4, 0]
