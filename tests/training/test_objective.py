import copy
import math

import pytest
import torch
from torch import nn

from codeq import (
    ExperimentConfig,
    attach_weight_quantizers,
    constant,
    coupled_group_lasso,
    group_lasso_channels,
    l1_kernel_sparsity,
    linear_warmup,
    named_quantizers,
    split_param_groups,
)
from codeq.common.errors import CodeqError
from codeq.models import build_model
from codeq.quantizer.attach import latent_weight
from codeq.training.objective import Diverged, FiniteGuard, Objective, SparsityTerm, build_terms

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
    terms = [term(group_lasso_channels), term(l1_kernel_sparsity)]
    logits, parts = Objective(model, terms, theta_of(model)).backward(model, x, y, [0.05, 0.7])
    torch.testing.assert_close(gradients(model), gradients(plain))
    assert any(gradients(model)[name].abs() > 1e-3 for name in gradients(model) if is_theta(name))
    torch.testing.assert_close(logits, plain(x).detach())
    expected = [
        cross_entropy(plain, x, y),
        torch.zeros(()),
        theta_squares(plain),
        0.05 * filters(plain),
        0.7 * kernels(plain),
    ]
    assert parts.tolist() == pytest.approx([value.item() for value in expected])
    assert not parts.requires_grad
    assert not logits.requires_grad


def test_a_detached_term_moves_the_weights_and_leaves_the_logits_alone():
    model, (x, y) = make_model(), batch()
    without = copy.deepcopy(model)
    Objective(without, [], theta_of(without)).backward(without, x, y, [])
    attached = copy.deepcopy(model)
    Objective(attached, [term(group_lasso_channels)], theta_of(attached)).backward(attached, x, y, [0.5])
    terms = [term(group_lasso_channels, detach=True)]
    _, parts = Objective(model, terms, theta_of(model)).backward(model, x, y, [0.5])
    assert parts[3].item() == pytest.approx(0.5 * filters(model).item())
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
    assert parts[3] == 0
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
    terms = [term(group_lasso_channels, detach=detach), term(l1_kernel_sparsity, detach=detach)]
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
    assert after[3] == pytest.approx(filters(model).item())
    assert after[3] < before[3]


@pytest.mark.parametrize("step", ["gradient", "proximal"])
@pytest.mark.parametrize("detach", [False, True])
def test_a_term_with_coefficient_0_is_not_computed(step, detach):
    class Forbidden:
        def __call__(self, _model):
            raise AssertionError("was computed")

        def proximal_step(self, _model, _amount):
            raise AssertionError("took a step")

    model, (x, y) = make_model(), batch()
    objective = Objective(model, [term(Forbidden(), step=step, detach=detach), term(l1_kernel_sparsity)], [])
    _, parts = objective.backward(model, x, y, [0.0, 1.0])
    objective.proximal_steps([0.0, 1.0], lr=0.1)
    assert parts[3] == 0
    assert parts[4] > 0


def test_the_coefficient_is_lambda_times_the_schedule():
    warming = term(group_lasso_channels, factor=0.5, schedule=linear_warmup(delay=10, ramp=4))
    assert [warming.coefficient(epoch, 100) for epoch in (0, 10, 11, 12, 14, 99)] == [0, 0, 0.125, 0.25, 0.5, 0.5]


