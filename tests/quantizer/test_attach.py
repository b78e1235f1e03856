"""Quantizers on a model's weights: which layers get one, what the model computes, and how they come off again."""

import copy
import logging
import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from cases import each
from networks import Function
from torch import nn
from torch.nn.utils import parametrize

import codeq
from codeq import QUANTIZERS, DeadZoneQuantizer, UniformSymmetric, attach_weight_quantizers, toggle_quantization
from codeq.common.errors import CodeqError
from codeq.models import CifarMLP, resnet20
from codeq.quantizer.activations import ActivationQuantizer
from codeq.quantizer.attach import (
    collapsed_layers,
    detach_weight_quantizers,
    named_quantizers,
    quantizer_parameters_detached,
    split_param_groups,
)
from codeq.quantizer.fused import fused_quantization
from codeq.quantizer.layers import FLOAT_BITS, bitwidth, forward_weight, latent_weight, named_layers
from codeq.quantizer.patterns import match_factors, select_layers

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def quantized(exclude=(), **kwargs):
    model = resnet20().eval()
    attach_weight_quantizers(model, list(exclude), "deadzone", kwargs)
    return model


def names_of(model):
    return [name for name, _ in named_layers(model)]


# ---------------------------------------------------------------------------------------------------- which layers


def test_every_conv_and_linear_layer_gets_a_separate_quantizer():
    model = resnet20()
    attached = attach_weight_quantizers(model, [], "deadzone", {})
    assert attached == names_of(model)
    assert len(attached) == 20
    quantizers = [quantizer for _, quantizer in named_quantizers(model)]
    assert len({id(quantizer) for quantizer in quantizers}) == 20
    assert len({id(quantizer.logit_dz) for quantizer in quantizers}) == 20


@each(
    ("exclude", "left"),
    [
        (["conv1", "linear"], 18),
        (["conv1", "bn", "linear"], 18),
        (["*conv1"], 10),
        (["layer1.*"], 14),
        (["layer1.0.conv?"], 18),
        (["layer[12].*", "linear"], 7),
        (["norm", "ln", "gn", "batchnorm", "layernorm", "groupnorm"], 20),
    ],
)
def test_patterns_are_globs_on_the_full_name_and_plain_names_are_exact(exclude, left):
    assert len(select_layers(resnet20(), exclude)) == left


def test_a_plain_name_does_not_match_layers_that_end_with_it():
    assert "layer1.0.conv1" in dict(select_layers(resnet20(), ["conv1"]))


class Named(nn.Module):
    """A layer, and one in a module, that are called like normalizations."""

    def __init__(self):
        super().__init__()
        self.ln, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.norm = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
        self.add_module("a[0]", nn.Linear(4, 4))


@each(
    ("exclude", "left"),
    [
        (["ln"], ["head", "norm.1", "a[0]"]),
        (["ln", "bn", "norm.*"], ["head", "a[0]"]),
        (["a[0]"], ["ln", "head", "norm.1"]),
        (["bn", "gn"], ["ln", "head", "norm.1", "a[0]"]),
    ],
)
def test_a_word_for_normalization_excludes_a_layer_of_that_name(exclude, left):
    assert [name for name, _ in select_layers(Named(), exclude)] == left
    assert attach_weight_quantizers(Named(), exclude, "deadzone", {}) == left


def test_a_word_for_normalization_that_names_a_module_around_layers_is_a_clear_error():
    with pytest.raises(CodeqError, match=r"pattern 'norm' matches no conv or linear layer\. Did you mean 'norm\.\*'"):
        select_layers(Named(), ["norm"])
    with pytest.raises(CodeqError, match=r"pattern 'ln' matches no conv or linear layer\. Did you mean '\*\.ln'"):
        select_layers(nn.ModuleDict({"block": Named()}), ["ln"])


@each("exclude", [None, 3, [1], ["fc1", None]])
def test_patterns_that_are_no_strings_are_a_clear_error(exclude):
    with pytest.raises(CodeqError, match="must be a list of patterns"):
        select_layers(CifarMLP(), exclude)


