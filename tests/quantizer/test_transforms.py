"""`torch.func` on quantized models: gradients of single samples and of several networks at once."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrize

from codeq import attach_activation_quantizers, calibrate
from codeq.quantizer.attach import attach_weight_quantizers, named_quantizers
from codeq.quantizer.fused import fused_quantization

OPTIONS = [
    {},
    {"learnable_bit": False},
    {"scale": "learned"},
    {"scale": "learned", "granularity": "channel", "grid": "affine"},
]
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def network(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    attach_weight_quantizers(model, [], "deadzone", {"init_bit_logit": 0.6, "init_deadzone_logit": 0.7, **options})
    attach_activation_quantizers(model, X, 4, "lsq")
    calibrate(model, [X])
    return model.eval()


def values(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def loss_of(model):
    return lambda parameters, x: functional_call(model, parameters, (x,)).square().sum()


def gradients(model, parameters, x):
    """Gradients by `backward`, without `torch.func`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameters[name])
    model.zero_grad()
    model(x).square().sum().backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


def stacked(parts):
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item(), msg=name)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_are_those_of_backward_also_of_each_sample(options):
    model = network(options)
    parameters = values(model)
    each = [gradients(model, parameters, X[k : k + 1]) for k in range(len(X))]
    assert_same(grad(loss_of(model))(parameters, X[:1]), each[0])
    assert_same(vmap(grad(loss_of(model)), in_dims=(None, 0))(parameters, X.unsqueeze(1)), stacked(each))


@pytest.mark.parametrize("options", OPTIONS)
def test_several_networks_are_computed_at_once(options):
    model = network(options)
    several = [{name: (1 + k / 5) * value for name, value in values(model).items()} for k in range(2)]
    expected, parameters = stacked([gradients(model, one, X) for one in several]), stacked(several)
    networks = vmap(loss_of(model), in_dims=(0, None))
    assert_same(vmap(grad(loss_of(model)), in_dims=(0, None))(parameters, X), expected)
    assert_same(grad(lambda p: networks(p, X).sum())(parameters), expected)


# --- inside the context of fused quantization -------------------------------------------------------------------------


def substitutes(model):
    """Other values of all parameters, of the weights alone, and of the quantizers' parameters alone."""
    others = {name: 0.5 * value for name, value in values(model).items()}
    theta = {name for name in others if "logit" in name or "absmax" in name}
    yield others
    yield {name: value for name, value in others.items() if name not in theta}
    yield {name: value for name, value in others.items() if name in theta}


@pytest.mark.parametrize("options", [*OPTIONS, {"scale": "held"}])
def test_other_parameters_are_quantized_on_their_own_inside_the_fused_context(options):
    model = network(options)
    own = model(X)
    for parameters in [*substitutes(model), {name: buffer + 1 for name, buffer in model.named_buffers()}]:
        if not parameters:
            continue
        expected = functional_call(model, parameters, (X,))
        with fused_quantization(model):
            assert torch.equal(functional_call(model, parameters, (X,)), expected)
            torch.testing.assert_close(model(X), own)
            assert torch.equal(functional_call(model, parameters, (X,)), expected)
        with parametrize.cached(), fused_quantization(network({})), fused_quantization(model):
            torch.testing.assert_close(model(X), own)


def test_transforms_inside_the_fused_context_have_the_gradients_of_those_outside():
    model = network({})
    parameters = values(model)
    expected = grad(loss_of(model))(parameters, X)
    with fused_quantization(model):
        own = model(X)
        assert_same(grad(loss_of(model))(parameters, X), expected)
        assert torch.equal(model(X), own)


def test_the_own_parameters_keep_what_was_quantized_together(monkeypatch):
    model = network({})
    for _, quantizer in named_quantizers(model):
        monkeypatch.setattr(type(quantizer), "_grid", None)
    with fused_quantization(model):
        weight = model[0].weight
        assert model[0].weight is weight
        functional_call(model, dict(model.named_parameters()), (X,)).sum().backward()
