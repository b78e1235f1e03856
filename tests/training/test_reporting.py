import json
import logging

import pandas as pd
import pytest
import torch
from torch import nn

from codeq import Evaluator, attach_weight_quantizers, constant
from codeq.models import CifarMLP
from codeq.quantizer.layers import latent_weight
from codeq.training.reporting import (
    epoch_metrics,
    run_summary,
    term_metrics,
    warn_of_collapsed_scales,
)
from codeq.training.terms import SparsityTerm


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    model = CifarMLP()
    attach_weight_quantizers(model, ["fc3"], "uniform", {"bitwidth": 4})
    loader = [(torch.randn(8, 3, 32, 32), torch.arange(8))]
    return Evaluator(model).evaluate(model, loader)


def term(name, value):
    return SparsityTerm(name, lambda _: torch.tensor(value), 1.0, constant())


LOSSES = {"cross-entropy": 1.5, "theta regularizer": 0.25}


def test_a_row_has_what_was_measured(result):
    row = epoch_metrics(3, 0.01, LOSSES, 0.75, result)
    assert (row["epoch"], row["lr"], row["train/ce_loss"], row["train/theta_loss"]) == (3, 0.01, 1.5, 0.25)
    assert (row["train/accuracy"], row["eval/accuracy"]) == (0.75, result.test_accuracy)
    assert [row[f"layers/{name}/bitwidth"] for name in ("fc1", "fc2", "fc3")] == [4, 4, 32]
    for layer in result.unstructured_stats.layers:
        assert row[f"layers/{layer.name}/unstructured_pruning"] == layer.pruning_ratio
    for layer in result.structured_stats.layers:
        assert row[f"layers/{layer.name}/structured_pruning"] == layer.pruning_ratio
    assert row["compression/unstructured_bops_ratio"] > row["compression/structured_bops_ratio"] > 1
    assert "train/distillation_loss" not in row
    assert epoch_metrics(0, 0.1, LOSSES | {"distillation": 2.0}, 0.5, result)["train/distillation_loss"] == 2.0


def test_terms_are_reported_one_by_one_and_together():
    row = term_metrics([term("a", 2.0), term("b", 3.0)], [0.5, 0.25], CifarMLP())
    assert row == {
        "train/sparsity_loss": 5.0,
        "train/sparsity_coeff": 0.75,
        "train/a": 2.0,
        "train/a_coeff": 0.5,
        "train/b": 3.0,
        "train/b_coeff": 0.25,
    }


def test_without_terms_their_sum_is_zero():
    assert term_metrics([], [], CifarMLP()) == {"train/sparsity_loss": 0, "train/sparsity_coeff": 0}


def test_the_summary_tells_last_and_first_best_epoch_apart(result):
    history = pd.DataFrame({"eval/accuracy": [0.5, 0.9, 0.9, 0.7]})
    baseline = Evaluator(CifarMLP()).comparison.baseline
    summary = run_summary(history, "x", result, baseline, 12.34)
    assert (summary["epochs"], summary["accuracy_last"], summary["accuracy_best"]) == (4, 0.7, 0.9)
    assert (summary["best_epoch"], summary["seconds"], summary["name"]) == (1, 12.3, "x")
    assert summary["best_chosen_by"] == "test"
    assert "test_accuracy_last" not in summary
    assert summary["baseline_macs"] == 3072 * 120 + 120 * 84 + 84 * 10
    assert summary["unstructured_macs"] == result.unstructured_stats.total_macs
    assert summary["structured_bops"] == result.structured_stats.total_bops


def test_the_summary_of_a_validation_split_has_the_test_accuracy_of_the_chosen_epoch(result):
    history = pd.DataFrame({"eval/accuracy": [0.5, 0.9, 0.7], "test/accuracy": [0.95, 0.6, 0.8]})
    summary = run_summary(history, "x", result, Evaluator(CifarMLP()).comparison.baseline, 1.0)
    assert (summary["best_chosen_by"], summary["best_epoch"], summary["accuracy_best"]) == ("validation", 1, 0.9)
    assert (summary["test_accuracy_at_best"], summary["test_accuracy_last"]) == (0.6, 0.8)


def test_a_network_of_which_nothing_is_left_has_a_summary_in_json():
    model = CifarMLP()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    evaluator = Evaluator(model)
    history = pd.DataFrame({"eval/accuracy": [0.1]})
    summary = run_summary(history, "x", evaluator.evaluate(model), evaluator.comparison.baseline, 1.0)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["structured_bops_ratio"] is None
    assert summary["structured_bops"] == 0


def test_collapsed_scales_are_reported_once(caplog):
    net = nn.Sequential(nn.Linear(200, 2))
    attach_weight_quantizers(net, [], "deadzone", {})
    with torch.no_grad():
        latent_weight(net[0])[:, 1:] = 0
    known: set[str] = set()
    with caplog.at_level(logging.WARNING):
        warn_of_collapsed_scales(net, known)
        warn_of_collapsed_scales(net, known)
    assert len(caplog.records) == 1
    assert known == {"0"}


class Idle(nn.Module):
    """A network with a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.fc, self.spare = nn.Linear(3072, 10), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_a_summary_holds_what_its_costs_leave_out(result):
    history = pd.DataFrame({"eval/accuracy": [0.1]})
    evaluator = Evaluator(Idle())
    idle = evaluator.evaluate(Idle())
    notes = ["layer 'spare' is never called: it counts no MACs"]
    assert list(idle.notes) == notes
    assert run_summary(history, "x", idle, evaluator.comparison.baseline, 1.0)["notes"] == notes
    assert run_summary(history, "x", result, evaluator.comparison.baseline, 1.0)["notes"] == []
