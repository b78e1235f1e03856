import copy

import pytest
import torch
from cases import each
from torch import nn

from codeq import (
    attach_weight_quantizers,
    constant,
    coupled_group_lasso,
    group_lasso_channels,
    l1_kernel_sparsity,
    named_quantizers,
    split_param_groups,
)
from codeq.quantizer.layers import latent_weight
from codeq.training.objective import Objective
from codeq.training.terms import SparsityTerm

INPUT = (3, 6, 6)


def make_model(quantizer="deadzone", **kwargs) -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 2 * 2, 7)
    )
    attach_weight_quantizers(model, [], quantizer, kwargs)
    model = model.double()
    for k, (_, q) in enumerate(named_quantizers(model)):
        if quantizer == "deadzone":
            q.logit_dz.data.fill_(1.0 + 0.1 * k)
            q.logit_bit.data.fill_(0.4 + 0.1 * k)
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, *INPUT, generator=generator).double(), torch.randint(7, (9,), generator=generator)


def term(loss, name="term", factor=1.0, schedule=None, step="gradient", detach=False) -> SparsityTerm:
    return SparsityTerm(name, loss, factor, schedule or constant(), step, detach)


def gradients(model):
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def is_theta(name):
    return name.endswith(("logit_dz", "logit_bit"))


def theta_of(model, lambda_dz=0.3, lambda_bit=0.2):
    _, dz, bit = split_param_groups(model)
    return [(dz, lambda_dz), (bit, lambda_bit)]


def cross_entropy(model, x, y):
    logits = model(x)
    return (logits.exp().sum(1).log() - logits[torch.arange(len(y)), y]).mean()


def filters(model):
    return sum(model[k].weight.square().flatten(1).sum(1).sqrt().sum() for k in (0, 2))


def kernels(model):
    return sum(model[k].weight.abs().sum() for k in (0, 2))


def theta_squares(model, lambda_dz=0.3, lambda_bit=0.2):
    return sum(lambda_dz * q.logit_dz**2 + lambda_bit * q.logit_bit**2 for _, q in named_quantizers(model))


def test_the_gradient_is_that_of_the_formula():
    model, (x, y) = make_model(), batch()
    plain = copy.deepcopy(model)
    total = cross_entropy(plain, x, y) + theta_squares(plain) + 0.05 * filters(plain) + 0.7 * kernels(plain)
    total.backward()
    terms = [term(group_lasso_channels, "filters"), term(l1_kernel_sparsity, "kernels")]
    logits, parts = Objective(model, terms, theta_of(model)).backward(model, x, y, [0.05, 0.7])
    torch.testing.assert_close(gradients(model), gradients(plain))
    assert any(gradients(model)[name].abs() > 1e-3 for name in gradients(model) if is_theta(name))
    torch.testing.assert_close(logits, plain(x).detach())
    expected = {
        "cross-entropy": cross_entropy(plain, x, y),
        "theta regularizer": theta_squares(plain),
        "filters": 0.05 * filters(plain),
        "kernels": 0.7 * kernels(plain),
    }
    assert parts.to_dict() == pytest.approx({name: value.item() for name, value in expected.items()})
    assert not parts.values.requires_grad
    assert not logits.requires_grad


def test_a_detached_term_moves_the_weights_and_leaves_the_logits_alone():
    model, (x, y) = make_model(), batch()
    without = copy.deepcopy(model)
    Objective(without, [], theta_of(without)).backward(without, x, y, [])
    attached = copy.deepcopy(model)
    Objective(attached, [term(group_lasso_channels)], theta_of(attached)).backward(attached, x, y, [0.5])
    terms = [term(group_lasso_channels, detach=True)]
    _, parts = Objective(model, terms, theta_of(model)).backward(model, x, y, [0.5])
    assert parts.to_dict()["term"] == pytest.approx(0.5 * filters(model).item())
    for name, gradient in gradients(model).items():
        # ŵ follows the latent weight one to one, so that these see the same gradient either way.
        torch.testing.assert_close(gradient, gradients(without if is_theta(name) else attached)[name])
    theta = [name for name in gradients(model) if is_theta(name) and "weight" in name and not name.startswith("5")]
    assert all((gradients(attached)[name] - gradients(without)[name]).abs() > 1e-4 for name in theta)
    assert not any(m.parameters_detached for m in model.modules() if hasattr(m, "parameters_detached"))


def test_the_regularizer_covers_the_logits_with_a_factor_alone():
    model, (x, y) = make_model(), batch()
    plain = copy.deepcopy(model)
    (cross_entropy(plain, x, y) + theta_squares(plain, 0.0, 0.2)).backward()
    Objective(model, [], theta_of(model, 0.0, 0.2)).backward(model, x, y, [])
    torch.testing.assert_close(gradients(model), gradients(plain))


def test_a_proximal_term_is_not_in_the_loss_and_acts_on_the_latent_weights():
    model, (x, y) = make_model(), batch()
    without = copy.deepcopy(model)
    Objective(without, [], []).backward(without, x, y, [])
    proximal = coupled_group_lasso(model, input_size=INPUT)
    objective = Objective(model, [term(proximal, step="proximal")], [])
    _, parts = objective.backward(model, x, y, [2.0])
    assert parts.to_dict()["term"] == 0
    torch.testing.assert_close(gradients(model), gradients(without))
    expected = copy.deepcopy(model)
    coupled_group_lasso(expected, input_size=INPUT).proximal_step(expected, 0.1 * 2.0)
    before = latent_weight(model[0]).detach().clone()
    objective.proximal_steps([2.0], lr=0.1)
    assert latent_weight(model[0]).norm() < before.norm()
    for layer, other in zip(model, expected, strict=True):
        if hasattr(layer, "weight"):
            torch.testing.assert_close(latent_weight(layer), latent_weight(other))


