"""Learning rates per step, the schedule of the regularizer on θ, and the moving average, as a training applies them."""

import math

import pytest
import torch
from torch import nn

from codeq import OPTIMIZERS, ExperimentConfig, Run, linear_warmup, run_experiment
from codeq.models import build_model
from codeq.runs.checkpoints import load_checkpoint
from codeq.training.building import build_training
from codeq.training.distributed import Ranks
from codeq.training.rates import LearningRates, ThetaDecay

pytestmark = pytest.mark.usefixtures("without_figures")

BATCHES = 4  # of an epoch: 512 images


def config(folder=None, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "mlp", "epochs": 2, "batch_size": 128, "device": "cpu"}
    return ExperimentConfig("tiny", run_dir=str(folder) if folder else None, **(defaults | settings))


@pytest.fixture
def steps(monkeypatch):
    """Record the settings of the groups and the weights after each step of AdamW."""
    seen = []
    step = torch.optim.AdamW.step

    def recording(optimizer, *args, **kwargs):
        done = step(optimizer, *args, **kwargs)
        groups = optimizer.param_groups
        if groups[0]["params"][0].numel() > 1:  # otherwise the trial before the training
            copies = [p.detach().clone() for group in groups for p in group["params"]]
            seen.append(([group["lr"] for group in groups], [group["weight_decay"] for group in groups], copies))
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    return seen


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_the_optimizer_gets_the_rate_of_each_step(tmp_path, steps, unit):
    run = run_experiment(config(tmp_path / "run", lr=0.01, lr_dz=0.002, lr_schedule_unit=unit))
    total = 2 * BATCHES if unit == "step" else 2
    every = range(2 * BATCHES) if unit == "step" else [step // BATCHES for step in range(2 * BATCHES)]
    factors = [(1 + math.cos(math.pi * position / total)) / 2 for position in every]
    assert [rates[0] for rates, *_ in steps] == pytest.approx([0.01 * factor for factor in factors])
    assert [rates[1] for rates, *_ in steps] == pytest.approx([0.002 * factor for factor in factors])
    assert run.history["lr"].tolist() == pytest.approx([0.01, 0.005])  # at the first step of the epoch


def test_a_proximal_step_uses_the_rate_of_its_step(tmp_path, monkeypatch):
    from codeq.sparsity.coupled import CoupledGroupLasso

    amounts = []
    monkeypatch.setattr(CoupledGroupLasso, "proximal_step", lambda _, __, amount: amounts.append(amount))
    term = {"name": "coupled_group_lasso", "lambda": 3.0, "step": "proximal"}
    run_experiment(config(tmp_path / "run", lr=0.01, lr_schedule_unit="step", loss_terms=[term]))
    expected = [3 * 0.01 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert amounts == pytest.approx([0.0, *expected])  # the first one is a trial before the training


RAMP = {"name": "linear_warmup", "kwargs": {"delay": 0, "ramp": 2}}  # 0, 1/2, 1


def test_the_decay_of_theta_in_the_optimizer_follows_its_schedule(tmp_path, steps):
    settings = {"theta_regularizer": "decoupled", "weight_decay_dz": 0.2, "weight_decay_bit": 0.4, "weight_decay": 0.1}
    run = run_experiment(config(tmp_path / "run", epochs=3, theta_schedule=RAMP, **settings))
    for epoch, factor in enumerate((0.0, 0.5, 1.0)):
        for _, decays, _ in steps[epoch * BATCHES : (epoch + 1) * BATCHES]:
            assert decays == pytest.approx([0.1, 0.2 * factor, 0.4 * factor])
    assert run.history["train/theta_coeff"].tolist() == [0.0, 0.5, 1.0]


def test_the_decay_of_theta_in_the_loss_follows_its_schedule(tmp_path):
    frozen = {"lr_dz": 1e-9, "lr_bit": 1e-9, "weight_decay_dz": 0.02, "weight_decay_bit": 0.01}
    run = run_experiment(config(tmp_path / "run", epochs=3, theta_regularizer="l2", theta_schedule=RAMP, **frozen))
    whole = 3 * 3.0**2 * (0.02 + 0.01)  # three layers, both logits are 3
    assert run.history["train/theta_loss"].tolist() == pytest.approx([0.0, whole / 2, whole], rel=1e-5)


def test_a_schedule_of_the_user_may_return_tensors(tmp_path):
    run = run_experiment(config(tmp_path / "run", theta_schedule=lambda epoch, _: torch.tensor(epoch / 4)))
    assert run.history["train/theta_coeff"].tolist() == [0.0, 0.25]


def test_without_a_schedule_nothing_of_it_is_logged(tmp_path):
    assert "train/theta_coeff" not in run_experiment(config(tmp_path / "run", epochs=1)).history


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": None}, "no parameter of a quantizer has a weight decay above 0"),
        ({"weight_decay_dz": 0.0, "weight_decay_bit": 0.0}, "no parameter of a quantizer has a weight decay above 0"),
        ({"theta_schedule": linear_warmup(delay=5, ramp=1)}, "theta_schedule is 0 in all 2 epochs"),
    ],
)
@pytest.mark.parametrize("regularizer", ["l2", "decoupled"])
def test_a_schedule_without_effect_is_named(caplog, settings, message, regularizer):
    settings = {"theta_schedule": RAMP, "theta_regularizer": regularizer} | settings
    build_training(config(**settings), Ranks(), "float32", initialize=False)
    assert message in caplog.text


