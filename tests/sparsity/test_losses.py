"""The losses against loops over the paper's formulas, on the weights that the forward pass uses."""

import math
from fractions import Fraction

import numpy as np
import pytest
import reference
import torch
from cases import each
from torch import nn

from codeq import LOSSES, attach_weight_quantizers, group_lasso, group_lasso_blocks
from codeq.common.errors import CodeqError
from codeq.models import resnet20
from codeq.quantizer.layers import forward_weight, latent_weight, named_layers
from codeq.sparsity import Loss, build_loss, check_loss, supports_proximal

PLAIN = ["group_lasso_channels", "group_lasso_blocks", "l1_kernel_sparsity", "group_lasso"]


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def ones():
    convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))
    for conv in convs:
        nn.init.ones_(conv.weight)
    return convs


def weights_of(model, kind):
    return [forward_weight(m).detach().double().numpy() for _, m in named_layers(model) if isinstance(m, kind)]


def oracle(name, model, **kwargs):
    convs, linears = weights_of(model, nn.Conv2d), weights_of(model, nn.Linear)
    if name == "group_lasso":
        return reference.group_lasso(linears, convs, **kwargs)
    return getattr(reference, name)(convs, **kwargs)


@each(
    ("name", "value"),
    [
        ("group_lasso_channels", 4 * math.sqrt(27) + 48),
        ("l1_kernel_sparsity", 396),
        ("group_lasso_blocks", math.sqrt(108) + 2 * math.sqrt(144)),
        ("group_lasso", 1e-4 * (27 * 2 + 36 * math.sqrt(8))),
    ],
)
def test_values_on_two_convolutions_of_ones(name, value):
    convs = ones()
    assert build_loss(name, {}, convs)(convs).item() == pytest.approx(value, rel=1e-6)


@each("quantized", [False, True])
@each(
    ("name", "kwargs"),
    [
        *((name, {}) for name in PLAIN),
        *(("group_lasso_blocks", {"block_size": size}) for size in (1, 3, 64)),
        ("group_lasso", {"lambda_linear": 0.3, "lambda_conv": 0.7}),
    ],
)
def test_losses_equal_the_loops_on_what_the_forward_pass_uses(name, kwargs, quantized):
    model = small_net().double()
    if quantized:
        attach_weight_quantizers(model, [], "deadzone", {"max_bits": 4, "init_deadzone_logit": 0.7})
        model.double()
    loss = build_loss(name, kwargs, model)(model)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(oracle(name, model, **kwargs), rel=1e-12)


def test_quantized_and_latent_weights_give_different_losses():
    model = small_net()
    before = build_loss("l1_kernel_sparsity", {}, model)(model)
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.5})
    assert build_loss("l1_kernel_sparsity", {}, model)(model) < 0.9 * before


@each("name", [*PLAIN, "coupled_group_lasso"])
def test_gradients_reach_weights_and_quantizer_parameters(name):
    model = resnet20()
    attach_weight_quantizers(model, [], "deadzone", {"init_bit_logit": 0.6, "init_deadzone_logit": 0.8})
    build_loss(name, {}, model)(model).backward()
    conv = model.layer1[0].conv1
    for parameter in (latent_weight(conv), *conv.parametrizations.weight[0].quantizer.parameters()):
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).any()


@each("name", PLAIN)
def test_the_gradient_is_the_derivative(name):
    model = small_net().double()
    loss = build_loss(name, {}, model)
    loss(model).backward()
    weight, step = model[2].weight, 1e-6
    direction = torch.randn_like(weight)
    slope = (weight.grad * direction).sum().item()
    with torch.no_grad():
        weight += step * direction
        above = oracle(name, model)
        weight -= 2 * step * direction
        below = oracle(name, model)
    assert slope == pytest.approx((above - below) / (2 * step), rel=1e-5)


@each("quantized", [False, True])
@each("name", PLAIN)
def test_a_model_of_zeros_has_loss_exactly_zero_and_finite_gradients(name, quantized):
    model = small_net()
    if quantized:
        attach_weight_quantizers(model, [], "deadzone", {})
    for _, layer in named_layers(model):
        nn.init.zeros_(latent_weight(layer))
    loss = build_loss(name, {}, model)(model)
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@each("name", PLAIN)
def test_factors_by_pattern_scale_a_layers_share(name):
    model = small_net()
    share = {}
    for kept in ("0", "2", "7"):
        factors = {other: 0.0 for other in ("0", "2", "7") if other != kept}
        share[kept] = build_loss(name, {"weights": factors}, model)(model).item()
    both = build_loss(name, {"weights": {"0": 2.0, "2": 0.5}}, model)(model).item()
    assert both == pytest.approx(2 * share["0"] + 0.5 * share["2"] + share["7"], rel=1e-6)


