import math
import subprocess
import sys

import pytest
import torch
from cases import each
from torch import nn

from codeq import OPTIMIZERS, ExperimentConfig, attach_weight_quantizers, named_quantizers
from codeq.common.errors import CodeqError
from codeq.config import ParamGroups
from codeq.config.optimizer import ParamGroup
from codeq.models import build_model
from codeq.optimizers import build_optimizer, is_fused, lr_factor
from codeq.training.parameter_groups import parameter_groups
from codeq.training.rates import rate_factor

SETTINGS = {"lr": 1e-2, "lr_dz": 2e-3, "lr_bit": 3e-3, "weight_decay": 0.1, "weight_decay_dz": 0.2}
SETTINGS |= {"weight_decay_bit": 0.3}


def build(**settings):
    config = ExperimentConfig("tiny", model="mlp", epochs=10, **(SETTINGS | settings))
    return config, *built(config)


def built(config):
    model = build_model(config.model, 10, config.model_kwargs, quantizer=config.quantizer)
    groups, theta = parameter_groups(config.optimizer.param_groups, config.theta_regularizer, model)
    return model, build_optimizer(config.optimizer.type, config.optimizer.kwargs, groups), theta


def logits(model, name):
    return [getattr(quantizer, name) for _, quantizer in named_quantizers(model)]


def test_weights_dead_zones_and_bits_are_three_groups_with_rates_of_their_own():
    _, model, optimizer, _ = build()
    base, dz, bit = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["lr"] for group in (base, dz, bit)] == [1e-2, 2e-3, 3e-3]
    assert {id(p) for p in dz["params"]} == {id(p) for p in logits(model, "logit_dz")}
    assert {id(p) for p in bit["params"]} == {id(p) for p in logits(model, "logit_bit")}
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(everything) == len({id(p) for p in everything})
    assert {id(p) for p in everything} == {id(p) for p in model.parameters()}


def test_l2_puts_the_decay_of_the_logits_into_the_loss_alone():
    _, model, optimizer, theta = build(theta_regularizer="l2")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.0]
    (dz, lambda_dz), (bit, lambda_bit) = theta
    assert (lambda_dz, lambda_bit) == (0.2, 0.3)
    assert {id(p) for p in dz} == {id(p) for p in logits(model, "logit_dz")}
    assert {id(p) for p in bit} == {id(p) for p in logits(model, "logit_bit")}


def test_decoupled_puts_it_into_the_optimizer_alone():
    _, model, optimizer, theta = build(theta_regularizer="decoupled")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.2, 0.3]
    assert not theta
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert logits(model, "logit_dz")[0].item() == pytest.approx(3 * (1 - 2e-3 * 0.2))
    assert logits(model, "logit_bit")[0].item() == pytest.approx(3 * (1 - 3e-3 * 0.3))


@pytest.mark.parametrize(
    ("kwargs", "rates"),
    [
        ({"learnable_bit": False}, [1e-2, 2e-3]),
        ({"learnable_deadzone": False}, [1e-2, 3e-3]),
        ({"learnable_bit": False, "learnable_deadzone": False}, [1e-2]),
    ],
)
def test_frozen_logits_have_no_group_and_no_part_in_the_loss(kwargs, rates):
    _, model, optimizer, theta = build(quantizer_kwargs=kwargs)
    assert [group["lr"] for group in optimizer.param_groups] == rates
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    assert frozen
    assert not frozen & {id(p) for parameters, _ in theta for p in parameters}


@pytest.mark.parametrize("quantizer", [None, "uniform"])
def test_without_logits_there_is_one_group(quantizer):
    config = ExperimentConfig("tiny", model="mlp", quantizer=quantizer, lr=1e-2)
    model, optimizer, _ = built(config)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len(list(model.parameters())) == 6


def test_cosine_is_half_a_cosine_over_the_epochs_after_the_warm_up():
    for epoch in range(10):
        assert lr_factor(epoch, 10, "cosine") == pytest.approx((1 + math.cos(math.pi * epoch / 10)) / 2)
        assert lr_factor(epoch + 4, 14, "cosine", warmup=4) == lr_factor(epoch, 10, "cosine")


def test_it_is_what_torch_calls_cosine_annealing():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for epoch in range(7):
        assert lr_factor(epoch, 7, "cosine") == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["cosine", "step", "constant"])
