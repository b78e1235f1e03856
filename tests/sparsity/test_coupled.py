import copy

import numpy as np
import pytest
import torch
from cases import each, few
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from codeq.common.errors import CodeqError
from codeq.graph.channels import coupled_groups
from codeq.graph.tracing import trace
from codeq.models import resnet20
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.quantizer.layers import latent_weight
from codeq.quantizer.patterns import match_factors
from codeq.sparsity import coupled_group_lasso

SIZE = (3, 8, 8)


class SelfReading(nn.Module):
    """A residual block of one convolution: it reads and writes the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.stem(x))
        x = torch.relu(x + self.block(x))
        return self.fc(x.mean((2, 3)))


MODELS = {"resnet20": resnet20, "self-reading": SelfReading}


def norms_by_hand(
    model: nn.Module, factors=None, *, classifier=False, batchnorm=False, by_size=False, latent=False
) -> list[float]:
    """Norm of each group, element by element, each element of a group once."""
    factors = factors or {}
    groups = coupled_groups(trace(model, SIZE))
    weights = {layer: weight(model, layer, latent) for layer in groups.writers}  # once: reading one quantizes it
    norms = []
    for group in range(groups.count):
        writers, readers = groups.members(group)
        elements: dict[tuple, float] = {}
        for layer, c in writers:
            w = weights[layer] * factors.get(layer, 1)
            elements |= {(layer, c, i): (w[c, i] ** 2).sum() for i in range(w.shape[1])}
        for layer, c in readers:
            if layer in groups.classifiers and not classifier:
                continue
            w = weights[layer] * factors.get(layer, 1)
            elements |= {(layer, o, c): (w[o, c] ** 2).sum() for o in range(w.shape[0])}
        if batchnorm:
            for name, belongs in groups.batchnorms.items():
                for c in np.flatnonzero(belongs == group):
                    norm = model.get_submodule(name)
                    elements |= {(name, "w", c): norm.weight[c].item() ** 2, (name, "b", c): norm.bias[c].item() ** 2}
        kernels = {layer: weights[layer][0, 0].size for layer, *_ in elements if layer in weights}
        size = sum(kernels.get(layer, 1) for layer, *_ in elements)  # of a BatchNorm, one number each
        norms.append(float(np.sqrt(sum(elements.values()) * (size if by_size else 1))))
    return norms


def weight(model: nn.Module, layer: str, latent: bool) -> np.ndarray:
    module = model.get_submodule(layer)
    return (latent_weight(module) if latent else module.weight).detach().double().numpy()


@pytest.mark.parametrize(
    "options",
    few(
        [
            {"by_size": True, "batchnorm": True, "classifier": True},
            {},
            {"classifier": True},
            {"batchnorm": True},
            {"classifier": True, "batchnorm": True},
            {"by_size": True},
        ],
        2,
    ),
)
@each("name", MODELS)
def test_the_loss_is_the_sum_of_the_groups_norms(name, options):
    model = MODELS[name]().double()
    loss = coupled_group_lasso(model, input_size=SIZE, **options)
    assert loss(model).item() == pytest.approx(sum(norms_by_hand(model, **options)), rel=1e-12)


@each("classifier", [False, True])
def test_layers_that_only_read_groups_are_not_pruned(classifier):
    loss = coupled_group_lasso(SelfReading(), classifier=classifier, input_size=SIZE)
    assert loss.pruned_layers == ["stem", "block"]


def test_what_counts_nothing_adds_nothing_to_the_size_of_a_group():
    model = SelfReading().double()
    nn.init.uniform_(model.norm.bias)
    loss = coupled_group_lasso(model, batchnorm=True, by_size=True, weights={"*": 0}, input_size=SIZE)
    pairs = torch.stack([model.norm.weight, model.norm.bias]).detach().norm(dim=0)
    assert loss(model).item() == pytest.approx(float(2**0.5 * pairs.sum()), rel=1e-12)


@pytest.mark.parametrize("strength", [0.99, 1.01])
def test_channels_that_nothing_holds_die_at_strength_one(strength):
    """The rule of docs/concepts.md: strength = √2 · λ · Σ lr, for groups of one BatchNorm and of many."""
    model, steps = resnet20(), 100
    loss = coupled_group_lasso(model, batchnorm=True, by_size=True, keep_norms=True, weights={"*": 0})
    for _ in range(steps):
        loss.proximal_step(model, strength / 2**0.5 / steps)
    filters = [m.weight.detach().flatten(1).norm(dim=1) for m in model.modules() if isinstance(m, nn.Conv2d)]
    scales = [m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    alive = torch.cat(filters + scales) > 0
    assert not alive.any() if strength > 1 else alive.all()


def test_factors_scale_a_layers_weights_in_its_groups():
    model = SelfReading().double()
    loss = coupled_group_lasso(model, input_size=SIZE, weights={"block": 3.0})
    assert loss(model).item() == pytest.approx(sum(norms_by_hand(model, {"block": 3.0})), rel=1e-12)
    with pytest.raises(CodeqError, match="'blok' matches no"):
        coupled_group_lasso(model, input_size=SIZE, weights={"blok": 3.0})


def test_an_input_size_in_the_place_of_an_option_is_refused():
    with pytest.raises(CodeqError, match=r"classifier=\(3, 32, 32\) must be True or False"):
        coupled_group_lasso(resnet20(), (3, 32, 32))


def test_it_acts_on_the_quantized_weights():
    model = resnet20()
    attach_weight_quantizers(
        model, [], "deadzone", {"init_deadzone_logit": 0.4, "fixed_bit_val": 2, "learnable_bit": False}
    )
    loss = coupled_group_lasso(model, input_size=SIZE)
    assert loss(model).item() == pytest.approx(sum(norms_by_hand(model)), rel=1e-5)
    assert loss(model).item() != pytest.approx(sum(norms_by_hand(model, latent=True)), rel=1e-2)


def test_the_gradient_is_the_derivative():
    model = SelfReading().double()
    loss = coupled_group_lasso(model, input_size=SIZE)

    def value(stem, block):
        return torch.func.functional_call(
            _Loss(loss, model), {"model.stem.weight": stem, "model.block.weight": block}, ()
        )

    weights = [model.stem.weight.detach().requires_grad_(), model.block.weight.detach().requires_grad_()]
    assert torch.autograd.gradcheck(value, weights)


class _Loss(nn.Module):
    def __init__(self, loss, model):
        super().__init__()
        self.loss, self.model = loss, model

    def forward(self):
        return self.loss(self.model)


def test_a_dead_group_among_living_ones_has_finite_gradients():
    model = SelfReading()
    with torch.no_grad():
        for w in (model.stem.weight, model.block.weight):
            w[1] = 0
        model.block.weight[:, 1] = 0
    loss = coupled_group_lasso(model, input_size=SIZE)(model)
    loss.backward()
    for w in (model.stem.weight, model.block.weight):
        assert w.grad.isfinite().all()
        assert (w.grad[1] == 0).all()
        assert (w.grad[0] != 0).any()


def test_a_model_of_zeros_has_loss_zero_and_finite_gradients():
    model = resnet20()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    loss = coupled_group_lasso(model, batchnorm=True, classifier=True)(model)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


class Opaque(nn.Module):
    """Its first convolution feeds something unknown: it is in no group."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = nn.Conv2d(3, 4, 1, bias=False)
        self.inner = nn.Conv2d(4, 4, 1, bias=False)
        self.last = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x):
        return self.last(self.inner(torch.sinc(self.alone(x))))