@each("name", [*PLAIN, "coupled_group_lasso"])
def test_a_pattern_that_matches_no_layer_is_a_clear_error(name):
    model = resnet20()
    with pytest.raises(CodeqError, match=r"weights: pattern 'layer9\.\*' matches no conv or linear layer"):
        build_loss(name, {"weights": {"layer9.*": 2.0}}, model)(model)


@each("size", [0, -1, 2.0, "4"])
def test_a_block_of_no_filters_is_a_clear_error(size):
    with pytest.raises(CodeqError, match=rf"block_size={size!r}: must be an integer of at least 1"):
        group_lasso_blocks(block_size=size)


@each("factor", [-1, float("nan"), "2", None])
def test_factors_that_would_reward_large_weights_are_refused(factor):
    for name in ("lambda_linear", "lambda_conv"):
        with pytest.raises(CodeqError, match=rf"{name}={factor!r}: must be .*at least 0"):
            group_lasso(resnet20(), **{name: factor})


def test_a_model_without_such_layers_has_loss_zero():
    linear = nn.Sequential(nn.Linear(3, 2))
    assert all(build_loss(name, {}, linear)(linear).item() == 0.0 for name in PLAIN[:3])
    assert build_loss("group_lasso", {}, linear)(linear).item() > 0


@each(
    ("name", "kwargs", "message"),
    [
        ("group_laso", {}, r"loss 'group_laso' is unknown\. Did you mean 'group_lasso'"),
        ("group_lasso", {"lambda_lin": 1}, r"no argument 'lambda_lin'\. Did you mean 'lambda_linear'"),
        ("group_lasso", {"model": 1}, "no argument 'model'"),
        ("group_lasso_blocks", {"blocksize": 1}, r"Did you mean 'block_size'"),
        ("coupled_group_lasso", {"batch_norm": True}, r"Did you mean 'batchnorm'"),
    ],
)
def test_mistakes_are_told_before_a_model_exists(name, kwargs, message):
    with pytest.raises(CodeqError, match=message):
        check_loss(name, kwargs)


def test_users_add_functions_and_classes_of_their_own(monkeypatch):
    monkeypatch.setitem(LOSSES, "l2", lambda net, power=2: sum(p.abs().pow(power).sum() for p in net.parameters()))

    class Capped(Loss):
        def __init__(self, cap):
            super().__init__("capped", {"cap": cap})

        def __call__(self, model):
            return torch.stack([p.abs().sum().clamp(max=self.kwargs["cap"]) for p in model.parameters()]).sum()

    monkeypatch.setitem(LOSSES, "capped", Capped)
    model = ones()
    assert build_loss("l2", {"power": 1}, model)(model).item() == pytest.approx(
        sum(np.abs(p.detach().numpy()).sum() for p in model.parameters()), rel=1e-6
    )
    capped = build_loss("capped", {"cap": 1.0}, model)
    assert 2.0 <= capped(model).item() <= 4.0  # two weights of ones, two random biases
    assert repr(capped) == "capped(cap=1.0)"
    with pytest.raises(CodeqError, match="loss 'capped' needs the argument 'cap'"):
        build_loss("capped", {}, model)


@pytest.mark.parametrize("kwargs", [{}, {"input_size": (1, 2, 2)}])
def test_a_loss_per_model_gets_the_model_and_the_size_of_its_inputs(monkeypatch, kwargs):
    class Spatial(Loss):
        per_model = True

        def __init__(self, model, input_size):
            super().__init__("spatial", {})
            self.seen = model, input_size

    monkeypatch.setitem(LOSSES, "spatial", Spatial)
    model = ones()
    assert build_loss("spatial", kwargs, model, input_size=(3, 8, 8)).seen == (
        model,
        kwargs.get("input_size", (3, 8, 8)),
    )
    with pytest.raises(CodeqError, match="no argument 'model'"):
        check_loss("spatial", {"model": model})


def test_of_the_built_in_losses_the_coupled_lasso_alone_offers_a_proximal_step():
    assert [name for name in LOSSES if supports_proximal(name)] == ["coupled_group_lasso"]
    with pytest.raises(CodeqError, match="loss 'coupled' is unknown"):
        supports_proximal("coupled")