@each(
    ("exclude", "message"),
    [
        (["conv2"], r"exclude_layers: pattern 'conv2' matches no conv or linear layer\. Did you mean 'conv1'"),
        (["layer1"], r"Did you mean 'layer1\.\*'\?"),
        (["bn1"], r"pattern 'bn1' matches no conv or linear layer"),
        (["Linear"], r"Did you mean 'linear'"),
        ("linear", r"must be a list of patterns, e\.g\. \['linear'\]"),
        (["*"], "leaves no conv or linear layer to quantize"),
    ],
)
def test_a_pattern_that_selects_nothing_or_everything_is_a_clear_error(exclude, message):
    model = resnet20()
    with pytest.raises(CodeqError, match=message):
        attach_weight_quantizers(model, exclude, "deadzone", {})
    assert not list(named_quantizers(model)), "a refused call must leave the model as it was"


def test_factors_come_from_the_first_pattern_that_matches():
    factors = match_factors(CifarMLP(), {"fc1": 3, "fc*": 0.5})
    assert factors == {"fc1": 3.0, "fc2": 0.5, "fc3": 0.5}
    assert match_factors(CifarMLP(), None) == {"fc1": 1.0, "fc2": 1.0, "fc3": 1.0}
    with pytest.raises(CodeqError, match=r"weights: pattern 'fc9' matches no"):
        match_factors(CifarMLP(), {"fc9": 1})


# ---------------------------------------------------------------------------------------------- what is computed


def test_the_forward_pass_uses_the_quantized_weights():
    model, plain = quantized(max_bits=3), resnet20()
    plain.load_state_dict(
        {name: value for name, value in copy.deepcopy(model.state_dict()).items() if "parametrizations" not in name},
        strict=False,
    )
    for (_, layer), (_, other) in zip(named_layers(model), named_layers(plain), strict=True):
        own = layer.parametrizations.weight[0].quantizer
        other.weight = nn.Parameter(own(latent_weight(layer)))
        assert torch.equal(layer.weight, other.weight)
        assert not torch.equal(layer.weight, latent_weight(layer))
        assert len(layer.weight.unique()) <= 7
    torch.testing.assert_close(model(X), plain.eval()(X))


def test_attaching_keeps_the_latent_weights_and_biases():
    model = CifarMLP()
    before = copy.deepcopy(model)
    attach_weight_quantizers(model, [], "deadzone", {})
    for name, layer in named_layers(before):
        now = model.get_submodule(name)
        assert torch.equal(latent_weight(now), layer.weight)
        assert torch.equal(now.bias, layer.bias)


def test_switched_off_the_model_is_float_and_switched_on_quantized_again():
    model = resnet20().eval()
    floats = model(X)
    attach_weight_quantizers(model, [], "deadzone", {"max_bits": 3}, enabled=False)
    assert torch.equal(model(X), floats)
    assert bitwidth("conv1", model.conv1) == FLOAT_BITS
    toggle_quantization(model, True)
    assert not torch.allclose(model(X), floats)
    assert bitwidth("conv1", model.conv1) == 3
    toggle_quantization(model, False)
    assert torch.equal(model(X), floats)


def test_toggling_a_model_without_quantizers_is_a_clear_error():
    with pytest.raises(CodeqError, match="has no weight quantizers"):
        toggle_quantization(resnet20(), True)


def test_cached_weights_are_quantized_once():
    model = quantized()
    calls = []
    for _, quantizer in named_quantizers(model):
        quantizer.register_forward_hook(lambda *_: calls.append(1))
    with parametrize.cached():
        model(X)
        codeq.group_lasso_channels(model)
    assert len(calls) == 20


def test_a_model_survives_copying_saving_and_loading():
    model = quantized(max_bits=4)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), model(X))
    other = quantized(max_bits=4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(X), model(X))


def test_a_second_attachment_is_refused():
    model = quantized(exclude=["linear"])
    with pytest.raises(CodeqError, match=r"layer 'conv1' already has a weight quantizer; detach_weight_quantizers"):
        attach_weight_quantizers(model, [], "deadzone", {})
    assert len(list(named_quantizers(model))) == 19


