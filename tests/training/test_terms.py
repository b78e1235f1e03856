import logging
import math

import pytest
import torch
from cases import each
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from codeq import (
    LOSSES,
    ExperimentConfig,
    attach_weight_quantizers,
    constant,
    coupled_group_lasso,
    detach_weight_quantizers,
    group_lasso_channels,
    linear_warmup,
    named_quantizers,
    window,
)
from codeq.common.errors import CodeqError
from codeq.models import CifarMLP, CifarResNet
from codeq.training.rates import ThetaDecay
from codeq.training.terms import SparsityTerm, build_terms, check_schedules

SIZE = (3, 32, 32)


def term(name, factor=1.0, schedule=None):
    return SparsityTerm(name, group_lasso_channels, factor, schedule or constant())


def test_the_coefficient_is_lambda_times_the_schedule():
    warming = term("warming", factor=0.5, schedule=linear_warmup(delay=10, ramp=4))
    assert [warming.coefficient(epoch, 100) for epoch in (0, 10, 11, 12, 14, 99)] == [0, 0, 0.125, 0.25, 0.5, 0.5]


def test_terms_are_built_as_configured_each_under_a_name_of_its_own():
    terms = [
        {"name": "group_lasso", "lambda": 0.5, "kwargs": {"lambda_linear": 1.0, "lambda_conv": 0.0}},
        {"name": "group_lasso", "lambda": 2.0, "detach_quantizer": True},
        {"name": "coupled_group_lasso", "step": "proximal", "schedule": {"name": "constant", "kwargs": {"value": 3.0}}},
    ]
    model = CifarMLP()
    first, second, third = build_terms(ExperimentConfig("tiny", model="mlp", loss_terms=terms).loss_terms, model, SIZE)
    assert [t.name for t in (first, second, third)] == ["group_lasso", "group_lasso_2", "coupled_group_lasso"]
    assert [t.coefficient(0, 10) for t in (first, second, third)] == [0.5, 2.0, 3.0]
    assert [t.step for t in (first, second, third)] == ["gradient", "gradient", "proximal"]
    assert [t.detach_quantizer for t in (first, second, third)] == [False, True, False]
    columns = sum(model.get_submodule(name).weight.norm(dim=0).sum() for name in ("fc1", "fc2", "fc3"))
    assert first.loss(model).item() == pytest.approx(columns.item(), rel=1e-5)
    assert second.loss(model).item() == pytest.approx(1e-4 * columns.item(), rel=1e-5)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_from_the_start_is_refused(value):
    terms = ExperimentConfig("tiny", model="mlp", sparsity_fn=lambda model: value * model.fc1.weight.sum()).loss_terms
    with pytest.raises(CodeqError, match="for the initial weights; it must be finite"):
        build_terms(terms, CifarMLP(), SIZE)


@each(
    ("loss", "message"),
    [
        (lambda: 3, r"fails on CifarMLP: TypeError: .*takes 0 positional arguments"),
        (lambda model: model.conv7.weight.sum(), "fails on CifarMLP: AttributeError: .*'conv7'"),
        (nn.L1Loss(), "fails on CifarMLP: TypeError: .*'target'"),
        (lambda model: model.fc1.weight.sum() * 1j, r"returned a complex number, .*; it must be real"),
    ],
)
def test_a_loss_that_cannot_be_computed_is_an_error_that_names_it(loss, message):
    terms = ExperimentConfig("tiny", model="mlp", sparsity_fn=loss).loss_terms
    with pytest.raises(CodeqError, match=rf"^sparsity term 'own:\S+' {message}"):
        build_terms(terms, CifarMLP(), SIZE)


def test_a_registered_loss_without_a_model_is_refused_in_the_configuration(monkeypatch):
    monkeypatch.setitem(LOSSES, "zero", lambda: 0)
    with pytest.raises(CodeqError, match="loss 'zero' takes 0 arguments by position, but is called with 1"):
        loss_terms({"name": "zero"})


@each("loss", [lambda model: model.fc1.weight.abs().sum().detach(), lambda model: (model.fc1.weight != 0).any()])
def test_a_loss_without_a_gradient_is_reported_as_one(loss, caplog):
    build_terms(ExperimentConfig("tiny", model="mlp", sparsity_fn=loss).loss_terms, CifarMLP(), SIZE)
    assert "has no effect: its value has no gradient" in caplog.text


def test_the_value_in_a_message_is_cut():
    terms = ExperimentConfig("tiny", model="mlp", sparsity_fn=lambda _: "x" * 10**6).loss_terms
    with pytest.raises(CodeqError, match="must return a 0-d tensor") as raised:
        build_terms(terms, CifarMLP(), SIZE)
    assert len(str(raised.value)) < 400


