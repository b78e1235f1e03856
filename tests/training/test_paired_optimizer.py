"""One optimizer of the weights and another of θ: updates, rates, bad batches, resuming, and what is refused."""

import math
import os
import signal

import pytest
import torch
from cases import each
from torch import nn

from codeq import ExperimentConfig, Run, attach_weight_quantizers, named_quantizers, run_experiment
from codeq.common.errors import CodeqError
from codeq.optimizers import is_fused
from codeq.runs.checkpoints import load_checkpoint
from codeq.training.guard import FiniteGuard
from codeq.training.interruption import Preempted
from codeq.training.objective import LossParts
from codeq.training.paired_optimizer import PairedOptimizer, build_optimizers, restore_optimizer
from codeq.training.parameter_groups import parameter_groups

pytestmark = pytest.mark.usefixtures("without_figures")

GROUPS = {
    "base": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0},
    "dz": {"lr": 0.02, "weight_decay": 0.0},
    "bit": {"lr": 0.03, "weight_decay": 0.0},
}
OPTIMIZER = {"type": "sgd", "theta": {"type": "adamw"}, "param_groups": GROUPS}


def config(folder=None, **settings) -> ExperimentConfig:
    content = {"name": "pair", "dataset": "synthetic", "model": "mlp", "epochs": 2, "batch_size": 128, "device": "cpu"}
    content |= {"quantizer": {"name": "deadzone"}, "optimizer": OPTIMIZER, "run_dir": str(folder) if folder else None}
    return ExperimentConfig.from_dict(content | settings)


def small(optimizer=OPTIMIZER, **quantizer):
    model = nn.Sequential(nn.Linear(4, 2))
    attach_weight_quantizers(model, [], "deadzone", quantizer)
    settings = config(optimizer=optimizer).optimizer
    groups, _ = parameter_groups(settings.param_groups, "decoupled", model)
    return model, build_optimizers(settings, groups)


def logits(model):
    quantizer = dict(named_quantizers(model))["0"]
    return quantizer.logit_dz, quantizer.logit_bit


def test_two_steps_of_each_method():
    model, optimizer = small()
    assert isinstance(optimizer, PairedOptimizer)
    assert is_fused(optimizer)
    before = model[0].bias.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        assert model[0].bias.grad is None
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 5.0)
        optimizer.step()
    # Nesterov's steps with gradient 1 are 1.9 and 1 + 0.9 · 1.9 = 2.71; those of Adam are 1, whatever the gradient.
    torch.testing.assert_close(before - model[0].bias.detach(), torch.full((2,), 0.1 * 5 * (1.9 + 2.71)))
    assert [3 - logit.item() for logit in logits(model)] == pytest.approx([2 * 0.02, 2 * 0.03], rel=1e-4)


def test_a_batch_whose_loss_is_not_finite_changes_neither():
    model, optimizer = small()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    guard = FiniteGuard(sync_interval=50)
    guard.watch(optimizer, LossParts.of({"cross-entropy": torch.tensor(math.nan)}), 0, torch.tensor(0))
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.found_inf == 1


@pytest.mark.parametrize("frozen", [{}, {"learnable_bit": False}])
def test_schedules_of_rates_act_on_both(tmp_path, monkeypatch, frozen):
    seen = []
    step = PairedOptimizer.step
    monkeypatch.setattr(
        PairedOptimizer, "step", lambda pair: seen.append([g["lr"] for g in pair.param_groups]) or step(pair)
    )
    run_experiment(config(tmp_path / "run", quantizer={"name": "deadzone", "kwargs": frozen}, lr_schedule_unit="step"))
    factors = [(1 + math.cos(math.pi * position / 8)) / 2 for position in range(8)]
    rates = [0.1, 0.02] if frozen else [0.1, 0.02, 0.03]
    assert seen == [[pytest.approx(rate * factor) for rate in rates] for factor in factors]