def test_convolutions_in_no_group_get_the_norms_of_their_filters():
    model = Opaque().double()
    loss = coupled_group_lasso(model, input_size=SIZE, weights={"alone": 0.5})
    assert loss.count == 4
    alone = np.linalg.norm(weight(model, "alone", False).reshape(4, -1), axis=1).sum()
    assert loss(model).item() == pytest.approx(sum(norms_by_hand(model)) + 0.5 * alone, rel=1e-12)


@each("batchnorm", [False, True])
@each("name", MODELS)
def test_the_proximal_step_scales_what_writes_each_group(name, batchnorm):
    model = MODELS[name]().double()
    nn.init.uniform_(model.get_submodule("norm" if name == "self-reading" else "bn1").bias)
    before = copy.deepcopy(model)
    norms = norms_by_hand(model, batchnorm=batchnorm)
    amount = float(np.median(norms))
    coupled_group_lasso(model, batchnorm=batchnorm, input_size=SIZE).proximal_step(model, amount)
    groups = coupled_groups(trace(model, SIZE))
    factor = np.append([max(0.0, 1 - amount / norm) for norm in norms], 1.0)
    assert (factor == 0).any()
    for layer, belongs in groups.writers.items():
        scale = factor[belongs].reshape(-1, *[1] * (weight(before, layer, True).ndim - 1))
        np.testing.assert_allclose(weight(model, layer, True), weight(before, layer, True) * scale, rtol=1e-9)
    for layer, belongs in groups.batchnorms.items():
        scale = factor[belongs] if batchnorm else 1.0
        for key in ("weight", "bias"):
            new, old = (getattr(m.get_submodule(layer), key).detach().numpy() for m in (model, before))
            np.testing.assert_allclose(new, old * scale, rtol=1e-9)


