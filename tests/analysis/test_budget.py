import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from reference import absmax
from torch import nn

from codeq import Evaluator, ExperimentConfig, Run, attach_weight_quantizers, named_quantizers, run_experiment
from codeq.analysis import solve_budget
from codeq.analysis.layer_options import ZONES, LayerOptions, layer_options
from codeq.analysis.requantize import Requantizer
from codeq.analysis.subset import evaluation_subset
from codeq.common.errors import CodeqError
from codeq.quantizer.layers import latent_weight
from codeq.runs.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("without_figures")

SETTINGS = {"model": "mlp", "dataset": "synthetic", "batch_size": 64, "device": "cpu", "exclude_layers": ["fc3"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "small"
    kwargs = {"init_deadzone_logit": 1.0}
    return run_experiment(ExperimentConfig("s", run_dir=str(folder), epochs=3, quantizer_kwargs=kwargs, **SETTINGS))


def measured_by_hand(run: Run, zones, bits) -> tuple[float, float]:
    """Relative BOPs and accuracy of the checkpoint with logits set by the inverse of the paper's formulas."""
    model = run.load_model()
    for name, quantizer in named_quantizers(model):
        quantizer.logit_dz.data = torch.tensor(math.atanh(min(1 - zones[name], 0.9999999)))
        quantizer.logit_bit.data = torch.tensor(math.atanh((bits[name] - 2) / 6) if bits[name] < 8 else 10.0)
    result = Evaluator(model).evaluate(model, evaluation_subset(run.config, 1000))
    return 1 / result.unstructured_bops_ratio, result.test_accuracy


@pytest.mark.parametrize(
    "budget", [pytest.param(0.03, marks=pytest.mark.slow), pytest.param(0.1, marks=pytest.mark.exhaustive)]
)
def test_a_budget_is_kept_within_five_percent_and_no_worse_than_one_setting_for_all(run, budget):
    solution = solve_budget(run, budget)
    share, accuracy = measured_by_hand(run, solution.dead_zone, solution.bits)
    assert solution.relative_bops == pytest.approx(share, rel=1e-3)
    assert 0.95 * budget <= solution.relative_bops <= budget
    assert solution.accuracy == accuracy
    # The naive setting at the same cost, found here: for each bit-width the dead-zone that meets the budget.
    model, naive = run.load_model(), []
    weights = [latent_weight(layer).detach().numpy() for layer in (model.fc1, model.fc2)]
    dense = 3072 * 120 + 120 * 84 + 84 * 10
    for width in (2, 3, 4, 8):
        for zone in np.linspace(0, 1, 401):  # the first that keeps the budget; fc3 is float
            left = sum((abs(w) > zone * absmax(w)).sum() for w in weights)
            if (left * width / 32 + 840) / dense <= budget:
                break
        share, accuracy = measured_by_hand(run, *(dict.fromkeys(solution.bits, float(v)) for v in (zone, width)))
        naive += [accuracy] if 0.95 * budget <= share <= budget else []
    assert naive
    assert solution.accuracy >= max(naive) - 0.005  # another dead-zone in the last digits
    assert solution.accuracy >= solution.uniform_accuracy


def test_bits_alone_keep_the_trained_dead_zones(run):
    solution = solve_budget(run, 0.12, dead_zones=False)
    assert solution.dead_zone == {name: setting.dead_zone for name, setting in solution.trained.items()}
    assert solution.relative_bops <= 0.12
    assert solution.table["layer"].tolist() == ["fc1", "fc2"]
    assert solution.images == "test"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, r"relative_bops=0: must lie in"),
        (True, "relative_bops=True: must lie in"),
        (1.5, r"must lie in \(0, 1\]"),
        (1e-4, r"cannot be kept: .* % remain"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_named(run, budget, message):
    with pytest.raises(CodeqError, match=message):
        solve_budget(run, budget)


def test_the_scan_is_that_of_the_network_that_was_read_where_the_run_trains_on(run, tmp_path, monkeypatch):
    shutil.copytree(run.folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    expected, seen = latent_weight(run.load_model().fc1), []

    def train_on(*of):
        for _ in range(2):  # the second deletes the checkpoint that was read
            state, entry = load_checkpoint(run.folder / "checkpoints")
            state["model"]["fc1.parametrizations.weight.original"] *= 2
            save_checkpoint(run.folder / "checkpoints", state, epoch=3, step=entry.step + 1, accuracy=2.0)
        return layer_options(*of)

    def scan(model, *_):
        seen.append(latent_weight(model.fc1))
        raise CodeqError("seen")

    monkeypatch.setattr("codeq.analysis.budget.layer_options", train_on)
    monkeypatch.setattr("codeq.analysis.scan.scan_layers", scan)
    with pytest.raises(CodeqError, match="seen"):
        solve_budget(run, 0.1)
    assert torch.equal(seen[0], expected)


def test_trained_settings_with_fewer_bits_are_tried(run):
    solution = solve_budget(run, 0.1)
    bits_alone = solve_budget(run, 0.1, dead_zones=False)
    assert 0.095 <= bits_alone.relative_bops <= 0.1
    assert solution.accuracy >= bits_alone.accuracy  # a larger choice is never worse


def test_bits_are_lowered_evenly_and_never_raised_above_the_trained_ones():
    half = np.array([0.2, 0.4, 0.6, 0.8])  # of which a dead-zone of 0.5 leaves two
    options = LayerOptions(
        names=["a", "b", "c"], trained_zones=np.full(3, 0.5), trained_bits=np.array([5, 3, 2]),
        affine=np.zeros(3, dtype=bool), zones=[np.array([0.5])] * 3, max_bits=8, magnitudes=[half] * 3,
        bops_per_bit=np.array([20.0, 2.0, 200.0]), fixed=7.0,
    )  # fmt: skip

    def lowered(budget):
        return [bits.tolist() for _, bits in options.lowered(budget)]

    assert lowered(1000.0) == [[5, 3, 2]]  # costs 7 + (20 · 5 + 2 · 3 + 200 · 2) / 2 = 260
    assert lowered(260.0) == [[5, 3, 2]]
    assert lowered(259.9) == [[5, 2, 2]]  # 259: the larger layer keeps its bits first
    assert lowered(258.9) == [[4, 3, 2]]  # 250
    assert lowered(249.9) == [[4, 2, 2]]
    assert lowered(239.0) == [[3, 2, 2]]
    assert lowered(228.9) == []  # all have 2 bits: 229
    equal = {"trained_bits": np.array([5, 5, 5]), "bops_per_bit": np.full(3, 20.0), "fixed": 0.0}
    assert dataclasses.replace(options, **equal).lowered(120.0)[0][1].tolist() == [4, 4, 4]


@pytest.mark.parametrize("dead_zones", [True, False])
def test_costs_and_dead_zones_of_an_affine_grid_are_those_in_force(dead_zones):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 60), nn.ReLU(), nn.Linear(60, 20))
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 8, "init_deadzone_logit": 1.2, "grid": "affine"})
    what_if = Requantizer(net, (3, 4, 4))
    trained = what_if.evaluate().result
    options = layer_options(net, what_if.trained, trained, dead_zones)
    cost = trained.unstructured_stats.total_bops
    losses = {name: np.zeros((7, len(ZONES) if dead_zones else 1)) for name in options.names}
    wanted = [(np.full(2, zone), np.full(2, width)) for zone in (0.0, 0.1, 0.3, 0.6) for width in (2, 3, 5)]
    found = []
    for budget in (0.1 * cost, 0.4 * cost, 0.9 * cost):
        choices = [*options.uniform(budget), *options.lowered(budget)]
        choices += [options.cheapest(losses, budget)] if choices else []
        assert all(options.cost(*choice) <= budget for choice in choices)
        found += choices
    assert len(found) > 5
    for place, (zones, bits) in enumerate([*wanted, *found]):
        settings = (dict(zip(options.names, values.tolist(), strict=True)) for values in (zones, bits))
        measured = what_if.evaluate(*settings).result.unstructured_stats.total_bops
        assert options.cost(zones, bits) == pytest.approx(measured, rel=1e-6)
        if place >= len(wanted):
            in_force = [quantizer.get_dead_zone() for _, quantizer in named_quantizers(what_if.model)]
            assert zones.tolist() == pytest.approx(in_force, rel=1e-5)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_settings_that_use_a_budget_to_the_last_weight_keep_it(granularity):
    """Their dead-zones end at a weight, and float32 rounds the one in force to either side of it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 60), nn.ReLU(), nn.Linear(60, 20))
    kwargs = {"max_bits": 8, "init_deadzone_logit": 1.2, "granularity": granularity}
    attach_weight_quantizers(net, [], "deadzone", kwargs)
    with torch.no_grad():
        latent_weight(net[1])[::4] = 0  # which no dead-zone leaves
    what_if = Requantizer(net, (3, 4, 4))
    trained = what_if.evaluate().result
    options = layer_options(net, what_if.trained, trained, dead_zones=True)
    losses = {name: np.zeros((7, len(ZONES))) for name in options.names}
    one_weight = 2 * 32 / trained.unstructured_stats.total_bops  # of two bits
    for share in np.linspace(0.1, 0.6, 12):
        budget = share * trained.unstructured_stats.total_bops
        for zones, bits in (*options.uniform(budget), options.cheapest(losses, budget)):
            settings = (dict(zip(options.names, values.tolist(), strict=True)) for values in (zones, bits))
            bops = what_if.evaluate(*settings).result.unstructured_stats.total_bops
            assert bops <= budget
            assert bops == pytest.approx(options.cost(zones, bits), rel=4 * one_weight)