@each(
    ("arguments", "message"),
    [
        (([], DeadZoneQuantizer(), {}), "quantizer=DeadZoneQuantizer.*: must be a name in QUANTIZERS or a class"),
        (([], 8, {}), "quantizer=8: must be a name in QUANTIZERS or a class"),
        (([], "deadzone", None), "quantizer_kwargs=None: must be a mapping"),
        (([], "deadzone", {}, "no"), "enabled='no': must be True or False"),
    ],
)
def test_arguments_of_other_kinds_are_named(arguments, message):
    with pytest.raises(CodeqError, match=message):
        attach_weight_quantizers(CifarMLP(), *arguments)


def test_texts_switch_no_quantizers(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "five", partial(UniformSymmetric, bitwidth=5))  # has no name
    model = CifarMLP()
    attach_weight_quantizers(model, [], "five", {})
    assert {int(quantizer.get_bitwidth()) for _, quantizer in named_quantizers(model)} == {5}
    with pytest.raises(CodeqError, match="enabled='off': must be True or False"):
        toggle_quantization(model, "off")


def test_one_line_a_layer_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        attach_weight_quantizers(CifarMLP(), ["fc2"], "deadzone", {})
    assert [record.getMessage() for record in caplog.records] == [
        "Attached weight quantizer to layer: fc1",
        "Attached weight quantizer to layer: fc3",
    ]


# -------------------------------------------------------------------------------------------------- other quantizers


def test_users_classes_serve_by_class_and_by_name(monkeypatch):
    class Sign(nn.Module):
        def __init__(self, scale=1.0):
            super().__init__()
            self.scale = scale

        def forward(self, w):
            return self.scale * w.sign()

        def get_bitwidth(self):
            return torch.tensor(1)

    monkeypatch.setitem(QUANTIZERS, "sign", Sign)
    for quantizer in (Sign, "sign"):
        model = CifarMLP()
        attach_weight_quantizers(model, [], quantizer, {"scale": 0.5})
        assert set(model.fc1.weight.unique().tolist()) <= {-0.5, 0.0, 0.5}
        assert bitwidth("fc1", model.fc1) == 1


def test_unknown_quantizers_and_arguments_are_clear_errors():
    with pytest.raises(CodeqError, match=r"quantizer 'deadzon' is unknown\. Did you mean 'deadzone'"):
        attach_weight_quantizers(resnet20(), [], "deadzon", {})
    with pytest.raises(CodeqError, match=r"DeadZoneQuantizer has no argument 'max_bit'\. Did you mean 'max_bits'"):
        attach_weight_quantizers(resnet20(), [], "deadzone", {"max_bit": 4})
    for name, value in {"learnable_bit": "no", "learnable_deadzone": 0}.items():
        with pytest.raises(CodeqError, match=f"{name}={value!r}: must be True or False"):
            attach_weight_quantizers(resnet20(), [], "deadzone", {name: value})
    for name, value in (
        ("init_bit_logit", "high"), ("init_bit_logit", "3"), ("init_bit_logit", True), ("init_deadzone_logit", math.nan)
    ):  # fmt: skip
        with pytest.raises(CodeqError, match=f"{name}={value!r}: must be a finite number"):
            attach_weight_quantizers(resnet20(), [], "deadzone", {name: value})
    with pytest.raises(CodeqError, match="symmetric='no': must be True or False"):
        ActivationQuantizer(symmetric="no")


def test_bits_that_a_quantizer_does_not_tell_are_an_error_never_a_guess():
    class Silent(nn.Module):
        def forward(self, w):
            return w

    model = CifarMLP()
    attach_weight_quantizers(model, [], Silent, {})
    with pytest.raises(CodeqError, match=r"layer 'fc1': quantizer Silent has no get_bitwidth\(\)"):
        bitwidth("fc1", model.fc1)


def _clamped_data(w):
    w.data.clamp_(-0.01, 0.01)
    return w.clone()


