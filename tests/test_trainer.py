import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from codeq import ExperimentConfig, Run, group_lasso_blocks, group_lasso_channels, linear_warmup, run_experiment
from codeq.checkpoints import read_manifest
from codeq.errors import CodeqError
from codeq.objective import Diverged
from codeq.quantizer import QUANTIZERS

COUPLED = {"name": "coupled_group_lasso", "lambda": 1.0, "step": "proximal"}


def config(folder, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "mlp", "epochs": 2, "batch_size": 128, "device": "cpu"}
    return ExperimentConfig(name="tiny", run_dir=str(folder), **(defaults | settings))


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.load_model().parameters()])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return run_experiment(config(folder, model="resnet20", exclude_layers=[], loss_terms=[COUPLED], viz_interval=1))


def test_every_key_of_the_log_is_in_metrics_csv_and_a_row_an_epoch(run):
    history = run.history
    assert history["epoch"].tolist() == [0, 1]
    expected = ["epoch", "lr", "train/ce_loss", "train/accuracy", "train/sparsity_loss", "train/sparsity_coeff"]
    expected += ["train/coupled_group_lasso", "eval/accuracy", "eval/loss"]
    expected += [
        f"compression/{kind}_{unit}_ratio" for kind in ("structured", "unstructured") for unit in ("bops", "mac")
    ]
    for layer in ("conv1", "layer3.2.conv2", "linear"):
        expected += [f"layers/{layer}/{key}" for key in ("bitwidth", "structured_pruning", "unstructured_pruning")]
    assert set(expected) <= set(history.columns)
    assert not history.isna().any().any()


def test_layers_csv_has_a_row_a_layer_and_epoch(run):
    layers = run.layers
    assert layers.groupby("epoch").size().tolist() == [20, 20]
    assert layers["layer"].iloc[0] == "conv1"
    assert layers["layer"].iloc[-1] == "linear"


def test_the_run_is_done_and_complete(run):
    assert run.status == "done"
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "environment.json", "metrics.csv", "layers.csv", "summary.json", "status.json"} <= names
    assert {"plots/channel_liveness.png", "plots/sparsity_bars.png", "checkpoints/manifest.json"} <= names


def test_the_learning_rate_follows_the_cosine(run):
    assert run.history["lr"].tolist() == pytest.approx([1e-3, 0.5e-3])


def test_the_summary_holds_the_last_epoch_and_the_best_apart(run):
    accuracies = run.history["eval/accuracy"]
    assert run.summary["accuracy_last"] == accuracies.iloc[-1]
    assert run.summary["accuracy_best"] == accuracies.max()
    assert run.summary["best_epoch"] == accuracies.idxmax()
    assert run.summary["baseline_macs"] == 40_551_040


