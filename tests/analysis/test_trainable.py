"""A compacted network in the commands: trained further, stopped, resumed, compacted again."""

import json
import os
import shutil
import signal

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from codeq import ExperimentConfig, Run, run_experiment
from codeq.analysis.compact_run import compact_run
from codeq.cli.main import main
from codeq.evaluator import Evaluator
from codeq.models import MODELS
from codeq.quantizer.activations import ActivationQuantizer
from codeq.training.compacted_start import start_compacted
from codeq.training.initial_weights import read_source

pytestmark = pytest.mark.usefixtures("without_figures", "quick_timing")


class Residual(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.pool = nn.AvgPool2d(8)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn, self.relu, self.branch_relu = nn.BatchNorm2d(8), nn.ReLU(), nn.ReLU()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.relu(self.bn(self.stem(self.pool(x))))
        return self.fc((x + self.branch_relu(self.conv(x))).mean((2, 3)))


def without_program(monkeypatch):
    """Leave out ``model.pt2``: seconds of torch.export."""
    monkeypatch.setattr("codeq.analysis.compact_run.save_program", lambda *_: None)


DENSE_MACS = 16 * (8 * 3 * 9 + 8 * 4 * 9) + 80  # 4 x 4 positions


def train(path, **settings):
    common = {"model": "residual", "dataset": "synthetic", "batch_size": 128, "device": "cpu", "seed": 3}
    quantizer = {"name": "deadzone", "kwargs": {"max_bits": 8, "init_deadzone_logit": 2.0}}
    config = common | {"quantizer": quantizer, "activations": {"bits": 6, "residual": "shared"}} | settings
    (path / "config.yaml").write_text(yaml.safe_dump({"name": "r", **config}))
    return main(["train", "--config", str(path / "config.yaml")])


@pytest.mark.slow
def test_compacted_trained_stopped_resumed_and_compacted_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "residual", Residual)
    without_program(monkeypatch)
    torch.manual_seed(0)
    killed = Residual()
    with torch.no_grad():
        killed.stem.weight[[1, 5]] = 0
        killed.conv.weight[[0, 6, 7]] = 0  # the groups keep different numbers of channels
        killed.bn.bias[[1, 5]] = -1
    torch.save(killed.state_dict(), tmp_path / "killed.pt")
    assert train(tmp_path, epochs=1, init_from=str(tmp_path / "killed.pt"), run_dir="outputs/first") == 0
    assert main(["compact", "outputs/first", "--trainable"]) == 0
    trainable = tmp_path / "outputs/first/compacted/trainable.pt"
    assert f"init_from: {trainable}" in capsys.readouterr().out
    first = Run.open("outputs/first").load_model()

    further = {"epochs": 2, "init_from": str(trainable)}
    assert train(tmp_path, **further, run_dir="outputs/whole") == 0
    steps = iter(range(4))
    step = torch.optim.AdamW.step

    def interrupting(*args, **kwargs):
        step(*args, **kwargs)
        if next(steps, None) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupting)
        assert train(tmp_path, **further, run_dir="outputs/second") == 143
    assert Run.open("outputs/second").status == "preempted"
    shutil.rmtree(trainable.parent)  # the checkpoint holds the architecture
    assert main(["train", "--resume", "outputs/second"]) == 0
    whole, second = (Run.open(f"outputs/{name}") for name in ("whole", "second"))
    assert second.history.equals(whole.history)
    model = second.load_model()
    for name, value in whole.load_model().state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert sorted(len(layer.weight) for layer in model.modules() if isinstance(layer, nn.Conv2d)) == [2, 3, 6]
    assert sum(isinstance(module, ActivationQuantizer) for module in model.modules()) == 3
    assert not torch.equal(model.bn.weight, first.bn.weight[[0, 2, 3, 4, 6, 7]])  # it has trained

    # Costs are compared with those of the dense network before any compaction.
    summary = second.summary
    assert summary["baseline_macs"] == DENSE_MACS
    assert summary["baseline_bops"] == 32 * 32 * DENSE_MACS
    assert summary["structured_macs"] == 16 * (6 * 3 * 9 + 3 * 3 * 9 + 3 * 2 * 9) + 80

    assert summary["structured_bops"] == 8 * 6 * summary["structured_macs"]  # bits of all weights and activations

    assert main(["compact", "outputs/second", "--trainable"]) == 0
    gains = pd.read_csv(second.folder / "compacted" / "gains.csv")
    megabytes = gains.groupby("model")["weights_mb"].first()
    assert megabytes["dense"] > megabytes["masked"]  # that of the whole network, with which it is compared
    source = str(second.folder / "compacted/trainable.pt")
    _, content = read_source(source)
    third, x = start_compacted(second.config, content, source), torch.rand(16, 3, 32, 32)
    torch.testing.assert_close(third(x), model(x), rtol=0, atol=1e-6)
    assert Evaluator(third).comparison.baseline.total_macs == DENSE_MACS


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "share"), [("macs", 0.4), ("latency", 0.8)])  # no cut saves the time of a start
def test_live_channels_are_cut_to_a_budget_and_the_rest_is_trained_further(
    budget, share, tmp_path, capsys, monkeypatch
):
    without_program(monkeypatch)
    settings = {"model": "lenet5", "dataset": "synthetic", "batch_size": 128, "device": "cpu", "validation": 0.25}
    run = run_experiment(ExperimentConfig("whole", epochs=1, run_dir=str(tmp_path / "whole"), **settings))
    weights = run.load_model().state_dict()
    assert main(["compact", str(run.folder), f"--{budget}", str(share)]) == 0
    assert all(torch.equal(value, weights[name]) for name, value in run.load_model().state_dict().items())
    proof = json.loads((run.folder / "compacted" / "proof.json").read_text())
    assert proof["options"] == {"borders": "map", "streams": "scatter", "multiple_of": 1, budget: share}
    said = capsys.readouterr().out
    assert f"{proof['cut']['cut']} of {proof['cut']['groups']} prunable channels are zero" in said
    assert {"macs": proof["cut"]["macs"], "latency": proof["cut"]["cost"]}[budget] <= share
    assert proof["compacted_macs"] == pytest.approx(proof["cut"]["macs"] * proof["masked_macs"])
    assert ("of the time" in said) == (budget == "latency")
    assert proof["flipped"] == 0
    trainable = run.folder / "compacted" / "trainable.pt"
    assert f"init_from: {trainable}" in said
    further = run_experiment(
        ExperimentConfig("cut", epochs=1, init_from=str(trainable), run_dir=str(tmp_path / "cut"), **settings)
    )
    last = further.history.iloc[-1]
    assert 1 / last["compression/structured_mac_ratio"] == pytest.approx(proof["cut"]["macs"], rel=1e-6)  # to the whole