@each("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@each(
    "function",
    [lambda w: w.clamp_(-0.01, 0.01), lambda w: w.clamp_(-9, 9), lambda w: w.view_as(w).mul_(0), _clamped_data],
)
def test_a_quantizer_that_overwrites_the_weights_is_refused_and_they_stay_as_they_are(mode, function):
    model = nn.Sequential(nn.Linear(4, 3), nn.ConvTranspose2d(2, 3, 2))
    before = copy.deepcopy(model.state_dict())
    for layer in ("0", "1"):
        with mode(), pytest.raises(CodeqError, match=f"layer '{layer}': quantizer Function overwrites"):
            attach_weight_quantizers(model, [{"0": "1", "1": "0"}[layer]], Function, {"function": function})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_quantizer_that_fails_leaves_the_weights_as_they_are():
    def function(w):
        w.mul_(0)
        raise ValueError("no such weights")

    model = nn.Sequential(nn.Linear(4, 3))
    before = model[0].weight.detach().clone()
    with pytest.raises(CodeqError, match=r"fails on weights of .*no such weights"):
        attach_weight_quantizers(model, [], Function, {"function": function})
    assert torch.equal(model[0].weight, before)


def test_a_quantizer_may_return_its_weights_and_get_some_that_are_not_finite():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data[0] = torch.tensor([math.nan, math.inf])
    assert attach_weight_quantizers(model, [], Function, {"function": lambda w: w}) == ["0"]


class Answering(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, w):
        return w.clone()

    def get_bitwidth(self):
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [
        *(math.log2(3), torch.tensor(3.99), -4, 0, math.nan, torch.tensor(math.inf), torch.full((8,), 4.0)),
        *(True, "4", None, np.array([4, 4]), np.float32(0.5), torch.tensor(4j), [4]),
    ],
    ids=repr,
)
def test_bits_that_are_not_one_integer_of_at_least_1_are_an_error(answer):
    model = CifarMLP()
    attach_weight_quantizers(model, ["fc2", "fc3"], Answering, {"answer": answer})
    with pytest.raises(CodeqError, match=r"layer 'fc1': get_bitwidth\(\) of quantizer Answering .+ one integer"):
        bitwidth("fc1", model.fc1)


@pytest.mark.parametrize("answer", [4, 4.0, torch.tensor(4.0), torch.tensor([4]), np.int64(4), np.float32(4)], ids=repr)
def test_bits_are_an_integer_of_any_type(answer):
    model = CifarMLP()
    attach_weight_quantizers(model, ["fc2", "fc3"], Answering, {"answer": answer})
    bits = bitwidth("fc1", model.fc1)
    assert bits == 4
    assert type(bits) is int


@pytest.mark.parametrize(
    ("quantizer", "kwargs", "bits"),
    [
        ("deadzone", {"learnable_bit": False, "fixed_bit_val": 5}, 5),
        ("deadzone", {"init_bit_logit": 0.0}, 2),
        ("uniform", {"bitwidth": 6}, 6),
    ],
)
def test_bits_are_those_in_force(quantizer, kwargs, bits):
    model = CifarMLP()
    attach_weight_quantizers(model, ["fc3"], quantizer, kwargs)
    assert [bitwidth(name, layer) for name, layer in named_layers(model)] == [bits, bits, FLOAT_BITS]


# ------------------------------------------------------------------------------------------------------- coming off


@pytest.mark.parametrize("enabled", [True, False])
def test_detaching_bakes_what_the_forward_pass_used(enabled):
    model = quantized(exclude=["linear"], max_bits=3)
    toggle_quantization(model, enabled)
    before, weights = model(X), {name: forward_weight(layer).detach().clone() for name, layer in named_layers(model)}
    keys = set(resnet20().state_dict())
    detach_weight_quantizers(model)
    assert torch.equal(model(X), before)
    assert set(model.state_dict()) == keys
    for name, layer in named_layers(model):
        assert isinstance(layer.weight, nn.Parameter)
        assert torch.equal(layer.weight, weights[name])
        assert type(layer) in (nn.Conv2d, nn.Linear)


def test_other_parametrizations_of_a_weight_are_left_alone():
    linear = nn.Sequential(nn.Linear(4, 3))
    parametrize.register_parametrization(linear[0], "weight", nn.Tanh())
    detach_weight_quantizers(linear)
    assert parametrize.is_parametrized(linear[0], "weight")
    assert not list(named_quantizers(linear))