@each(
    ("name", "weights"),
    [
        ("self-reading", {"*": 0.1}),
        ("self-reading", {"stem": 0.3}),
        ("self-reading", {"stem": 0, "block": 4}),
        ("resnet20", {"layer2.*": 0.3, "layer3.*": 0}),
    ],
)
def test_the_proximal_step_weighs_layers_by_their_factors(name, weights):
    """Of the common factors of a group, it takes that of the least distance and penalty, here the best of many."""
    model = MODELS[name]().double()
    before, factors = copy.deepcopy(model), match_factors(model, weights)
    counted = {layer: float(factor > 0) for layer, factor in factors.items()}
    norms, penalties = (np.array(norms_by_hand(model, chosen)) for chosen in (counted, factors))
    amount = float(np.median(norms[norms > 0]))
    coupled_group_lasso(model, weights=weights, input_size=SIZE).proximal_step(model, amount)
    tried = np.linspace(0, 1, 20001)[:, None]
    best = tried[((1 - tried) ** 2 * norms**2 / 2 + amount * tried * penalties).argmin(0), 0]
    factor = np.append(np.where(norms > 0, best, 1.0), 1.0)
    assert (factor < 1).any()
    for layer, belongs in coupled_groups(trace(model, SIZE)).writers.items():
        scale = factor[belongs].reshape(-1, *[1] * (weight(before, layer, True).ndim - 1))
        found, old = weight(model, layer, True), weight(before, layer, True)
        np.testing.assert_allclose(found, old * scale, atol=1e-4 * np.abs(old).max())


def test_a_group_of_at_most_the_amount_becomes_exactly_zero_and_stays_so():
    model = SelfReading()
    loss = coupled_group_lasso(model, input_size=SIZE)
    loss.proximal_step(model, 1e6)
    assert not model.stem.weight.any()
    assert not model.block.weight.any()
    loss.proximal_step(model, 0.1)
    assert not model.stem.weight.any()
    assert model.fc.weight.all()


def test_layers_that_batchnorm_follows_keep_their_norm_while_groups_shrink_against_each_other():
    plain, kept = SelfReading(), SelfReading()
    kept.load_state_dict(plain.state_dict())
    before = plain.stem.weight.norm()
    amount = float(np.median(norms_by_hand(plain)))
    coupled_group_lasso(plain, input_size=SIZE).proximal_step(plain, amount)
    coupled_group_lasso(kept, keep_norms=True, input_size=SIZE).proximal_step(kept, amount)
    dead = plain.stem.weight.flatten(1).norm(dim=1) == 0
    assert 0 < dead.sum() < 4
    assert not kept.stem.weight[dead].any()
    assert kept.stem.weight.norm().item() == pytest.approx(before.item(), rel=1e-6)
    torch.testing.assert_close(kept.stem.weight / before, plain.stem.weight / plain.stem.weight.norm())
    assert torch.equal(kept.block.weight, plain.block.weight)  # a sum takes its result, no BatchNorm


