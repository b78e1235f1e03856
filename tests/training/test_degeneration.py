import logging
from functools import partial

import pandas as pd
import pytest
import torch
from cases import each
from torch import nn

from codeq import MODELS, Evaluator, ExperimentConfig, Run, attach_weight_quantizers, run_experiment
from codeq.models import CifarMLP, resnet20
from codeq.quantizer.layers import latent_weight
from codeq.training.degeneration import Degenerate, chance_accuracy, find_signs, is_constant

pytestmark = pytest.mark.usefixtures("without_figures")

CHANCE = 0.109  # of ten classes in 10,000 images


def history(accuracy, train=0.1, loss=(2.3, 2.2, 2.1, 2.0, 1.9, 1.8)):
    rows = len(accuracy)
    return pd.DataFrame({"eval/accuracy": accuracy, "train/accuracy": [train] * rows, "train/ce_loss": loss[:rows]})


def layers(density=(0.5, 0.5, 0.5), macs=(9, 9, 9), bits=(8, 6, 32), quantized=(True, True, False)):
    table = {"layer": ["a", "b", "fc"], "density": density, "structured_macs": macs, "bits": bits}
    return pd.DataFrame(table | {"quantized": quantized})


def names(epochs, table, patience=3, learned_bits=True):
    return [sign.name for sign in find_signs(epochs, table, CHANCE, patience, learned_bits=learned_bits)]


def test_chance_is_the_share_of_the_most_frequent_class_and_three_standard_errors():
    labels = torch.tensor([0] * 64 + [1] * 36)
    assert chance_accuracy(labels) == pytest.approx(0.64 + 3 * 0.048)  # sqrt(0.64 · 0.36 / 100) = 0.048
    assert chance_accuracy(torch.arange(10_000) % 10) == pytest.approx(0.1 + 3 * 0.003)


@each(
    ("accuracy", "found"),
    [
        ([0.1, 0.1, 0.1], ["chance"]),
        ([0.9, 0.1, 0.109, 0.05], ["chance"]),
        ([0.1, 0.1], []),  # not yet
        ([0.1, 0.12, 0.1], []),
        ([0.1, 0.1, 0.1, 0.2], []),
    ],
)
def test_an_accuracy_at_chance_counts_after_some_epochs(accuracy, found):
    assert names(history(accuracy), layers()) == found


@each(
    ("loss", "found"),
    [
        ([2.300, 2.301, 2.302], ["stuck"]),
        ([2.300, 2.3015, 2.303], []),  # by 0.13 %
        ([2.300, 2.310, 2.300], []),
        ([2.3, 0.5, 0.5, 0.5], []),  # converged
        ([2.3, 1.9, 1.9, 1.9], []),  # at 83 % of the first
        ([2.3, 2.1, 2.1, 2.1], ["stuck"]),
        ([2.3, 2.3], []),
    ],
)
def test_a_loss_that_never_moved_is_stuck(loss, found):
    assert names(history([0.5] * len(loss), loss=loss), layers()) == found


def test_one_epoch_shows_no_movement_of_the_loss():
    assert names(history([0.5], loss=[2.3]), layers(), patience=1) == []
    assert names(history([0.5] * 2, loss=[2.3, 2.3]), layers(), patience=1) == ["stuck"]


@each(
    ("distilled", "found"),
    [([2.0, 1.0, 0.5], []), ([2.0, 2.0, 2.0], ["stuck"]), ([0.0, 0.0, 0.0], [])],
)
def test_a_loss_that_is_all_distillation_is_judged_by_it(distilled, found):
    epochs = history([0.5] * 3, loss=[0.0] * 3).assign(**{"train/distillation_loss": distilled})
    assert names(epochs, layers()) == found


def test_a_dead_layer_is_fatal_where_there_is_no_way_around_it():
    alive = history([0.5])
    assert names(alive, layers(density=(0.5, 0.0, 0.5))) == ["zero layers"]
    (sign,) = find_signs(alive, layers((0.5, 0.0, 0.5), macs=(9, 0, 0)), CHANCE, 3, learned_bits=True)
    assert (sign.name, sign.fatal) == ("disconnected", True)
    assert "all weights of b are zero" in sign.text