# ------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("kwargs", "dz", "bit"),
    [
        ({}, 20, 20),
        ({"learnable_bit": False}, 20, 0),
        ({"learnable_deadzone": False}, 0, 20),
    ],
)
def test_parameters_are_split_into_weights_dead_zones_and_bits(kwargs, dz, bit):
    model = quantized(**kwargs)
    base, dz_group, bit_group = split_param_groups(model)
    assert (len(dz_group), len(bit_group)) == (dz, bit)
    together = [id(p) for p in (*base, *dz_group, *bit_group)]
    assert sorted(together) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    quantizers = [quantizer for _, quantizer in named_quantizers(model)]
    assert {id(p) for p in dz_group} <= {id(q.logit_dz) for q in quantizers}
    assert {id(p) for p in bit_group} <= {id(q.logit_bit) for q in quantizers}


def test_parameters_of_other_quantizers_train_with_the_weights():
    model = CifarMLP()
    attach_weight_quantizers(model, [], "uniform", {})
    assert [len(group) for group in split_param_groups(model)] == [6, 0, 0]


class Squash(nn.Module):
    """A quantizer without a straight-through gradient: ``∂ŵ/∂w`` is neither 1 nor 0."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, w):
        return torch.tanh(self.gain * w)


def narrow(model):
    """Halve learned scales, so that weights lie beyond them and get no gradient."""
    for _, quantizer in named_quantizers(model):
        if getattr(quantizer, "scale", "") == "learned":
            quantizer.learned_absmax.data /= 2


@each("context", [lambda _: nullcontext(), fused_quantization])
@each(
    ("quantizer", "kwargs"),
    [
        ("deadzone", {"init_deadzone_logit": 0.7, "init_bit_logit": 0.6}),
        ("deadzone", {"init_deadzone_logit": 0.7, "scale": "learned"}),
        ("deadzone", {"scale": "learned", "granularity": "channel"}),
        (Squash, {}),
    ],
)
def test_detached_quantizer_parameters_get_no_gradient_and_weights_the_same(quantizer, kwargs, context):
    grads = []
    for detached in (False, True):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 2, 1))
        attach_weight_quantizers(model, ["2"], quantizer, kwargs)
        narrow(model)
        with quantizer_parameters_detached(model) if detached else nullcontext(), context(model):
            codeq.group_lasso_channels(model).backward()
        found = list(dict(named_quantizers(model))["0"].parameters())
        assert all(parameter.grad is None for parameter in found) if detached else found[-1].grad is not None
        grads.append(latent_weight(model[0]).grad)
    if kwargs.get("scale") == "learned":
        assert not grads[0].all(), "weights beyond the learned scale get no gradient"
    torch.testing.assert_close(grads[0], grads[1])


def test_after_an_exception_quantizer_parameters_are_attached_again():
    model = quantized()
    with pytest.raises(RuntimeError), quantizer_parameters_detached(model):
        raise RuntimeError
    codeq.group_lasso_channels(model).backward()
    assert dict(named_quantizers(model))["conv1"].logit_dz.grad is not None


# ------------------------------------------------------------------------------------------------ scales that collapse


def test_a_scale_collapses_when_99_percent_of_the_weights_are_exactly_zero():
    model = quantized()
    assert collapsed_layers(model) == []
    with torch.no_grad():
        weight = latent_weight(model.layer3[1].conv1).view(-1)
        weight[: int(0.995 * len(weight))] = 0
    assert collapsed_layers(model) == ["layer3.1.conv1"]
    dict(named_quantizers(model))["layer3.1.conv1"].set_scale(torch.tensor(1e-3))  # held from now on
    assert collapsed_layers(model) == []


def test_a_learned_scale_is_as_small_as_its_bits_ask_for():
    model = quantized(scale="learned", max_bits=2)
    for _, quantizer in named_quantizers(model):
        quantizer.learned_absmax.data *= 0.4  # 1.03 of 2.58 standard deviations
    assert collapsed_layers(model) == []


def test_the_scale_over_nonzero_weights_does_not_collapse():
    model = quantized(absmax_over="nonzero")
    with torch.no_grad():
        weight = latent_weight(model.conv1).view(-1)
        weight[: int(0.995 * len(weight))] = 0
    assert collapsed_layers(model) == []


def test_weights_that_are_detached_in_inference_mode_train():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    attach_weight_quantizers(net, ["1"], "uniform", {"bitwidth": 2})
    with torch.inference_mode():
        detach_weight_quantizers(net)
    net(torch.rand(2, 4)).sum().backward()
    assert net[0].weight.grad is not None