def test_one_seed_gives_one_run_whatever_was_drawn_before(tmp_path):
    first = run_experiment(config(tmp_path / "a", seed=3))
    torch.rand(17)
    np.random.default_rng().random(5)
    second = run_experiment(config(tmp_path / "b", seed=3))
    other = run_experiment(config(tmp_path / "c", seed=4))
    for name in ("metrics.csv", "layers.csv"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
        assert (first.folder / name).read_bytes() != (other.folder / name).read_bytes()
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("quantizer", [None, "deadzone", "uniform"])
def test_training_learns_real_digits_with_and_without_quantizers(tmp_path, quantizer):
    run = run_experiment(config(tmp_path / "run", dataset="digits", quantizer=quantizer, batch_size=32, epochs=3))
    assert run.history["eval/accuracy"].iloc[-1] > 0.6
    bits = {None: 32, "deadzone": 8, "uniform": 8}[quantizer]
    assert run.last_layers()["bits"].tolist() == [bits] * 3


def test_several_terms_are_logged_each_under_its_name(tmp_path):
    terms = [
        {"name": "group_lasso_channels", "lambda": 0.001},
        {
            "name": "group_lasso",
            "lambda": 0.5,
            "schedule": {"name": "linear_warmup", "kwargs": {"delay": 0, "ramp": 2}},
        },
    ]
    settings = {"model": "resnet20", "loss_terms": terms, "batch_size": 256}
    history = run_experiment(config(tmp_path / "run", **settings)).history
    assert history["train/group_lasso_channels_coeff"].tolist() == [0.001, 0.001]
    assert history["train/group_lasso_coeff"].tolist() == [0, 0.25]
    total = history["train/group_lasso_channels"] + history["train/group_lasso"]
    assert history["train/sparsity_loss"].tolist() == pytest.approx(total.tolist())


def test_callables_work_as_sparsity_fn(tmp_path):
    settings = {"model": "resnet20", "batch_size": 256, "epochs": 1}
    run = run_experiment(config(tmp_path / "run", sparsity_fn=group_lasso_blocks(8), **settings))
    assert run.config.loss_terms[0].kwargs == {"block_size": 8}
    own = run_experiment(
        config(tmp_path / "own", sparsity_fn=lambda model: model.linear.weight.abs().sum(), **settings)
    )
    assert own.history["train/sparsity_loss"].iloc[0] > 0


def test_a_group_lasso_shrinks_the_weights_more_than_none_does(tmp_path):
    plain = run_experiment(config(tmp_path / "a", model="resnet20", batch_size=256))
    terms = [COUPLED | {"lambda": 1000.0}]
    shrunk = run_experiment(config(tmp_path / "b", model="resnet20", batch_size=256, loss_terms=terms))
    assert weights(shrunk).norm() < 0.9 * weights(plain).norm()


def test_recalibration_changes_evaluation_not_training(tmp_path):
    settings = {"model": "resnet20", "batch_size": 128, "epochs": 2}
    plain = run_experiment(config(tmp_path / "a", **settings)).history
    again = run_experiment(config(tmp_path / "b", recalibrate_batchnorm=4, **settings)).history
    assert plain["train/ce_loss"].tolist() == again["train/ce_loss"].tolist()
    assert plain["eval/loss"].tolist() != again["eval/loss"].tolist()


def test_a_schedule_that_never_acts_is_said(tmp_path, caplog):
    settings = {"sparsity_fn": group_lasso_channels, "sparsity_schedule": linear_warmup(delay=50, ramp=5)}
    with caplog.at_level(logging.WARNING):
        run_experiment(config(tmp_path / "run", **settings))
    assert "group_lasso_channels never acts" in caplog.text


class TurnsNaN:
    """A loss that is finite until it was asked `calls` times."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, model: nn.Module) -> torch.Tensor:
        self.calls -= 1
        value = 0.0 * model.fc3.weight.sum()
        return value if self.calls >= 0 else value * float("nan")


def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_what_was_recorded(tmp_path):
    with pytest.raises(Diverged, match=r"epoch 2, batch 3: cross-entropy = [0-9.]+, .*TurnsNaN.* = nan"):
        run_experiment(config(tmp_path / "run", sparsity_fn=TurnsNaN(4 + 1 + 2)))  # 4 batches and 1 evaluation an epoch
    run = Run.open(tmp_path / "run")
    assert run.status == "diverged"
    assert "batch 3" in run.message
    assert run.history["epoch"].tolist() == [0]
    assert read_manifest(run.folder / "checkpoints")["last"].epoch == 0
    assert torch.isfinite(weights(run)).all()


def test_exploding_weights_are_found_at_the_latest_by_the_evaluation(tmp_path):
    with pytest.raises(Diverged):
        run_experiment(config(tmp_path / "run", lr=1e30, epochs=1, batch_size=512))
    assert Run.open(tmp_path / "run").status == "diverged"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "failed"), (RuntimeError, "failed")])
def test_whatever_ends_a_run_its_status_is_truthful(tmp_path, error, status):
    def breaks(model):
        raise error("in the middle")

    with pytest.raises(error):
        run_experiment(config(tmp_path / "run", sparsity_fn=breaks))
    run = Run.open(tmp_path / "run")
    assert (run.status, run.message) == (status, "in the middle")


def images(folder, broken: bool = False, empty: bool = False):
    for split in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for image in range(0 if empty and name == "dog" else 4):
                Image.new("RGB", (32, 32), (60 * image, 100 * k, 50)).save(folder / split / name / f"{image}.png")
    if broken:
        (folder / "train" / "cat" / "0.png").write_bytes(b"not a picture")
    return {"dataset": "imagefolder", "data_dir": str(folder)}


def test_a_class_per_folder_tree_trains(tmp_path):
    run = run_experiment(config(tmp_path / "run", epochs=1, batch_size=4, **images(tmp_path / "data")))
    assert run.load_model()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


class Silent(nn.Module):
    def forward(self, w):
        return w


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "cifar1O"}, "cifar10"),
        ({"model": "resnet2O"}, "resnet20"),
        ({"sparsity_fn": "group_laso"}, "group_lasso"),
        ({"loss_terms": [{"name": "group_lasso", "schedule": {"name": "warmup"}}]}, "linear_warmup"),
        ({"epoch": 3}, "epochs"),
        ({"epochs": "3"}, "epochs='3'"),
        ({"exclude_layers": ["fc9"]}, "'fc9' matches no conv or linear layer"),
        ({"exclude_layers": ["fc?"]}, "leaves no conv or linear layer"),
        ({"device": "cuda:7"}, "--device"),
        ({"dataset": "imagefolder", "data_dir": "nowhere"}, "nowhere"),
        ({"dataset": "imagefolder"}, "data_dir|data"),
        ("broken", r"0\.png"),
        ("empty", "dog"),
        ({"quantizer": {"name": "silent"}}, "get_bitwidth"),
        ({"dataset": "digits", "num_classes": 7}, "num_classes=7"),
    ],
)
def test_every_mistake_is_one_clear_error_and_nothing_is_written(tmp_path, monkeypatch, settings, message):
    monkeypatch.setitem(QUANTIZERS, "silent", Silent)
    if isinstance(settings, str):
        settings = images(tmp_path / "data", **{settings: True})
    with pytest.raises(CodeqError, match=message):
        run_experiment(config(tmp_path / "outputs" / "run", **settings))
    assert not (tmp_path / "outputs").exists()


def test_a_folder_that_holds_a_run_is_not_touched(run):
    before = (run.folder / "metrics.csv").read_bytes()
    with pytest.raises(CodeqError, match="already holds a run"):
        run_experiment(config(run.folder))
    assert (run.folder / "metrics.csv").read_bytes() == before


def test_the_console_shows_a_line_an_epoch(tmp_path, capsys):
    run_experiment(config(tmp_path / "run"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    for word in ("loss", "accuracy", "zero weights", "dead filters", "bits"):
        assert word in lines[0]


def test_files_are_plain_json_and_csv(run):
    json.loads((run.folder / "summary.json").read_text())
    assert json.loads((run.folder / "environment.json").read_text())["seed"] == 0
    assert len(pd.read_csv(run.folder / "metrics.csv")) == 2