def test_terms_are_built_as_configured_each_under_a_name_of_its_own():
    terms = [
        {"name": "group_lasso", "lambda": 0.5, "kwargs": {"lambda_linear": 1.0, "lambda_conv": 0.0}},
        {"name": "group_lasso", "lambda": 2.0, "detach_quantizer": True},
        {"name": "coupled_group_lasso", "step": "proximal", "schedule": {"name": "constant", "kwargs": {"value": 3.0}}},
    ]
    config = ExperimentConfig("tiny", model="mlp", loss_terms=terms)
    model = build_model(config.model, 10, config.model_kwargs, quantizer=config.quantizer)
    first, second, third = build_terms(config, model, (3, 32, 32))
    assert [t.name for t in (first, second, third)] == ["group_lasso", "group_lasso_2", "coupled_group_lasso"]
    assert [t.coefficient(0, 10) for t in (first, second, third)] == [0.5, 2.0, 3.0]
    assert [t.step for t in (first, second, third)] == ["gradient", "gradient", "proximal"]
    assert [t.detach_quantizer for t in (first, second, third)] == [False, True, False]
    columns = sum(model.get_submodule(name).weight.norm(dim=0).sum() for name in ("fc1", "fc2", "fc3"))
    assert first.loss(model).item() == pytest.approx(columns.item(), rel=1e-5)
    assert second.loss(model).item() == pytest.approx(1e-4 * columns.item(), rel=1e-5)


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
    assert parts[0].item() == pytest.approx(expected.item())


# --- the guard --------------------------------------------------------------------------------------------------------


def guarded(every, optimizer=None):
    objective = Objective(make_model(), [term(group_lasso_channels, name="lasso")], [])
    return FiniteGuard(objective, every), optimizer or torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [0, 2, 3])
def test_whatever_part_is_not_finite_stops_at_once_and_is_named_with_its_place(bad, part):
    guard, optimizer = guarded(every=1)
    parts = torch.tensor([0.5, 0.0, 0.25, 2.0])
    guard.watch(optimizer, parts, epoch=6, batch=0)
    parts[part] = bad
    shown = ["cross-entropy = 0.5", "theta regularizer = 0.25", "lasso = 2"]
    place = max(part - 1, 0)  # without a teacher its part is not shown
    shown[place] = f"{shown[place].partition(' = ')[0]} = {bad}"
    with pytest.raises(Diverged) as raised:
        guard.watch(optimizer, parts, epoch=6, batch=1)
    assert str(raised.value) == f"the loss is not finite in epoch 7, batch 2: {', '.join(shown)}"
    assert isinstance(raised.value, CodeqError)


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_bad_batch_between_two_looks_changes_no_weight_and_is_reported_at_the_next_look(kind):
    weight = nn.Parameter(torch.ones(4))
    optimizer = OPTIMIZERS[kind]([weight])
    guard, _ = guarded(every=3, optimizer=optimizer)
    good, bad = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, math.nan])
    weight.grad = torch.full((4,), math.nan)
    guard.watch(optimizer, bad, epoch=0, batch=0)
    optimizer.step()
    assert weight.tolist() == [1, 1, 1, 1]
    weight.grad = torch.ones(4)
    guard.watch(optimizer, good, epoch=0, batch=1)
    with pytest.raises(Diverged, match=r"epoch 1, batch 1: .*lasso = nan"):
        guard.watch(optimizer, good, epoch=0, batch=2)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_good_batches_are_stepped_as_without_the_guard(kind):
    weights = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizers = [OPTIMIZERS[kind]([weight]) for weight in weights]
    guard, _ = guarded(every=3, optimizer=optimizers[0])
    for step in range(7):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = torch.full((4,), 1.0 + step)
            if optimizer is optimizers[0]:
                guard.watch(optimizer, torch.tensor([1.0, 0.0, 0.0, 0.0]), epoch=0, batch=step)
            optimizer.step()
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.ones(4))


def test_the_first_of_several_bad_batches_is_the_one_reported():
    guard, optimizer = guarded(every=50)
    for k, value in enumerate([1.0, math.inf, math.nan, 1.0]):
        guard.watch(optimizer, torch.tensor([value, 0.0, 0.0, 0.0]), epoch=2, batch=k)
    with pytest.raises(Diverged, match=r"epoch 3, batch 2: cross-entropy = inf"):
        guard.check(epoch=2)


def test_a_good_epoch_passes_the_check_at_its_end():
    guard, optimizer = guarded(every=50)
    guard.watch(optimizer, torch.zeros(4), epoch=0, batch=0)
    guard.check(epoch=0)