def test_a_gradient_term_takes_no_proximal_step():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    Objective(model, [term(coupled_group_lasso(model, input_size=INPUT))], []).proximal_steps([5.0], lr=1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, w):
        self.calls += 1
        return w * 1.0


@pytest.mark.parametrize(("detach", "calls"), [(False, 1), (True, 2)])
def test_each_weight_is_quantized_once_a_step_and_again_for_detached_terms(detach, calls):
    model, (x, y) = make_model(Counting), batch()
    terms = [term(group_lasso_channels, "a", detach=detach), term(l1_kernel_sparsity, "b", detach=detach)]
    objective = Objective(model, terms, [])
    for _, quantizer in named_quantizers(model):
        quantizer.calls = 0
    objective.backward(model, x, y, [1.0, 1.0])
    assert [quantizer.calls for _, quantizer in named_quantizers(model)][:2] == [calls, calls]


def test_a_step_sees_the_weights_that_the_last_one_left():
    model, (x, y) = make_model(), batch()
    objective = Objective(model, [term(group_lasso_channels)], [])
    _, before = objective.backward(model, x, y, [1.0])
    with torch.no_grad():
        latent_weight(model[0]).mul_(0.5)
    _, after = objective.backward(model, x, y, [1.0])
    assert after.to_dict()["term"] == pytest.approx(filters(model).item())
    assert after.to_dict()["term"] < before.to_dict()["term"]


@each("step", ["gradient", "proximal"])
@each("detach", [False, True])
def test_a_term_with_coefficient_0_is_not_computed(step, detach):
    class Forbidden:
        def __call__(self, _model):
            raise AssertionError("was computed")

        def proximal_step(self, _model, _amount):
            raise AssertionError("took a step")

    model, (x, y) = make_model(), batch()
    objective = Objective(
        model, [term(Forbidden(), "off", step=step, detach=detach), term(l1_kernel_sparsity, "on")], []
    )
    _, parts = objective.backward(model, x, y, [0.0, 1.0])
    objective.proximal_steps([0.0, 1.0], lr=0.1)
    assert parts.to_dict()["off"] == 0
    assert parts.to_dict()["on"] > 0


def test_the_batch_has_its_weight_and_the_terms_theirs():
    model, (x, y) = make_model(), batch()
    plain = copy.deepcopy(model)
    (0.4 * cross_entropy(plain, x, y) + theta_squares(plain) + 0.05 * filters(plain)).backward()
    objective = Objective(model, [term(group_lasso_channels)], theta_of(model))
    objective.backward(model, x, y, [0.05], weight=0.4)
    torch.testing.assert_close(gradients(model), gradients(plain))


def test_smoothed_labels_spread_their_share_over_all_classes():
    model, (x, y) = make_model(), batch()
    logits = model(x).detach()
    wanted = torch.full_like(logits, 0.2 / 7)
    wanted[torch.arange(len(y)), y] += 0.8
    expected = -(wanted * (logits - logits.exp().sum(1, keepdim=True).log())).sum(1).mean()
    _, parts = Objective(model, [], [], label_smoothing=0.2).backward(model, x, y, [])
    assert parts.to_dict()["cross-entropy"] == pytest.approx(expected.item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_enter_the_loss_in_single_precision(dtype):
    model, (x, y) = make_model(), batch()
    logits, parts = Objective(model, [], []).backward(lambda x: model(x).to(dtype), x, y, [])
    assert (logits.dtype, parts.values.dtype) == (torch.float32, torch.float32)
    assert parts.to_dict()["cross-entropy"] == pytest.approx(cross_entropy(model, x, y).item(), rel=0.02)


def test_mixed_precision_computes_the_forward_pass_in_bfloat16_and_keeps_float32_parameters():
    model = make_model().float()
    x, y = batch()
    seen = []

    def forward(x):
        seen.append(model(x).dtype)
        return model(x)

    for bfloat16 in (True, False):
        _, parts = Objective(model, [term(group_lasso_channels)], [], bfloat16=bfloat16).backward(
            forward, x.float(), y, [1.0]
        )
        assert parts.values.dtype == torch.float32
    assert seen == [torch.bfloat16, torch.float32]
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_outside_it_a_mixed_precision_of_the_caller_does_not_leak_in():
    model, (x, y) = make_model().float(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = Objective(model, [], []).backward(model, x.float(), y, [])
    with torch.no_grad():
        torch.testing.assert_close(logits, model(x.float()))


@pytest.mark.parametrize("enabled", [True, False])
def test_mixed_precision_inside_another_autocast_uses_the_weights_of_now(enabled):
    """Autocast keeps the casts of plain weights until the outermost one ends."""
    net = nn.Linear(4, 3)
    objective, x, y = Objective(net, [], [], bfloat16=True), torch.ones(2, 4), torch.tensor([0, 2])
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        before, _ = objective.backward(net, x, y, [], 1.0)
        with torch.no_grad():
            net.weight.mul_(2)
            net.bias.mul_(2)
        after, _ = objective.backward(net, x, y, [], 1.0)
    assert torch.equal(after, 2 * before)
