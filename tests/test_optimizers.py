import math

import pytest
import torch

from codeq import ExperimentConfig, named_quantizers
from codeq.optimizers import build_lr_scheduler, build_optimizer
from codeq.runs import build_model

SETTINGS = {"lr": 1e-2, "lr_dz": 2e-3, "lr_bit": 3e-3, "weight_decay": 0.1, "weight_decay_dz": 0.2}
SETTINGS |= {"weight_decay_bit": 0.3}


def build(**settings):
    config = ExperimentConfig("tiny", model="mlp", epochs=10, **(SETTINGS | settings))
    model = build_model(config, num_classes=10)
    return config, model, *build_optimizer(config, model)


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
    model = build_model(config, num_classes=10)
    optimizer, _ = build_optimizer(config, model)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len(list(model.parameters())) == 6


def test_every_rate_follows_half_a_cosine_over_the_epochs():
    config, _, optimizer, _ = build()
    scheduler = build_lr_scheduler(config, optimizer)
    for epoch in range(10):
        expected = [lr * (1 + math.cos(math.pi * epoch / 10)) / 2 for lr in (1e-2, 2e-3, 3e-3)]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0, 0, 0], abs=1e-12)


def test_constant_rates_stay():
    config, _, optimizer, _ = build(lr_scheduler="constant")
    scheduler = build_lr_scheduler(config, optimizer)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 2e-3, 3e-3]


def from_file(kind, base):
    groups = {"base": base, "dz": {"lr": 0.02}, "bit": {"lr": 0.03}}
    content = {"model": "mlp", "optimizer": {"type": kind, "param_groups": groups}, "quantizer": {"name": "deadzone"}}
    config = ExperimentConfig.from_dict(content)
    model = build_model(config, num_classes=10)
    return model, build_optimizer(config, model)[0]


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