def test_bits_at_the_floor_count_where_they_are_learned():
    table = layers(bits=(2, 2, 32))
    (sign,) = find_signs(history([0.5]), table, CHANCE, 3, learned_bits=True)
    assert (sign.name, sign.fatal) == ("bits", False)
    assert names(history([0.5]), table, learned_bits=False) == []
    assert names(history([0.5]), layers(bits=(2, 3, 32))) == []
    assert names(history([0.5]), layers(bits=(32, 32, 32), quantized=(False,) * 3)) == []


@each(
    ("train", "table", "cause"),
    [
        (0.8, layers(), "training accuracy is 80.0%, so the running statistics of BatchNorm"),
        (0.25, layers(), "training accuracy is 25.0%"),
        (0.2, layers(), "the learning rate is too large or too small"),
        (0.1, layers(bits=(2, 2, 32)), "the bit-widths are too small"),
        (0.1, layers(), "the learning rate is too large or too small"),
        (0.8, layers((0.0, 0.5, 0.5), macs=(0, 0, 0)), "the network is disconnected"),
    ],
)
def test_the_likely_cause_of_an_accuracy_at_chance(train, table, cause):
    signs = find_signs(history([0.1] * 3, train=train), table, CHANCE, 3, learned_bits=True)
    assert cause in next(sign.text for sign in signs if sign.name == "chance")


# --- real networks and trainings --------------------------------------------------------------------------------------


@each(
    ("model", "layer", "found"),
    [
        (CifarMLP(), "fc2", ["disconnected"]),
        (CifarMLP(), "fc3", ["disconnected"]),
        (resnet20(), "layer1.0.conv1", ["zero layers"]),  # the residual connection passes it
        (resnet20(), "linear", ["disconnected"]),
    ],
)
def test_dead_layers_of_real_networks(model, layer, found):
    attach_weight_quantizers(model, [], "deadzone", {})
    with torch.no_grad():
        latent_weight(model.get_submodule(layer)).zero_()
    table = Evaluator(model).evaluate(model).layers
    assert names(history([0.5]), table) == found


class Parallel(nn.Module):
    """A model whose output is the sum of two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(192, 3), nn.Linear(192, 3)

    def forward(self, x):
        return self.first(x.flatten(1)) + self.second(x.flatten(1))


def test_a_dead_layer_beside_another_one_at_the_output_is_not_fatal():
    model = Parallel()
    for layer, found in ((model.second, "zero layers"), (model.first, "disconnected")):
        nn.init.zeros_(layer.weight)
        table = Evaluator(model, (3, 8, 8)).evaluate(model).layers
        constant = partial(is_constant, model, (3, 8, 8))
        signs = find_signs(history([0.5]), table, CHANCE, 3, learned_bits=True, constant=constant)
        assert [sign.name for sign in signs] == [found]


class Constant(nn.Module):
    """A model that learns nothing: its logits do not depend on the image."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(3072, num_classes)

    def forward(self, x):
        return 0.0 * self.fc(x.flatten(1))


def config(folder, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "constant", "epochs": 6, "batch_size": 512, "device": "cpu"}
    return ExperimentConfig("tiny", run_dir=str(folder), **(defaults | {"degenerate_patience": 2} | settings))


@pytest.fixture(autouse=True)
def constant_model(monkeypatch):
    monkeypatch.setitem(MODELS, "constant", Constant)


def test_a_warning_comes_once_and_the_training_continues(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = run_experiment(config(tmp_path / "run"))
    assert run.status == "done"
    assert len(run.history) == 6
    messages = [record.getMessage() for record in caplog.records]
    assert sum("not above chance" in message for message in messages) == 1
    assert sum("the loss has not moved in the last 2 epochs" in message for message in messages) == 1


def test_on_request_the_run_stops_as_degenerate_and_keeps_its_epochs(tmp_path):
    with pytest.raises(Degenerate, match=r"not above chance \(1\d\.\d%\) in the last 2 epochs"):
        run_experiment(config(tmp_path / "run", stop_degenerate=True))
    run = Run.open(tmp_path / "run")
    assert run.status == "degenerate"
    assert "not above chance" in run.message
    assert len(run.history) == 2
    assert run.load_model() is not None
    done = run_experiment(config(tmp_path / "run"), resume=run.folder)  # the request may be taken back
    assert (done.status, len(done.history)) == ("done", 6)


def test_a_training_that_learns_is_not_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run_experiment(config(tmp_path / "run", model="mlp", batch_size=64, stop_degenerate=True))
    assert not caplog.records
