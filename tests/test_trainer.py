import json
import logging
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import update_bn

from codeq import (
    LOSSES,
    Evaluator,
    ExperimentConfig,
    Run,
    group_lasso_blocks,
    group_lasso_channels,
    linear_warmup,
    run_experiment,
)
from codeq.common.errors import CodeqError
from codeq.data import load_dataset
from codeq.quantizer import QUANTIZERS
from codeq.quantizer.layers import latent_weight
from codeq.runs.checkpoints import read_manifest
from codeq.runs.tracking import Tracker
from codeq.training.guard import Diverged
from codeq.training.recording import Recorder

COUPLED = {"name": "coupled_group_lasso", "lambda": 1.0, "step": "proximal"}
DRAW = Recorder._draw


@pytest.fixture(autouse=True)
def only_the_shared_run_has_figures(monkeypatch):
    """They take a third of the time of a short training."""
    monkeypatch.setattr(Recorder, "_draw", lambda *_: None)


def config(folder, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "mlp", "epochs": 2, "batch_size": 128, "device": "cpu"}
    return ExperimentConfig(name="tiny", run_dir=str(folder), **(defaults | settings))


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.load_model().parameters()])


def test_a_training_computes_the_same_whatever_modes_the_caller_has_set(tmp_path):
    def trained(name):
        settings = {"epochs": 1, "model": "lenet5", "sparsity_fn": group_lasso_channels}
        run = run_experiment(config(tmp_path / name, **settings))
        return weights(run).tolist(), run.history["eval/loss"].tolist()

    expected = trained("plain")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert trained("autocast") == expected
    with torch.inference_mode():
        assert trained("inference") == expected


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = {"model": "resnet20", "img_size": 8, "exclude_layers": [], "viz_interval": 1}
    return run_experiment(config(folder, loss_terms=[COUPLED], **settings))


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
    assert run.summary["baseline_macs"] == 2_535_040


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


@pytest.mark.parametrize(
    "quantizer", ["deadzone", *(pytest.param(other, marks=pytest.mark.slow) for other in (None, "uniform"))]
)
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
    settings = {"model": "resnet20", "img_size": 8, "loss_terms": terms, "batch_size": 256}
    history = run_experiment(config(tmp_path / "run", **settings)).history
    assert history["train/group_lasso_channels_coeff"].tolist() == [0.001, 0.001]
    assert history["train/group_lasso_coeff"].tolist() == [0, 0.25]
    total = history["train/group_lasso_channels"] + history["train/group_lasso"]
    assert history["train/sparsity_loss"].tolist() == pytest.approx(total.tolist())


def test_callables_work_as_sparsity_fn(tmp_path):
    settings = {"batch_size": 256, "epochs": 1}
    run = run_experiment(config(tmp_path / "run", sparsity_fn=group_lasso_blocks(8), **settings))
    assert run.config.loss_terms[0].kwargs == {"block_size": 8}
    own = run_experiment(config(tmp_path / "own", sparsity_fn=lambda model: model.fc3.weight.abs().sum(), **settings))
    assert own.history["train/sparsity_loss"].iloc[0] > 0


@pytest.mark.slow
def test_a_group_lasso_shrinks_the_weights_more_than_none_does(tmp_path):
    plain = run_experiment(config(tmp_path / "a", model="resnet20", batch_size=256))
    terms = [COUPLED | {"lambda": 1000.0}]
    shrunk = run_experiment(config(tmp_path / "b", model="resnet20", batch_size=256, loss_terms=terms))
    assert weights(shrunk).norm() < 0.9 * weights(plain).norm()


@pytest.mark.slow
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
    assert "group_lasso_channels has no effect: its coefficient is 0 in all 2 epochs" in caplog.text


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
        run_experiment(
            config(tmp_path / "run", sparsity_fn=TurnsNaN(1 + 4 + 1 + 2))
        )  # a trial, then 4 batches and 1 evaluation
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


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "preempted"), (RuntimeError, "failed")])
def test_whatever_ends_a_run_its_status_is_truthful(tmp_path, error, status):
    trial = iter([True])

    def breaks(model):
        if next(trial, False):
            return model.fc1.weight.sum()
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