def test_a_schedule_with_effect_warns_of_nothing(caplog):
    training = build_training(config(theta_schedule=RAMP), Ranks(), "float32", initialize=False)
    assert isinstance(training.theta_decay, ThetaDecay)
    assert not caplog.text


# --- moving average ---------------------------------------------------------------------------------------------------


def state_vector(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_average_is_evaluated_and_saved_and_follows_its_recurrence(tmp_path, steps):
    run = run_experiment(config(tmp_path / "run", lr=0.01, ema=0.75))
    _, _, copies = steps[0]
    expected = [copy.double() for copy in copies]
    for _, _, copies in steps[1:]:
        expected = [0.75 * mean + 0.25 * copy.double() for mean, copy in zip(expected, copies, strict=True)]
    state, _ = load_checkpoint(run.folder / "checkpoints")
    trained = build_model("mlp", 10, {}, quantizer=run.config.quantizer)
    trained.load_state_dict(state["trained_model"])
    # The optimizer holds the parameters by group, the model by name: compared as sorted values.
    last = torch.cat([copy.flatten() for copy in copies]).sort().values
    torch.testing.assert_close(state_vector(trained).sort().values, last, rtol=0, atol=0)
    mean = torch.cat([value.flatten() for value in expected]).sort().values
    torch.testing.assert_close(state_vector(run.load_model()).double().sort().values, mean, rtol=1e-5, atol=1e-7)
    assert state["averaged_steps"] == 2 * BATCHES


@pytest.mark.slow
def test_the_logged_accuracy_is_that_of_the_average(tmp_path):
    from codeq import Evaluator
    from codeq.data import load_dataset

    run = run_experiment(config(tmp_path / "run", model="resnet20", ema=0.5, epochs=1))
    model = run.load_model()
    result = Evaluator(model).evaluate(model, load_dataset("synthetic").test_batches())
    assert result.test_accuracy == run.history["eval/accuracy"].iloc[-1] == run.summary["accuracy_last"]
    assert result.test_loss == pytest.approx(run.history["eval/loss"].iloc[-1])
    state, _ = load_checkpoint(run.folder / "checkpoints")
    assert not torch.equal(state["model"]["bn1.running_mean"], state["trained_model"]["bn1.running_mean"])
    assert run.layers.query("layer == 'layer1.0.conv1'")["theta_dz"].iloc[-1] == pytest.approx(
        state["model"]["layer1.0.conv1.parametrizations.weight.0.quantizer.logit_dz"].item()
    )


def test_without_an_average_the_trained_model_is_saved(tmp_path):
    run = run_experiment(config(tmp_path / "run", epochs=1))
    state, _ = load_checkpoint(run.folder / "checkpoints")
    assert not {"trained_model", "averaged_steps"} & state.keys()
    assert Run.open(run.folder).load_model() is not None


@pytest.mark.parametrize("optimizer", [torch.optim.ASGD, torch.optim.Rprop, torch.optim.SGD])
def test_no_optimizer_moves_what_is_frozen(optimizer):
    weight, logit = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(()))
    stepping = optimizer([{"params": [weight]}, {"params": [logit]}], lr=0.1)
    rates = LearningRates(stepping, 0.1, lambda *_: 1.0, frozen={1: 1})
    found = []
    for epoch in range(3):
        weight.grad, logit.grad = torch.ones(2), torch.ones(())
        rates.apply(epoch, 0)
        rates.drop_gradients(epoch)
        stepping.step()
        found.append((weight[0].item(), logit.item()))
    weights, logits = zip(*found, strict=True)
    assert len(set(weights)) == 3
    assert logits[0] != 1.0
    assert len(set(logits)) == 1


def test_a_training_with_such_an_optimizer_freezes_too(tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "asgd", torch.optim.ASGD)
    groups = {"base": {"lr": 0.01}, "dz": {"lr": 0.1}, "bit": {"lr": 0.1}}
    settings = {"optimizer": {"type": "asgd", "param_groups": groups}, "freeze_last": {"dz": 2}}
    run = run_experiment(config(tmp_path / "run", epochs=3, **settings))
    theta = run.layers.pivot(index="epoch", columns="layer", values="theta_dz")
    assert (theta.iloc[0] == theta.iloc[1]).all()
    assert (theta.iloc[1] == theta.iloc[2]).all()


def test_what_is_frozen_is_frozen_in_the_average_too(tmp_path):
    frozen = {"dz": 2, "bit": 2}
    settings = {"lr_dz": 0.1, "lr_bit": 0.1, "weight_decay_dz": 0.3, "weight_decay_bit": 0.3, "freeze_last": frozen}
    run = run_experiment(config(tmp_path / "run", ema=0.9, epochs=4, lr_schedule_unit="step", **settings))
    theta = run.layers.pivot(index="epoch", columns="layer", values=["theta_dz", "theta_bit"])
    assert (theta.iloc[2] == theta.iloc[3]).all()
    assert (theta.iloc[1] != theta.iloc[2]).all()
    state, _ = load_checkpoint(run.folder / "checkpoints")
    logits = [name for name in state["model"] if "logit" in name]
    assert logits
    assert all(torch.equal(state["model"][name], state["trained_model"][name]) for name in logits)