def loss_terms(*terms):
    return ExperimentConfig("tiny", model="mlp", loss_terms=list(terms)).loss_terms


def test_a_proximal_step_that_a_layer_does_not_allow_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), weight_norm(nn.Conv2d(4, 8, 3)), nn.Conv2d(8, 2, 1))
    build_terms(loss_terms({"name": "coupled_group_lasso"}), net, SIZE)
    with pytest.raises(CodeqError, match=r"filters of layer '1' do not become zero .* use the loss by its gradient"):
        build_terms(loss_terms({"name": "coupled_group_lasso", "step": "proximal"}), net, SIZE)


def test_trying_a_proximal_step_changes_no_weight(monkeypatch):
    class Wiping:
        def __call__(self, model):
            return model.fc1.weight.sum()

        def proximal_step(self, model, _amount):
            model.fc1.weight.data.zero_()

    monkeypatch.setitem(LOSSES, "wiping", Wiping)
    model = CifarMLP()
    build_terms(loss_terms({"name": "wiping", "step": "proximal"}), model, SIZE)
    assert model.fc1.weight.all()


def test_terms_that_reach_no_weight_are_reported_though_the_quantizers_train(caplog):
    model = CifarMLP()
    attach_weight_quantizers(model, [], "deadzone", {})
    model.requires_grad_(False)
    for _, quantizer in named_quantizers(model):
        quantizer.requires_grad_(True)
    names = ("group_lasso", "group_lasso", "coupled_group_lasso")
    effects = ({}, {"detach_quantizer": True}, {"step": "proximal"})
    terms = loss_terms(*({"name": name} | effect for name, effect in zip(names, effects, strict=True)))
    build_terms(terms, model, SIZE)
    assert [record.args[0] for record in caplog.records] == ["group_lasso_2", "coupled_group_lasso"]


def test_terms_without_effect_are_reported(caplog):
    late = linear_warmup(delay=10, ramp=1)
    with caplog.at_level(logging.WARNING):
        check_schedules([term("late", schedule=late), term("on"), term("off", factor=0.0)], 10, CifarMLP())
    assert [record.args[0] for record in caplog.records] == ["late", "off"]


def test_pruned_weights_that_nothing_will_hold_are_reported(caplog):
    model = CifarResNet(1)
    loss = coupled_group_lasso(model)
    stops = [(3, "proximal"), (10, "proximal"), (3, "gradient")]
    terms = [SparsityTerm(f"{step} to {n}", loss, 1.0, window(start=1, stop=n), step) for n, step in stops]

    def reported():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            check_schedules(terms, 10, model)
        return [record.args for record in caplog.records]

    assert reported() == [("proximal to 3", 7, "conv1, layer1.0.conv1, layer1.0.conv2, layer2.0.conv1 and 3 more")]
    attach_weight_quantizers(model, ["conv1", "linear"], "deadzone", {})
    assert reported() == [("proximal to 3", 7, "conv1")]
    detach_weight_quantizers(model)
    attach_weight_quantizers(model, ["linear"], "deadzone", {})
    assert reported() == []


def test_the_constant_loss_of_a_model_without_its_layers_is_on_the_device_of_the_model():
    model = torch.nn.Linear(2, 2, device="meta")
    assert group_lasso_channels(model).device.type == "meta"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda epoch, _total: 1 / (1 - epoch), "fails in epoch 2 of 10: ZeroDivisionError"),
        (lambda _epoch, _total: math.nan, "is nan in epoch 1 of 10: must be a finite number of at least 0"),
        (lambda epoch, _total: -1.0 if epoch == 9 else 1.0, "is -1.0 in epoch 10"),
        (lambda _epoch, _total: None, "fails in epoch 1 of 10: TypeError"),
    ],
)
def test_a_schedule_of_a_user_is_tried_in_all_epochs(schedule, message):
    with pytest.raises(CodeqError, match=rf"^the schedule of sparsity term 'own' {message}"):
        check_schedules([term("own", schedule=schedule)], 10, CifarMLP())
    with pytest.raises(CodeqError, match=rf"^the schedule of the regularizer on theta {message}"):
        ThetaDecay(None, schedule).check(10)


def test_a_schedule_may_return_a_tensor():
    coefficient = term("own", schedule=lambda *_: torch.tensor(0.5)).coefficient(0, 1)
    assert (coefficient, type(coefficient)) == (0.5, float)