def test_a_convolution_in_no_group_keeps_its_norm_while_its_filters_shrink_against_each_other():
    convs = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=2)
    net = nn.Sequential(*convs, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    with torch.no_grad():
        net[1].weight.mul_(torch.tensor([1.0, 2, 3, 4]).view(-1, 1, 1, 1))
    before = net[1].weight.detach().clone()
    norms = before.flatten(1).norm(dim=1)
    coupled_group_lasso(net, keep_norms=True, input_size=SIZE).proximal_step(net, norms.min().item())
    shrunk = before * (1 - norms.min() / norms).view(-1, 1, 1, 1)
    torch.testing.assert_close(net[1].weight.detach(), shrunk * before.norm() / shrunk.norm())


def test_a_layer_of_zeros_has_no_norm_to_keep():
    model = SelfReading()
    coupled_group_lasso(model, keep_norms=True, input_size=SIZE).proximal_step(model, 1e6)
    assert not model.stem.weight.any()


def test_the_proximal_step_shrinks_latent_weights_behind_quantizers():
    model = SelfReading()
    attach_weight_quantizers(model, [], "deadzone", {})
    before = latent_weight(model.stem).clone()
    coupled_group_lasso(model, input_size=SIZE).proximal_step(model, 0.1)
    assert (latent_weight(model.stem).abs() < before.abs()).all()


# --- frozen parameters and models without groups ----------------------------------------------------------------------


def freeze(model, *names):
    for name in names:
        layer = model.get_submodule(name)
        parameters = [latent_weight(layer)] if isinstance(layer, nn.Conv2d) else layer.parameters()
        for parameter in parameters:
            parameter.requires_grad_(False)


@each("quantized", [False, True])
@each("frozen", [["stem"], ["block"], ["norm"], ["stem", "block", "norm"]])
@each("keep_norms", [False, True])
def test_frozen_parameters_keep_their_values_and_the_others_shrink_as_without(frozen, keep_norms, quantized):
    model = SelfReading()
    nn.init.uniform_(model.norm.bias)
    if quantized:
        attach_weight_quantizers(model, [], "deadzone", {})
    before, free = copy.deepcopy(model), copy.deepcopy(model)
    freeze(model, *frozen)
    for net in (model, free):
        coupled_group_lasso(net, batchnorm=True, keep_norms=keep_norms, input_size=SIZE).proximal_step(net, 0.3)
    for name in ("stem", "block", "norm"):
        expected = before if name in frozen else free
        for one, other in zip(*(net.get_submodule(name).parameters() for net in (model, expected)), strict=True):
            assert torch.equal(one, other), name
    assert not torch.equal(free.norm.weight, before.norm.weight)


def test_a_shift_alone_may_be_frozen():
    model = SelfReading()
    nn.init.uniform_(model.norm.bias)
    model.norm.bias.requires_grad_(False)
    before = copy.deepcopy(model)
    coupled_group_lasso(model, batchnorm=True, input_size=SIZE).proximal_step(model, 0.1)
    assert torch.equal(model.norm.bias, before.norm.bias)
    assert (model.norm.weight < before.norm.weight).all()


def test_a_frozen_convolution_in_no_group_keeps_its_weights():
    model = Opaque()
    freeze(model, "alone")
    before = model.alone.weight.clone()
    coupled_group_lasso(model, input_size=SIZE).proximal_step(model, 0.1)
    assert torch.equal(model.alone.weight, before)


def test_a_batchnorm_without_scale_and_shift_adds_nothing():
    model = SelfReading().double()
    plain = coupled_group_lasso(model, input_size=SIZE)(model).item()
    model.norm = nn.BatchNorm2d(4, affine=False).double()
    for options in ({"batchnorm": True}, {"batchnorm": True, "by_size": True}):
        loss = coupled_group_lasso(model, input_size=SIZE, **options)
        loss.proximal_step(copy.deepcopy(model), 0.1)
        if "by_size" not in options:
            assert loss(model).item() == pytest.approx(plain, rel=1e-12)


@each("options", [{}, {"by_size": True}, {"batchnorm": True, "keep_norms": True}])
@each(
    ("net", "value"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), 0.0),
        (nn.Sequential(nn.Conv2d(3, 4, 1)), 0.0),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(256, 2)), None),
    ],
)
def test_a_model_without_a_group_is_none_of_its_business(net, value, options):
    before = copy.deepcopy(net)
    loss = coupled_group_lasso(net, input_size=SIZE, **options)
    assert loss.count == 0
    if value is not None:
        assert loss(net).item() == value
        loss.proximal_step(net, 1.0)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))


def test_layers_in_no_group_count_by_their_size_too():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(144, 2)).double()
    loss = coupled_group_lasso(net, by_size=True, input_size=SIZE)
    norms = [conv.weight.detach().numpy().reshape(4, -1) for conv in net[:2]]
    strengths = [filters.shape[1] ** 0.5 for filters in norms]  # of filters of 3 and of 18 weights
    norms = [np.linalg.norm(filters, axis=1) for filters in norms]
    assert loss(net).item() == pytest.approx(sum(f * of.sum() for f, of in zip(strengths, norms, strict=True)))
    loss.proximal_step(net, 0.01)
    for conv, f, of in zip(net[:2], strengths, norms, strict=True):
        left = np.linalg.norm(conv.weight.detach().numpy().reshape(4, -1), axis=1)
        np.testing.assert_allclose(left, np.maximum(of - 0.01 * f, 0), rtol=1e-12)