@each(
    ("weights", "message"),
    [
        ([1, 2], r"weights=\[1, 2\]: must map layer patterns to factors"),
        ("fc1", r"weights=fc1: must map"),
        ({"0": "high"}, r"'0': 'high' must be a finite number of at least 0"),
        ({0: 0.5}, r"weights: pattern 0 must be text, the name of a layer or a glob on it"),
        ({"0": -1}, "at least 0"),
        ({"0": True}, "at least 0"),
        ({"0": math.nan}, "at least 0"),
        ({"0": math.inf}, "'inf' must be a finite number"),
        ([7] * 10_000, r"^weights=.{200}: must map"),
    ],
)
@each("name", [*PLAIN, "coupled_group_lasso"])
def test_factors_that_are_none_are_a_clear_error(name, weights, message):
    model = ones()
    with pytest.raises(CodeqError, match=message):
        build_loss(name, {"weights": weights}, model)(model)


@each("factor", [np.sqrt(0.25), np.float32(0.5), Fraction(1, 2)])
@each("name", [*PLAIN, "coupled_group_lasso"])
def test_factors_are_numbers_of_any_kind(name, factor):
    model = small_net()
    found, expected = (build_loss(name, {"weights": {"*": f}}, model, (3, 8, 8))(model) for f in (factor, 0.5))
    assert torch.equal(found, expected)


@each("name", [*PLAIN, "coupled_group_lasso"])
def test_half_precision_weights_are_summed_in_single_precision(name):
    model = small_net()
    expected = build_loss(name, {}, model, (3, 8, 8))(model.bfloat16().float()).item()
    found = build_loss(name, {}, model, (3, 8, 8))(model.bfloat16())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-6)


def tied_net():
    net = small_net()
    net.append(nn.Linear(5, 6)).append(nn.Linear(6, 5))
    net[9].weight = net[7].weight
    net.append(nn.Conv2d(4, 6, 3, groups=2)).append(nn.Conv2d(3, 4, 3))
    net[10].weight, net[11].weight = net[2].weight, net[0].weight
    return net


@each("quantized", [False, True])
@each("name", PLAIN)
def test_a_tied_weight_counts_once_with_the_factor_of_its_first_layer(name, quantized):
    tied = tied_net()
    apart = nn.Sequential(*small_net(), nn.Linear(5, 6))
    apart.load_state_dict({key: value for key, value in tied.state_dict().items() if key in apart.state_dict()})
    for model in (tied, apart):
        if quantized:
            attach_weight_quantizers(model, [], "deadzone", {"max_bits": 4, "init_deadzone_logit": 0.7})
    assert build_loss(name, {}, tied)(tied).item() == pytest.approx(oracle(name, apart), rel=1e-6)
    factors = {"0": 3.0, "11": 5.0}
    weighted = build_loss(name, {"weights": factors}, tied)(tied).item()
    assert weighted == pytest.approx(build_loss(name, {"weights": {"0": 3.0}}, apart)(apart).item(), rel=1e-6)


@each(
    ("name", "value"),
    [
        # Output channels 0 … 3 of a transposed convolution 6 → 4 in two groups, 3 inputs and 2 × 2 weights each, of
        # the values 1, 2, 3 and 4.
        ("group_lasso_channels", math.sqrt(12) * (1 + 2 + 3 + 4)),
        ("group_lasso_blocks", math.sqrt(12 * (1 + 4 + 9)) + math.sqrt(12 * 16)),
        ("l1_kernel_sparsity", 12 * (1 + 2 + 3 + 4)),
        ("group_lasso", 12 * math.sqrt(1 + 4 + 9 + 16)),
    ],
)
def test_filters_of_a_transposed_convolution_are_its_output_channels(name, value):
    net = nn.Sequential(nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False))
    with torch.no_grad():  # stored as [c_in, c_out / groups, 2, 2]
        for c_in in range(6):
            for c_out in range(2):
                net[0].weight[c_in, c_out] = 1 + 2 * (c_in // 3) + c_out
    kwargs = {"group_lasso_blocks": {"block_size": 3}, "group_lasso": {"lambda_conv": 1.0}}.get(name, {})
    assert build_loss(name, kwargs, net)(net).item() == pytest.approx(value, rel=1e-6)


@each("name", PLAIN)
def test_layers_without_weights_before_their_first_forward_are_refused_by_name(name):
    with pytest.raises(CodeqError, match=r"0\.weight has no values before the first forward pass"):
        build_loss(name, {}, nn.Sequential(nn.Conv2d(3, 4, 3)))(nn.Sequential(nn.LazyConv2d(4, 3)))