# --- what the log says, against plain loops ---------------------------------------------------------------------------

FROZEN = {"lr": 1e-30, "lr_dz": 1e-30, "lr_bit": 1e-30, "epochs": 1}


def test_the_training_figures_are_means_over_the_images_of_the_epoch(tmp_path):
    run = run_experiment(config(tmp_path / "run", batch_size=200, seed=5, **FROZEN))
    model, dataset, total, right = run.load_model(), load_dataset("synthetic"), 0.0, 0
    for x, y in dataset.train_batches(200, seed=5, epoch=0):  # 200, 200 and 112 images
        logits = model(x).detach().double()
        total += -logits.log_softmax(1)[torch.arange(len(y)), y].sum().item()
        right += int((logits.argmax(1) == y).sum())
    row = run.history.iloc[0]
    assert row["train/ce_loss"] == pytest.approx(total / 512, rel=1e-5)
    assert row["train/accuracy"] == right / 512
    assert row["train/theta_loss"] == pytest.approx(2 * 3 * 0.01 * 3.0**2)  # λ θ² of two logits in three layers


def test_under_decoupled_decay_nothing_of_the_logits_is_in_the_loss(tmp_path):
    run = run_experiment(config(tmp_path / "run", theta_regularizer="decoupled", batch_size=512, **FROZEN))
    assert run.history["train/theta_loss"].tolist() == [0.0]


def test_a_sparsity_loss_is_logged_without_its_coefficient(tmp_path):
    terms = [{"name": "group_lasso", "lambda": 3.0, "kwargs": {"lambda_linear": 1.0}}] * 2
    run = run_experiment(config(tmp_path / "run", loss_terms=terms, batch_size=512, **FROZEN))
    row, model = run.history.iloc[0], run.load_model()
    value = sum(model.get_submodule(name).weight.norm(dim=0).sum().item() for name in ("fc1", "fc2", "fc3"))
    assert row["train/group_lasso"] == pytest.approx(value, rel=1e-5)
    assert row["train/group_lasso_2"] == row["train/group_lasso"]
    assert row["train/sparsity_loss"] == pytest.approx(2 * value, rel=1e-5)
    assert (row["train/group_lasso_coeff"], row["train/sparsity_coeff"]) == (3.0, 6.0)


def test_a_float_baseline_logs_the_same_keys(run, tmp_path):
    settings = {"model": "resnet20", "img_size": 8, "epochs": 1, "batch_size": 256}
    baseline = run_experiment(config(tmp_path / "run", quantizer=None, **settings))
    own = {column for column in run.history.columns if "coupled_group_lasso" in column}
    assert set(run.history.columns) - own == set(baseline.history.columns)
    row = baseline.history.iloc[0]
    assert row["quantizer/mean_bits"] == 32
    assert (row["train/sparsity_loss"], row["train/sparsity_coeff"], row["train/theta_loss"]) == (0, 0, 0)
    assert row["compression/structured_bops_ratio"] == 1.0


# --- the loop ---------------------------------------------------------------------------------------------------------


class Proximal:
    """A loss whose proximal step only writes down when it came, and what the run said of itself then."""

    def __init__(self, folder) -> None:
        self.folder, self.amounts, self.weights, self.statuses = folder, [], [], []

    def __call__(self, model: nn.Module) -> torch.Tensor:
        return 0.0 * model.fc3.weight.sum()

    def proximal_step(self, model: nn.Module, amount: float) -> None:
        if amount == 0:  # the trial before the training
            return
        self.amounts.append(amount)
        self.weights.append(latent_weight(model.fc3).detach().clone())
        self.statuses.append(Run.open(self.folder).status)