class HalfFrozen(nn.Module):
    """The first BatchNorm stays in evaluation mode, as in fine-tuned detectors."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.pool, self.conv1, self.bn1 = nn.AvgPool2d(8), nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.conv2, self.bn2, self.fc = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, num_classes)
        nn.init.constant_(self.bn1.running_var, 4.0)

    def train(self, mode=True):
        super().train(mode)
        self.bn1.eval()
        return self

    def forward(self, x):
        x = self.bn1(self.conv1(self.pool(x))).relu()
        return self.fc(self.bn2(self.conv2(x)).relu().mean((2, 3)))


def test_a_cut_estimates_the_statistics_of_batchnorms_anew_but_for_frozen_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "half_frozen", HalfFrozen)
    without_program(monkeypatch)
    monkeypatch.setattr("codeq.analysis.compact_run.measure_gains", lambda *_, **__: pd.DataFrame())
    settings = {"model": "half_frozen", "dataset": "synthetic", "batch_size": 128, "device": "cpu"}
    run = run_experiment(ExperimentConfig("frozen", epochs=1, run_dir=str(tmp_path / "frozen"), **settings))
    done = compact_run(run, macs=0.6)
    whole, smaller = run.load_model(), done.report.model
    assert smaller.bn1.running_var.unique().tolist() == whole.bn1.running_var.unique().tolist() == [4.0]
    assert not torch.isin(smaller.bn2.running_var, whole.bn2.running_var).any()
