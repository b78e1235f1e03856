"""Trainings that are steered to a cost target: λ in force, log, resumption, refusals."""

import json
import os
import signal

import pytest
import torch
from cases import each, few

from codeq import Evaluator, ExperimentConfig, Run, attach_weight_quantizers, compact, run_experiment
from codeq.common.errors import CodeqError
from codeq.metrics import QuantizationComparison, storage_bytes
from codeq.metrics.budget import cost_figure, smallest_figure
from codeq.quantizer.layers import latent_weight
from codeq.training.building import build_training
from codeq.training.distributed import Ranks
from codeq.training.interruption import Preempted
from codeq.training.reach import lowest_logits
from codeq.training.step import DirectSteps

SIZE = 16 * 3072 + 10 * 16  # weights of the network


class Narrow(torch.nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(3072, 16)
        self.fc2 = torch.nn.Linear(16, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.fixture(autouse=True)
def narrow_model(monkeypatch):
    from codeq import MODELS

    monkeypatch.setitem(MODELS, "narrow", Narrow)


def config(folder=None, target=None, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "narrow", "epochs": 3, "batch_size": 64, "device": "cpu"}
    defaults |= {"lr_dz": 0.1, "lr_bit": 0.1, "target": target or {"relative_bops": 0.1}}
    return ExperimentConfig("tiny", run_dir=str(folder) if folder else None, **(defaults | settings))


def build(**settings):
    return build_training(config(**settings), Ranks(), "float32", initialize=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from codeq import MODELS

    MODELS["narrow"] = Narrow
    done = run_experiment(config(tmp_path_factory.mktemp("steered") / "run"))
    del MODELS["narrow"]
    return done


def test_every_update_is_logged_and_the_epochs_as_well(run):
    updates, history = run.steering, run.history
    assert len(updates) == 3 * 8
    assert updates[["epoch", "batch"]].values.tolist() == [[e, b] for e in range(3) for b in range(8)]
    assert history["target/factor"].iloc[-1] == updates["factor"].iloc[-1]
    assert history["target/plan"].iloc[-1] == 0.1
    relative = 1 / history["compression/unstructured_bops_ratio"]
    assert history["target/figure"].tolist() == pytest.approx(relative.tolist())
    assert relative.iloc[-1] < relative.iloc[0]


def test_the_summary_holds_the_figure_reached_and_its_deviation(run):
    summary = json.loads((run.folder / "summary.json").read_text())
    reached = summary["unstructured_bops"] / summary["baseline_bops"]
    assert (summary["target"], summary["target_value"]) == ("relative_bops", 0.1)
    assert summary["target_reached"] == pytest.approx(reached)
    assert summary["target_deviation"] == pytest.approx(reached / 0.1 - 1)
    assert (run.folder / "plots" / "target_course.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("epochs", "dz", "bit", "interval"),
    [(1000, 1e-3, 3e-3, 20), (1000, 6e-3, 1e-3, 10), (1000, 1e-4, 1e-4, 40), (1000, 0.1, 0.1, 10), (3, 0.1, 0.1, 1)],
)
def test_the_faster_the_logits_the_denser_the_updates(epochs, dz, bit, interval):
    steering = build(epochs=epochs, lr_dz=dz, lr_bit=bit, theta_regularizer="l2").steering
    due = [8 * epoch + batch for epoch in range(20) for batch in range(8) if steering.is_due(epoch, batch)]
    assert due == list(range(0, 160, interval))


def test_decoupled_weight_decay_moves_logits_too():
    settings = {"epochs": 1000, "lr_dz": 1e-3, "lr_bit": 1e-4, "weight_decay_dz": 1.0, "theta_regularizer": "decoupled"}
    steering = build(**settings).steering
    assert [batch for batch in range(40) if steering.is_due(0, batch)] == [0, 15, 30]


@pytest.mark.parametrize("regularizer", ["l2", "decoupled"])
def test_the_factor_multiplies_the_lambdas_that_lower_the_figure(regularizer):
    settings = {"theta_regularizer": regularizer, "weight_decay_dz": 0.2, "weight_decay_bit": 0.4}

    def in_force(training) -> list[float]:
        groups = [group["weight_decay"] for group in training.optimizer.param_groups[-2:]]
        return [factor for _, factor in training.objective.theta] if regularizer == "l2" else groups

    for target, levers in (({"relative_bops": 0.1}, (1, 1)), ({"bytes": 0.1}, (0, 1)), ({"mean_bits": 4.0}, (0, 1))):
        training = build(target=target, **settings)
        training.steering.load_state_dict(training.steering.state_dict() | {"factor": 3.0})
        expected = [0.2 * 3 ** levers[0], 0.4 * 3 ** levers[1]]
        assert in_force(training) == pytest.approx(expected), target
    term = {"name": "group_lasso_channels", "lambda": 0.5, "schedule": {"name": "constant", "kwargs": {"value": 0.1}}}
    training = build(target={"structured_macs": 0.5}, loss_terms=[term], **settings)
    training.steering.load_state_dict(training.steering.state_dict() | {"factor": 3.0})
    assert in_force(training) == pytest.approx([0.6, 0.4])
    assert training.coefficients(0, 3) == pytest.approx([0.15])
    # Under BOPs, terms are weakened, but not made stronger than configured; other figures do not steer them.
    for target, coefficients in (({"relative_bops": 0.1}, (0.05, 0.005)), ({"mean_bits": 4.0}, (0.05, 0.05))):
        training = build(target=target, loss_terms=[term], **settings)
        for factor, coefficient in zip((3.0, 0.1), coefficients, strict=True):
            training.steering.load_state_dict(training.steering.state_dict() | {"factor": factor})
            assert training.coefficients(0, 3) == pytest.approx([coefficient])


def test_the_figures_are_those_of_the_evaluation():
    training = build()
    with torch.no_grad():
        for parameter in (training.model.fc1, training.model.fc2):
            parameter.parametrizations.weight[0].quantizer.logit_dz.fill_(0.8)
            parameter.parametrizations.weight[0].quantizer.logit_bit.fill_(0.6)
        training.model.fc1.parametrizations.weight.original[:4] = 0
    result = Evaluator(training.model).evaluate(training.model)
    expected = {
        "relative_bops": 1 / result.unstructured_bops_ratio,
        "structured_macs": (12 * 3072 + 10 * 12) / SIZE,
        "bytes": storage_bytes(training.model).packed / (4 * SIZE),
        "mean_bits": result.mean_bits,
    }
    for name, value in expected.items():
        steered = build(target={name: 4.0 if name == "mean_bits" else 0.1}).steering
        steered._model = training.model
        assert steered.measure() == pytest.approx(value), name
    assert expected["bytes"] == pytest.approx(result.mean_bits / 32)


def test_a_target_out_of_reach_of_the_logits_is_warned_of_before_the_training(caplog):
    slow = {"lr_dz": 0.003, "lr_bit": 0.003}
    ways = [{}, {"epochs": 80, "lr_dz": 0.01}, {"optimizer": {"type": "sgd"}}]
    ways.append({"theta_regularizer": "decoupled", "weight_decay_dz": 0.5, "weight_decay_bit": 0.5})
    ways.append({"loss_terms": [{"name": "group_lasso_channels", "lambda": 0.1}]})
    for settings, warned in zip(ways, [True, False, False, False, False], strict=True):
        caplog.clear()
        training = build(**({} if "optimizer" in settings else slow) | settings)
        assert ("out of reach: in 24 steps" in caplog.text) == warned, settings
        quantizer = training.model.fc1.parametrizations.weight[0].quantizer
        assert quantizer.logit_dz.item() == quantizer.logit_bit.item() == 3.0
    assert lowest_logits(config(optimizer={"type": "adamw", "theta": {"type": "sgd"}}), 8) is None
    # 24 steps along half a cosine over three epochs: rates of 0.003 times 8 · (1 + 0.75 + 0.25)
    assert lowest_logits(config(**slow), 8) == {"dz": (1.0, pytest.approx(0.048)), "bit": (1.0, pytest.approx(0.048))}


@pytest.mark.slow
@pytest.mark.parametrize("batch", few([13, 4]))
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, monkeypatch, run, batch):
    step, left = torch.optim.AdamW.step, iter(range(batch))

    def counting(optimizer, *args, **kwargs):
        done = step(optimizer, *args, **kwargs)
        trial = optimizer.param_groups[0]["params"][0].numel() == 1  # the check before the training
        if not trial and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", counting)
        with pytest.raises(Preempted):
            run_experiment(config(tmp_path / "run"))
    resumed = run_experiment(config(tmp_path / "run"), resume=tmp_path / "run")
    for name in ("metrics.csv", "layers.csv", "steering.csv"):
        assert (resumed.folder / name).read_bytes() == (run.folder / name).read_bytes(), name
    weights, expected = (Run.open(folder).load_model().state_dict() for folder in (resumed.folder, run.folder))
    for key, value in weights.items():
        assert torch.equal(value, expected[key]), key


class ReplayLike(DirectSteps):
    """Holds steps to what replays of a CUDA graph rely on: what Python computes changes with `use_settings` alone."""

    def __init__(self, seen):
        self.seen = seen

    def use_settings(self, optimizer):
        self.optimizer, self.recorded = optimizer, None

    def run(self, step, x, y):
        training, _, coefficients, _ = step.args
        groups = [(group["lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        settings = (groups, [factor for _, factor in training.objective.theta], list(coefficients))
        if self.recorded is None:
            self.recorded = settings
            self.seen.append(groups[-1][1] or settings[1][-1])
        assert settings == self.recorded
        super().run(step, x, y)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("regularizer", ["l2", "decoupled"])
def test_recorded_steps_are_renewed_with_lambda(tmp_path, monkeypatch, regularizer):
    in_force = []
    monkeypatch.setattr("codeq.training.building.DirectSteps", lambda: ReplayLike(in_force))
    term = {"name": "group_lasso", "lambda": 1e-3, "kwargs": {"lambda_linear": 1.0}}
    done = run_experiment(config(tmp_path / "run", theta_regularizer=regularizer, loss_terms=[term], epochs=1))
    factors = done.steering["factor"]
    assert factors.nunique() >= 3
    assert in_force == pytest.approx((0.01 * factors).tolist())


def test_a_missed_target_is_reported(caplog):
    steering = build(target={"relative_bops": 0.1}).steering
    summary = steering.summary()  # the untrained network has 8 bits and nearly all weights
    assert summary["target_deviation"] == pytest.approx(8 / 32 / 0.1 - 1, rel=0.02)
    assert "target.relative_bops=0.1 was missed: the training ended at 0.2" in caplog.text


FROZEN = {"learnable_bit": False, "learnable_deadzone": False, "fixed_bit_val": 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantizer": {"name": "uniform"}}, "no λ lowers this figure, set the weight decay of dz or bit"),
        ({"quantizer_kwargs": FROZEN}, "no λ lowers this figure"),
        ({"weight_decay_dz": 0.0, "weight_decay_bit": 0.0}, "no λ lowers this figure"),
        ({"target": {"bytes": 0.1}, "weight_decay_bit": 0.0}, "set the weight decay of bit and train it"),
        ({"target": {"mean_bits": 4}, "quantizer_kwargs": {"learnable_bit": False}}, "target.mean_bits=4.0: no λ"),
        (
            {"target": {"structured_macs": 0.5}, "weight_decay_dz": 0.0},
            "dz and train it, or a loss",
        ),
        ({"target": {"relative_bops": 0.3}}, "target.relative_bops=0.3: must be below 0.2"),
        ({"target": {"mean_bits": 8.5}}, "must be below 8, the figure of the initial network"),
        ({"target": {"relative_bops": 0.003}, "exclude_layers": ["fc2"]}, "must be above 0.003245, what remains"),
        ({"target": {"bytes": 0.06}}, "must be above 0.0625"),
        ({"target": {"mean_bits": 2}}, "must be above 2"),
    ],
)
def test_an_impossible_target_is_refused_before_the_training(tmp_path, settings, message):
    with pytest.raises(CodeqError) as refused:
        run_experiment(config(tmp_path / "run", **settings))
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


@each(
    ("settings", "message"),
    [
        ({"target": {"relative_bop": 0.1}}, "target.relative_bop=0.1: unknown key. Did you mean 'relative_bops'?"),
        (
            {"target": {"relative_bops": 0.1, "bytes": 0.1}},
            "needs exactly one of relative_bops, structured_macs, bytes",
        ),
        ({"target": {"reach": 0.5}}, "given: none"),
        ({"quantizer": None}, "quantizer is null"),
        ({"theta_schedule": {"name": "constant"}}, "theta_schedule sets the factor of λ that a target steers"),
    ],
)
def test_a_contradictory_target_is_a_mistake_of_the_configuration(settings, message):
    with pytest.raises(CodeqError) as refused:
        config(**settings)
    assert message in str(refused.value)


@each("settings", [{"target": {"relative_bops": 0.3}}, {"target": {"relative_bops": 0.003}, "exclude_layers": ["fc2"]}])
def test_a_target_that_the_initial_weights_rule_out_does_not_stop_a_resumed_run(settings):
    # These are not the weights of the run: it may have fallen below its target, or have started from a pruned network.
    build_training(config(**settings), Ranks(), "float32", initialize=False)


def test_what_is_zero_or_can_become_zero_is_not_in_the_smallest_bops():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.Linear(4, 4))
    comparison = QuantizationComparison((3, 2, 2))
    comparison.set_baseline(net)
    attach_weight_quantizers(net, ["2"], "deadzone", {"max_bits": 4, "learnable_deadzone": False})

    def smallest(**options):
        return 64 * smallest_figure("relative_bops", net, comparison, **options)

    assert smallest() == 16  # of the float layer; weights that train can fall into a fixed dead-zone
    with torch.no_grad():
        net[2].weight[:3] = 0
        latent_weight(net[1])[:, :6] = 0
        net[1].parametrizations.weight[0].quantizer.logit_dz.fill_(20.0)  # almost no dead-zone
    assert smallest() == 4
    assert smallest(pruning=True) == 0
    net[1].requires_grad_(False)
    assert smallest() == 4 + 24 * 4 / 32


def test_loss_terms_can_prune_float_layers():
    term = {"name": "group_lasso", "lambda": 1e-3, "kwargs": {"lambda_linear": 1.0}}
    assert build(target={"relative_bops": 0.003}, exclude_layers=["fc2"], loss_terms=[term]).steering


def test_a_resumed_run_keeps_the_interval_of_its_start():
    """On a GPU with recorded steps it would be another one."""
    begun, resumed, old = (build().steering for _ in range(3))
    begun._interval = 7
    resumed.load_state_dict(begun.state_dict())
    assert [batch for batch in range(20) if resumed.is_due(0, batch)] == [0, 7, 14]
    state = begun.state_dict()
    del state["interval"]
    interval = old._interval
    old.load_state_dict(state)
    assert old._interval == interval


def test_a_target_is_refused_where_all_that_it_steers_is_frozen():
    with pytest.raises(CodeqError, match="no λ lowers this figure"):
        build(freeze_last={"dz": 3, "bit": 3})
    assert build(freeze_last={"dz": 3, "bit": 2}).steering


def test_bytes_of_a_compacted_network_are_compared_with_those_of_the_whole_one():
    whole = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3)).eval()
    attach_weight_quantizers(whole, [], "deadzone", {})
    with torch.no_grad():
        latent_weight(whole[0])[:8] = 0
        whole[0].bias[:8] = 0
    compacted = compact(whole, torch.randn(2, 3, 8, 8), keep_quantizers=True).model
    comparison = QuantizationComparison((3, 8, 8))
    comparison.set_baseline(compacted)
    left, all_of_them = 9 * (3 * 8 + 8 * 16), 9 * (3 * 16 + 16 * 16)
    assert cost_figure("bytes", compacted, comparison) == left / (4 * all_of_them)
    assert smallest_figure("bytes", compacted, comparison) == left * 2 / (32 * all_of_them)