@pytest.fixture
def proximal(tmp_path, monkeypatch) -> Proximal:
    spy = Proximal(tmp_path / "run")
    monkeypatch.setitem(LOSSES, "spy", type("Spy", (), {"__new__": lambda _: spy, "proximal_step": None}))
    return spy


def test_a_proximal_step_follows_each_step_of_the_optimizer_with_the_rate_of_the_weights(tmp_path, proximal):
    ramp = {"name": "linear_warmup", "kwargs": {"delay": 0, "ramp": 4}}
    term = {"name": "spy", "lambda": 2.0, "step": "proximal", "schedule": ramp}
    settings = {"lr": 1e-2, "lr_dz": 5.0, "lr_bit": 7.0, "epochs": 3, "batch_size": 256}
    run = run_experiment(config(tmp_path / "run", loss_terms=[term], **settings))
    rates = run.history["lr"]
    assert rates.tolist() == pytest.approx([1e-2 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)])
    assert proximal.amounts == pytest.approx([rates[1] * 2 * 0.25] * 2 + [rates[2] * 2 * 0.5] * 2)  # none in epoch 1
    assert torch.equal(proximal.weights[-1], latent_weight(run.load_model().fc3))  # nothing moves after the last one
    assert not torch.equal(proximal.weights[-1], proximal.weights[-2])
    assert set(proximal.statuses) == {"running"}


def test_layers_whose_scale_collapses_are_named_once(tmp_path, proximal, monkeypatch, caplog):
    def wipe(model: nn.Module, amount: float) -> None:
        latent_weight(model.fc1).data[:, 10:] = 0

    monkeypatch.setattr(proximal, "proximal_step", wipe)
    with caplog.at_level(logging.WARNING):
        run_experiment(config(tmp_path / "run", loss_terms=[{"name": "spy", "step": "proximal"}], batch_size=512))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("the scale R of fc1 is less than half")
    assert "absmax_over='nonzero'" in message