def test_a_proximal_step_on_computed_weights_is_refused_and_the_gradient_reaches_them():
    convs = nn.Sequential(nn.Conv2d(3, 4, 3), weight_norm(nn.Conv2d(4, 8, 3)), nn.Conv2d(8, 2, 1))
    loss = coupled_group_lasso(convs)
    with pytest.raises(CodeqError, match=r"filters of layer '1' do not become zero .* use the loss by its gradient"):
        loss.proximal_step(convs, 0.1)
    loss(convs).backward()
    assert convs[1].parametrizations.weight.original0.grad.abs().sum() > 0


def test_a_proximal_step_under_a_quantizer_without_a_level_zero_is_refused():
    class Binary(nn.Module):
        def forward(self, w):
            return torch.where(w >= 0, 1.0, -1.0)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1))
    attach_weight_quantizers(net, ["0", "2"], Binary, {})
    before = latent_weight(net[1]).detach().clone()
    with pytest.raises(CodeqError, match=r"filters of layer '1' do not become zero"):
        coupled_group_lasso(net).proximal_step(net, 0.1)
    assert torch.equal(latent_weight(net[1]), before)


def test_a_lone_convolution_is_shrunk_by_its_filters_norms():
    model = Opaque()
    before = model.alone.weight.detach().clone()
    coupled_group_lasso(model, input_size=SIZE).proximal_step(model, 0.1)
    norms = before.flatten(1).norm(dim=1)
    expected = before * (1 - 0.1 / norms).clamp(min=0).view(-1, 1, 1, 1)
    torch.testing.assert_close(model.alone.weight.detach(), expected)


def test_the_loss_works_for_a_copy_of_its_model():
    model = resnet20()
    loss = coupled_group_lasso(model)
    twin = copy.deepcopy(model)
    assert loss(twin).item() == loss(model).item()


def test_it_records_how_to_make_it_again():
    loss = coupled_group_lasso(resnet20(), batchnorm=True)
    assert (loss.name, loss.kwargs) == (
        "coupled_group_lasso",
        {"classifier": False, "batchnorm": True, "by_size": False, "keep_norms": False},
    )
    assert repr(loss) == "coupled_group_lasso(classifier=False, batchnorm=True, by_size=False, keep_norms=False)"


class Upsampling(nn.Module):
    """A convolution, a transposed one in two groups and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.up(self.conv(x).relu()).mean((2, 3)))


def test_a_transposed_convolution_shrinks_by_its_output_channels():
    net = Upsampling()
    loss = coupled_group_lasso(net, input_size=(3, 8, 8))
    assert loss.count == 0  # codeq does not follow the channels of a transposed convolution

    def norms():  # of each output channel: the input channels of its group, all kernels
        up = net.up.weight.detach()
        filters = [up[3 * (c // 2) : 3 * (c // 2) + 3, c % 2] for c in range(4)]
        return torch.stack([f.norm() for f in (*net.conv.weight.detach(), *filters)])

    before, value, biggest = norms(), loss(net).item(), net.up.weight.detach().clone()
    assert value == pytest.approx(before.sum().item(), rel=1e-6)
    loss.proximal_step(net, 0.1)
    assert torch.allclose(norms(), (before - 0.1).clamp(min=0), atol=1e-6)
    direction = net.up.weight.detach() / biggest  # one factor for each output channel
    for channel in range(4):
        factors = direction[3 * (channel // 2) : 3 * (channel // 2) + 3, channel % 2]
        assert torch.allclose(factors, factors.flatten()[0].expand_as(factors), atol=1e-5)


@each("made_in", [False, True])
def test_a_training_follows_a_measurement_in_inference_mode(made_in):
    model = SelfReading()
    with torch.inference_mode(made_in):
        loss = coupled_group_lasso(model, by_size=True, input_size=SIZE)
    with torch.inference_mode():
        measured = loss(model)
    value = loss(model)
    value.backward()
    assert value == measured
    assert model.stem.weight.grad.any()