def test_a_warm_up_grows_to_the_full_rate(name):
    assert [lr_factor(epoch, 20, name, warmup=4) for epoch in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_steps_come_at_their_epochs():
    factors = [lr_factor(epoch, 9, "step", step_size=4, gamma=0.5) for epoch in range(9)]
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
    assert [lr_factor(epoch, 2, "step") for epoch in (0, 1)] == pytest.approx([1, 0.1])  # too few for thirds
    # Six epochs behind the warm-up, in thirds.
    warm = [lr_factor(epoch, 11, "step", warmup=5) for epoch in range(5, 11)]
    assert warm == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [lr_factor(epoch, 9, "step") for epoch in (0, 2, 3, 5, 6, 8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_rates_stay():
    assert {lr_factor(epoch, 9, "constant") for epoch in range(9)} == {1.0}


def torch_rates(steps, make):
    """The learning rates of a scheduler of torch, from a rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [1, 5, 29])
def test_one_cycle_is_that_of_torch(warmup):
    expected = torch_rates(
        30,
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            # torch reaches the peak one step before the fraction `pct_start`.
            optimizer, max_lr=1.0, total_steps=31, pct_start=(warmup + 1) / 31, cycle_momentum=False
        ),
    )  # fmt: skip
    assert [lr_factor(step, 31, "one_cycle", warmup=warmup) for step in range(30)] == pytest.approx(expected, rel=1e-9)
    assert lr_factor(30, 31, "one_cycle", warmup=warmup) == pytest.approx(1 / 25 / 1e4)


def test_a_cycle_may_end_at_its_peak():
    assert [lr_factor(epoch, 3, "one_cycle", warmup=2) for epoch in range(3)] == pytest.approx([0.04, 0.52, 1.0])


SCHEDULERS = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"lr_scheduler": "cosine"}, lambda o: SCHEDULERS.CosineAnnealingLR(o, T_max=28)),
        (
            {"lr_scheduler": "step", "lr_scheduler_kwargs": {"step_size": 3, "gamma": 0.5}},
            lambda o: SCHEDULERS.StepLR(o, step_size=21, gamma=0.5),
        ),
        ({"lr_scheduler": "step"}, lambda o: SCHEDULERS.StepLR(o, step_size=9)),  # a third of 28 steps
        (
            {"lr_scheduler": "one_cycle", "lr_scheduler_kwargs": {"warmup": 1}},
            lambda o: SCHEDULERS.OneCycleLR(o, max_lr=1.0, total_steps=28, pct_start=8 / 28, cycle_momentum=False),
        ),
        (
            {"lr_scheduler_kwargs": {"warmup": 1}},
            lambda o: SCHEDULERS.SequentialLR(
                o,
                [SCHEDULERS.LinearLR(o, 1 / 8, total_iters=7), SCHEDULERS.CosineAnnealingLR(o, T_max=21)],
                milestones=[7],
            ),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_per_step_rates_are_those_of_torchs_schedulers(settings, make):
    """Four epochs of seven batches."""
    factor = rate_factor(ExperimentConfig("x", epochs=4, lr_schedule_unit="step", **settings), 7)
    found = [factor(epoch, batch) for epoch in range(4) for batch in range(7)]
    assert found == pytest.approx(torch_rates(28, make), rel=1e-6)


def test_per_epoch_rates_do_not_change_within_an_epoch():
    factor = rate_factor(ExperimentConfig("x", epochs=4), 7)
    assert [factor(2, batch) for batch in range(7)] == [pytest.approx(0.5)] * 7


# --- weight decay -----------------------------------------------------------------------------------------------------


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.norm = nn.LayerNorm([4, 2, 2])  # its scale has three dimensions
        self.fc = nn.Linear(16, 10)


def test_norms_and_biases_can_be_exempt_from_weight_decay():
    model = Normalized()
    attach_weight_quantizers(model, [], "deadzone", {})
    content = {"optimizer": {"param_groups": {"base": {"weight_decay": 0.5, "decay_norms_and_biases": False}}}}
    config = ExperimentConfig.from_dict({"model": "mlp"} | content)
    groups, _ = parameter_groups(config.optimizer.param_groups, "decoupled", model)
    optimizer = build_optimizer("adamw", {}, groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay for name, decay in found.items() if "logit" not in name} == {
        "conv.parametrizations.weight.original": 0.5,
        "fc.parametrizations.weight.original": 0.5,
        **dict.fromkeys(["conv.bias", "fc.bias", "bn.weight", "bn.bias", "norm.weight", "norm.bias"], 0.0),
    }
    assert {decay for name, decay in found.items() if "logit" in name} == {0.01}  # that of dz and bit
    assert len(found) == len(names)


@each("granularity", ["layer", "channel"])
def test_a_learned_scale_is_exempt_from_weight_decay_in_both_granularities(granularity):
    model = Normalized()
    attach_weight_quantizers(model, [], "deadzone", {"scale": "learned", "granularity": granularity})
    for wanted in (True, False):
        settings = ParamGroups(base=ParamGroup(weight_decay=0.5, decay_norms_and_biases=wanted))
        groups, _ = parameter_groups(settings, "decoupled", model)
        decays = {id(p): options["weight_decay"] for parameters, options in groups for p in parameters}
        scales = [p for name, p in model.named_parameters() if name.endswith("learned_absmax")]
        assert [decays[id(p)] for p in scales] == [0.5 * wanted] * 2


def test_nesterov_of_the_weights_leaves_the_logits_alone():
    groups = {"base": {"lr": 0.1, "momentum": 0.9, "nesterov": True}, "dz": {"lr": 0.1, "momentum": 0.9}}
    content = {"model": "mlp", "optimizer": {"type": "sgd", "param_groups": groups}, "quantizer": {"name": "deadzone"}}
    model, optimizer, _ = built(ExperimentConfig.from_dict(content))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    moved = {name: (before[name] - p.detach()).mean().item() for name, p in model.named_parameters()}
    assert moved["fc3.bias"] == pytest.approx(0.1 * 1.9, rel=1e-5)
    logit = next(name for name in moved if name.endswith("logit_dz"))
    assert moved[logit] == pytest.approx(0.1, rel=1e-5)


def test_users_optimizers_serve_by_name(monkeypatch):
    class Slow(torch.optim.Optimizer):
        def __init__(self, params, lr=1e-3, weight_decay=0.0, brake=2.0):
            super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "brake": brake})

        def step(self): ...

    monkeypatch.setitem(OPTIMIZERS, "slow", Slow)
    content = {"model": "mlp", "optimizer": {"type": "slow", "kwargs": {"brake": 3.0}}}
    _, optimizer, _ = built(ExperimentConfig.from_dict(content))
    assert isinstance(optimizer, Slow)
    assert optimizer.param_groups[0]["brake"] == 3.0
    assert not is_fused(optimizer)


@each(
    ("optimizer", "message"),
    [
        ({"type": "adan"}, r"optimizer 'adan' is unknown\. Did you mean 'adam'"),
        ({"type": "adam", "kwargs": {"beta": [0.9, 0.9]}}, r"no argument 'beta'\. Did you mean 'betas'"),
        ({"type": "adam", "kwargs": {"betas": [2.0, 0.9]}}, r"optimizer 'adam' cannot be made: ValueError: .*[bB]eta"),
        ({"type": "adam", "kwargs": {"lr": 0.1}}, "lr is a key of param_groups"),
        ({"type": "adamw", "param_groups": {"base": {"momentum": 0.9}}}, "adamw has no momentum, sgd has"),
        ({"type": "adam", "kwargs": {"betas": [0.9]}}, "optimizer.kwargs: betas"),
        ({"type": "adam", "kwargs": {"betas": [0.9, "high"]}}, "betas.1='high': must be a number"),
        ({"type": "adam", "kwargs": {"betas": [0, 0]}}, "optimizer 'adam' cannot be made: .*both floats"),
        ({"type": "adam", "kwargs": {"eps": "1e-8"}}, "eps='1e-8': must be a number"),
        ({"type": "adam", "kwargs": {"eps": -1}}, "optimizer 'adam' cannot be made: ValueError: .*epsilon"),
        ({"type": "adam", "kwargs": {"eps": float("nan")}}, "eps=nan: must be finite"),
        ({"type": "adam", "kwargs": {"amsgrad": 1}}, "amsgrad=1: must be true or false"),
        ({"type": "adam", "kwargs": {"params": []}}, "optimizer 'adam' has no argument 'params'"),
        ({"type": "sgd", "kwargs": {"nesterov": True}}, "optimizer 'sgd' cannot be made: .*requires a momentum"),
        (
            {
                "type": "sgd",
                "kwargs": {"nesterov": True, "dampening": 0.1},
                "param_groups": {"base": {"momentum": 0.9}},
            },
            "optimizer 'sgd' cannot be made: .*zero dampening",
        ),
        (
            {"type": "sgd", "kwargs": {"fused": True, "foreach": True}},
            "optimizer 'sgd' cannot be made: .*cannot be `True` together",
        ),
    ],
)
def test_mistakes_in_the_optimizer_are_clear_errors(optimizer, message):
    with pytest.raises(CodeqError, match=message):
        ExperimentConfig.from_dict({"model": "mlp", "optimizer": optimizer})


def from_file(kind, base):
    groups = {"base": base, "dz": {"lr": 0.02}, "bit": {"lr": 0.03}}
    content = {"model": "mlp", "optimizer": {"type": kind, "param_groups": groups}, "quantizer": {"name": "deadzone"}}
    config = ExperimentConfig.from_dict(content)
    return built(config)[:2]


def test_sgd_takes_a_momentum_of_the_weights_alone():
    model, optimizer = from_file("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.0, 0.0]
    weight, buffer = model.fc3.bias, torch.zeros(10)
    expected = weight.detach().clone()
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        buffer = 0.9 * buffer + 1 + 0.01 * expected
        expected = expected - 0.1 * buffer
    torch.testing.assert_close(weight.detach(), expected)


def test_adam_and_adamw_differ_in_what_decay_means():
    steps = {}
    for kind in ("adam", "adamw"):
        model, optimizer = from_file(kind, {"lr": 0.1, "weight_decay": 0.5})
        before = torch.nn.init.ones_(model.fc3.bias).detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        steps[kind] = (model.fc3.bias.detach() - before)[0].item()
    assert steps["adam"] == pytest.approx(-0.1, rel=1e-4)  # Adam's first step is lr, whatever the gradient's size
    assert steps["adamw"] == pytest.approx(-0.1 * 0.5, rel=1e-4)


def test_nesterov_takes_the_momentum_of_the_weights():
    content = {"type": "sgd", "kwargs": {"nesterov": True}, "param_groups": {"base": {"lr": 0.1, "momentum": 0.9}}}
    model, optimizer, _ = built(ExperimentConfig.from_dict({"model": "mlp", "optimizer": content}))
    before = model.fc3.bias.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # The first step of Nesterov's method is lr · (1 + momentum) · gradient; plain momentum makes lr · gradient of it.
    torch.testing.assert_close(before - model.fc3.bias.detach(), torch.full((10,), 0.1 * 1.9))


@each("kind", ["adamw", "adam", "sgd"])
@each(
    ("kwargs", "fused"),
    [
        ({}, True),
        ({"fused": True}, True),
        ({"fused": False}, False),
        ({"foreach": True}, False),
        ({"fused": None}, None),
    ],
)
def test_users_choose_the_kernel(kind, kwargs, fused):
    _, optimizer, _ = built(ExperimentConfig.from_dict({"model": "mlp", "optimizer": {"type": kind, "kwargs": kwargs}}))
    assert bool(fused) == is_fused(optimizer)
    assert all(bool(group["foreach"]) == ("foreach" in kwargs) for group in optimizer.param_groups)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_an_optimizer_that_cannot_step_is_found_before_the_training(kind):
    kwargs = {"differentiable": True}
    config = ExperimentConfig.from_dict({"model": "mlp", "optimizer": {"type": kind, "kwargs": kwargs}})
    with pytest.raises(CodeqError, match=f"optimizer '{kind}' with kwargs .* cannot train: "):
        built(config)


@each("kind", ["adamw", "adam", "sgd"])
def test_a_network_with_complex_parameters_trains_without_the_fused_kernel(kind):
    real, spectrum = (torch.nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float32, torch.cfloat))
    optimizer = build_optimizer(kind, {}, [([real, spectrum], {"lr": 0.1})])
    assert not is_fused(optimizer)
    for weight in (real, spectrum):
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert real[0] < 1
    assert spectrum[0].real < 1
    with pytest.raises(CodeqError, match=f"optimizer '{kind}' with kwargs .* cannot train"):
        build_optimizer(kind, {"fused": True}, [([real, spectrum], {"lr": 0.1})])


def test_the_trial_step_changes_no_parameter():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer("adamw", {}, [([weight], {"lr": 1.0, "weight_decay": 0.5})])
    assert weight.tolist() == [1.0, 1.0, 1.0]
    assert weight.grad is None
    assert not optimizer.state


def test_a_users_optimizer_may_require_a_rate_and_have_no_decay(monkeypatch):
    class Plain(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self): ...

    monkeypatch.setitem(OPTIMIZERS, "plain", Plain)
    optimizer = {"type": "plain", "param_groups": {"base": {"lr": 0.5}}}
    _, made, _ = built(ExperimentConfig.from_dict({"model": "mlp", "optimizer": optimizer}))
    assert [group["lr"] for group in made.param_groups] == [0.5]
    optimizer["param_groups"]["base"]["weight_decay"] = 0.1
    with pytest.raises(CodeqError, match=r"base.weight_decay=0.1: plain has no weight_decay"):
        ExperimentConfig.from_dict({"model": "mlp", "optimizer": optimizer})


def test_an_optimizer_whose_step_needs_more_is_refused(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "lbfgs", torch.optim.LBFGS)
    with pytest.raises(CodeqError, match="optimizer 'lbfgs' cannot be made: ValueError"):
        ExperimentConfig.from_dict({"model": "mlp", "optimizer": {"type": "lbfgs"}})


@pytest.mark.slow
def test_checking_a_configuration_imports_no_compiler():
    code = """
import sys
from codeq.config import ExperimentConfig
for kind in ("adamw", "sgd"):
    ExperimentConfig.from_dict({"optimizer": {"type": kind}, "quantizer": {"name": "deadzone"}, "model": "vit"})
heavy = {"torch._dynamo", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "wandb"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(CodeqError, match="name='consine': must be 'cosine' or 'step' or 'constant' or 'one_cycle'"):
        lr_factor(1, 300, "consine")