def test_pictures_are_drawn_in_the_interval_and_at_the_end(tmp_path, monkeypatch):
    drawn = []
    real = Tracker.log_figure

    def log_figure(self, name, figure, epoch=None):
        drawn.append((len(Run.open(self.folder).history), name))
        return real(self, name, figure)

    monkeypatch.setattr(Recorder, "_draw", DRAW)
    monkeypatch.setattr(Tracker, "log_figure", log_figure)
    run_experiment(config(tmp_path / "run", epochs=5, viz_interval=2, batch_size=512))
    names = ("channel_liveness", "sparsity_bars")
    assert drawn == [(epochs, name) for epochs in (2, 4, 5) for name in names]


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    here = run_experiment(config(tmp_path / "here", seed=2))
    code = (
        "from codeq import ExperimentConfig, run_experiment; run_experiment(ExperimentConfig('tiny', run_dir='there', "
        "dataset='synthetic', model='mlp', epochs=2, batch_size=128, device='cpu', seed=2))"
    )
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env={**os.environ, **threads})
    for name in ("metrics.csv", "layers.csv"):
        assert (here.folder / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert torch.equal(weights(here), weights(Run.open("there")))


@pytest.mark.slow
def test_the_last_epochs_checkpoint_holds_what_was_evaluated_with_recalibrated_statistics(tmp_path):
    settings = {"model": "resnet20", "recalibrate_batchnorm": 2, "batch_size": 256, "epochs": 1}
    run = run_experiment(config(tmp_path / "run", **settings))
    dataset = load_dataset("synthetic")
    result = Evaluator(run.load_model()).evaluate(run.load_model(), dataset.test_batches())
    assert result.test_loss == pytest.approx(run.history["eval/loss"].iloc[0], rel=1e-5)
    model = run.load_model().train()
    update_bn(dataset.train_batches(256, seed=0, epoch=0), model)
    torch.testing.assert_close(model.bn1.running_mean, run.load_model().bn1.running_mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_other_optimizers_train_too(tmp_path, kind):
    groups = {"base": {"lr": 0.02, "momentum": 0.9} if kind == "sgd" else {"lr": 1e-3}}
    content = {"model": "mlp", "dataset": "synthetic", "epochs": 2, "batch_size": 64, "device": "cpu", "run_dir": "run"}
    content |= {"quantizer": {"name": "deadzone"}, "optimizer": {"type": kind, "param_groups": groups}}
    run = run_experiment(ExperimentConfig.from_dict(content))
    assert run.history["eval/accuracy"].iloc[-1] > 0.9
    assert run.config.theta_regularizer == "decoupled"


def test_determinism_asked_for_one_run_ends_with_it(tmp_path):
    asked = []

    def loss(model: nn.Module) -> torch.Tensor:
        asked.append(torch.are_deterministic_algorithms_enabled())
        return 0.0 * model.fc3.weight.sum()

    run_experiment(config(tmp_path / "run", deterministic=True, sparsity_fn=loss, batch_size=512, epochs=1))
    assert len(asked) > 1
    assert all(asked[1:]), "the first call is a trial before the training"
    assert not torch.are_deterministic_algorithms_enabled()


# --- ends that are not good -------------------------------------------------------------------------------------------


def test_an_exploding_step_is_named_by_the_next_batch(tmp_path):
    with pytest.raises(Diverged, match=r"not finite in epoch 1, batch 2: cross-entropy = (nan|inf), theta reg"):
        run_experiment(config(tmp_path / "run", lr=1e30))
    run = Run.open(tmp_path / "run")
    assert (run.status, len(run.history)) == ("diverged", 0)
    with pytest.raises(CodeqError, match=r"diverged.*cross-entropy"):
        run.summary  # noqa: B018


def test_gradients_that_are_not_finite_stop_the_run_too(tmp_path):
    def loss(model: nn.Module) -> torch.Tensor:
        return (model.fc3.weight * 0).sum().sqrt()  # 0, with a gradient of NaN

    with pytest.raises(Diverged):
        run_experiment(config(tmp_path / "run", sparsity_fn=loss, batch_size=512))
    assert Run.open(tmp_path / "run").status == "diverged"


def test_a_run_that_fails_late_keeps_its_epochs_and_its_model(tmp_path):
    left = iter(range(1 + 4 + 1 + 2))

    def loss(model: nn.Module) -> torch.Tensor:
        if next(left, None) is None:
            raise OSError("the disk is full")
        return 0.0 * model.fc3.weight.sum()

    with pytest.raises(OSError, match="the disk is full"):
        run_experiment(config(tmp_path / "run", sparsity_fn=loss))
    run = Run.open(tmp_path / "run")
    assert (run.status, run.message) == ("failed", "the disk is full")
    assert run.history["epoch"].tolist() == [0]
    assert len(run.layers) == 3
    assert run.load_model()(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_a_loss_that_finds_no_layer_is_not_silent(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run_experiment(config(tmp_path / "run", sparsity_fn=group_lasso_channels, epochs=1, batch_size=512))
    assert "group_lasso_channels" in caplog.text


@pytest.mark.parametrize("loss", [lambda model: model.fc3.weight.abs(), lambda _: 0.5])
def test_a_loss_that_is_no_scalar_is_a_clear_error_before_anything_is_written(tmp_path, loss):
    with pytest.raises(CodeqError):
        run_experiment(config(tmp_path / "outputs" / "run", sparsity_fn=loss, epochs=1))
    assert not (tmp_path / "outputs").exists()


def test_images_of_a_size_that_the_model_cannot_take_are_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(CodeqError, match=r"CifarMLP cannot be traced with an input of \(3, 16, 16\)"):
        run_experiment(config(tmp_path / "outputs" / "run", img_size=16))
    assert not (tmp_path / "outputs").exists()


def test_a_model_that_cannot_be_traced_prints_no_traceback(tmp_path, capfd):
    with pytest.raises(CodeqError):
        run_experiment(config(tmp_path / "run", img_size=16))
    assert "Traceback" not in capfd.readouterr().err