def test_without_logits_to_train_there_is_one_optimizer():
    _, optimizer = small(learnable_bit=False, learnable_deadzone=False)
    assert isinstance(optimizer, torch.optim.SGD)
    model = nn.Sequential(nn.Linear(4, 2))
    attach_weight_quantizers(model, [], "deadzone", {})
    for parameter in (model[0].bias, model[0].parametrizations.weight.original):
        parameter.requires_grad_(False)
    settings = config().optimizer
    optimizer = build_optimizers(settings, parameter_groups(settings.param_groups, "l2", model)[0])
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, monkeypatch):
    recipe = {
        "theta_schedule": {"name": "linear_warmup", "kwargs": {"delay": 0, "ramp": 1}},
    }
    recipe |= {"freeze_last": {"bit": 1}, "augmentation": {"cutout": 8, "randaugment": 1}}
    run_experiment(config(tmp_path / "whole", **recipe))
    calls = iter(range(6))
    step = PairedOptimizer.step

    def interrupting(pair):
        step(pair)
        if next(calls, None) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(PairedOptimizer, "step", interrupting)
        with pytest.raises(Preempted):
            run_experiment(config(tmp_path / "run", **recipe))
    run_experiment(config(tmp_path / "run", **recipe), resume=tmp_path / "run")
    whole, resumed = (load_checkpoint(tmp_path / name / "checkpoints")[0] for name in ("whole", "run"))
    assert all(torch.equal(value, resumed["model"][key]) for key, value in whole["model"].items())
    for name in ("metrics.csv", "layers.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    for part, kept in (("weights", "momentum_buffer"), ("theta", "exp_avg")):
        states = [state["optimizer"][part]["state"] for state in (whole, resumed)]
        assert states[0]
        assert all(torch.equal(states[0][key][kept], states[1][key][kept]) for key in states[0])


def radams(device, pair):
    """An optimizer, or two, after a step."""
    optimizers = []
    for _ in range(2):
        weight = nn.Parameter(torch.ones(1, device=device))
        weight.grad = torch.ones_like(weight)
        optimizers.append(torch.optim.RAdam([weight], lr=0.5))
    optimizer = PairedOptimizer(*optimizers) if pair else optimizers[0]
    optimizer.step()
    return optimizer


def counters(optimizer):
    parts = optimizer.parts.values() if isinstance(optimizer, PairedOptimizer) else [optimizer]
    return [state["step"] for part in parts for state in part.state.values()]


@each("pair", [False, True])
def test_steps_are_counted_where_they_are_today(pair):
    optimizer, state = radams("cpu", pair), radams("cpu", pair).state_dict()
    for part in state.values() if pair else [state]:
        part["param_groups"][0]["capturable"] = True  # as replayed steps leave it
    restore_optimizer(optimizer, state)
    assert not any(group["capturable"] for group in optimizer.param_groups)
    optimizer.step()
    assert [step.item() for step in counters(optimizer)] == [2] * (1 + pair)
    optimizer, state = radams("meta", pair), radams("cpu", pair).state_dict()
    for group in optimizer.param_groups:
        group["capturable"] = True
    restore_optimizer(optimizer, state)
    assert all(group["capturable"] for group in optimizer.param_groups)
    assert {step.device.type for step in counters(optimizer)} == {"meta"}


@each(
    ("optimizer", "message"),
    [
        (
            {"theta": {"type": "adan"}},
            r"optimizer\.theta\.type='adan': optimizer 'adan' is unknown\. Did you mean 'adam'",
        ),
        ({"theta": {"kwargs": {"lr": 0.1}}}, "lr is a key of param_groups"),
        ({"theta": {"kwargs": {"betas": [2.0, 0.9]}}}, r"optimizer 'adamw' cannot be made: ValueError: .*[bB]eta"),
        ({"theta": {"lr": 0.1}}, r"optimizer\.theta\.lr=0\.1: unknown key"),
        ({"param_groups": {"dz": {"momentum": 0.9}}}, "dz.momentum=0.9: adamw has no momentum, sgd has"),
        ({"type": "adamw"}, "base.momentum=0.9: adamw has no momentum, sgd has"),
        (
            {"theta": {"type": "sgd", "kwargs": {"nesterov": True}}, "type": "sgd"},
            "optimizer 'sgd' cannot be made: .*requires a momentum",
        ),
    ],
)
def test_mistakes_in_the_second_optimizer_are_clear_errors(optimizer, message):
    content = {**OPTIMIZER, **optimizer}
    content["param_groups"] = {"base": GROUPS["base"], **optimizer.get("param_groups", {})}
    with pytest.raises(CodeqError, match=message):
        config(optimizer=content)


def test_a_momentum_of_theta_needs_sgd_for_theta_alone():
    groups = {"dz": {"momentum": 0.9}}
    assert config(optimizer={"type": "adamw", "theta": {"type": "sgd"}, "param_groups": groups})


# --- frozen at the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "regularizer"), [(OPTIMIZER, "l2"), ({"type": "adamw"}, "decoupled")])
def test_bits_stay_in_the_last_epochs_and_the_rest_trains(tmp_path, optimizer, regularizer):
    groups = {name: {"lr": 0.01, "weight_decay": 0.5} for name in ("base", "dz", "bit")}
    settings = {"epochs": 4, "theta_regularizer": regularizer, "freeze_last": {"bit": 2, "dz": 1}}
    settings |= {"lr_scheduler": "constant", "optimizer": {**optimizer, "param_groups": groups}}
    layers = run_experiment(config(tmp_path / "run", **settings)).layers
    bits, widths = (layers.pivot(index="epoch", columns="layer", values=key) for key in ("theta_bit", "theta_dz"))
    assert (bits.loc[2] == bits.loc[1]).all()
    assert (bits.loc[3] == bits.loc[1]).all()
    assert (bits.loc[1] != bits.loc[0]).all()
    assert (widths.loc[2] != widths.loc[1]).all()
    assert (widths.loc[3] == widths.loc[2]).all()
    assert Run.open(tmp_path / "run").history["train/ce_loss"].is_monotonic_decreasing


def test_more_frozen_epochs_than_there_are_is_an_error():
    with pytest.raises(CodeqError, match=r"freeze_last: bit=3: must be at most epochs=2"):
        config(freeze_last={"bit": 3})


def test_freezing_what_does_not_train_is_warned_of(tmp_path, caplog):
    run_experiment(config(tmp_path / "run", quantizer=None, epochs=1, freeze_last={"bit": 1}))
    assert "freeze_last.bit has no effect: the model trains no logits of this kind" in caplog.text
