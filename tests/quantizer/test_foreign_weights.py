"""Weights that are not plain parameters of one layer: refused as a whole, or quantized and restored as they were."""

import pytest
import torch
from cases import each
from networks import Function
from torch import fx, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from codeq.common.errors import CodeqError
from codeq.quantizer.attach import (
    attach_weight_quantizers,
    detach_weight_quantizers,
    named_quantizers,
    split_param_groups,
    toggle_quantization,
)
from codeq.quantizer.layers import forward_weight, latent_weight


def plain_tensor(layer):
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return layer


def integers(layer):
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    return layer


def without_weight(layer):
    layer.weight = None
    return layer


def own_bias(layer):
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (weight_norm, r"has no parameter 'weight' \(its parameters: bias, weight_g, weight_v\)"),
        (parametrizations.weight_norm, r"already has parametrizations \(\{'weight': \['_WeightNorm'\]\}\)"),
        (spectral_norm, r"has no parameter 'weight' \(its parameters: bias, weight_orig\)"),
        (parametrizations.spectral_norm, r"already has parametrizations \(\{'weight': \['_SpectralNorm'\]\}\)"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"\(its parameters: bias, weight_orig\)"),
        (own_bias, r"already has parametrizations \(\{'bias': \['Tanh'\]\}\)"),
        (plain_tensor, r"has no parameter 'weight' \(its parameters: bias\)"),
        (without_weight, r"has no parameter 'weight' \(its parameters: bias\)"),
        (integers, r"weights of torch.int8 and shape \[4, 4\]: only floating-point"),
        (lambda _: nn.LazyLinear(4), r"has no weights before its first forward pass"),
        (lambda _: nn.Linear(4, 4, device="meta"), r"is on the meta device"),
        (lambda _: nn.Linear(4, 4, dtype=torch.complex64), r"weights of torch.complex64"),
        (lambda _: nn.Linear(4, 4).to(torch.float8_e5m2), r"quantizer DeadZoneQuantizer fails on weights of"),
    ],
)
def test_a_weight_that_cannot_be_quantized_is_refused_by_name_before_anything_changed(change, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(change(nn.Linear(4, 4))))
    before = type(model[0]), list(model.state_dict())
    with pytest.raises(CodeqError, match=message) as error:
        attach_weight_quantizers(model, [], "deadzone", {})
    assert str(error.value).startswith("layer '1.0'")
    assert (type(model[0]), list(model.state_dict())) == before
    assert attach_weight_quantizers(model, ["1.*"], "deadzone", {}) == ["0"], "excluded, it is nobody's business"
    detach_weight_quantizers(model)


def test_networks_without_layers_of_their_own_are_refused_for_what_they_are():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4))

        def forward(self, x):
            return nn.functional.linear(x, self.weight)

    with pytest.raises(CodeqError, match=r"a graph without conv or linear layers, as torch\.export makes"):
        attach_weight_quantizers(fx.symbolic_trace(Functional()), [], "deadzone", {})
    with pytest.raises(CodeqError, match="the network is compiled by TorchScript"):
        attach_weight_quantizers(torch.jit.script(nn.Linear(4, 4)), [], "deadzone", {})


@pytest.mark.filterwarnings("ignore:.*is a zero-element tensor|Initializing zero-element")
def test_a_layer_without_weights_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(0, 3))
    with pytest.raises(CodeqError, match=r"layer '1' \(Linear\) has no weights \(shape \[3, 0\]\)"):
        attach_weight_quantizers(model, [], "deadzone", {})
    assert type(model[0]) is nn.Linear


@each(
    ("change", "message"),
    [
        (lambda w: w.double(), r"returned torch.float64 \[2, 4\] for weights of torch.float32 \[2, 4\]"),
        (lambda w: w[:1], r"returned torch.float32 \[1, 4\] for weights"),
        (lambda _: None, "returned a NoneType, must be a tensor"),
        (lambda w: w @ w, "fails on weights of torch.float32"),
    ],
)
@each("enabled", [True, False])
def test_a_quantizer_that_does_not_fit_is_refused_before_anything_changed(change, message, enabled):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(CodeqError, match=message):
        attach_weight_quantizers(model, ["0"], Function, {"function": change}, enabled=enabled)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


def test_frozen_weights_are_quantized_and_stay_frozen():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    attach_weight_quantizers(model, [], "deadzone", {})
    base, dz, _ = split_param_groups(model)
    assert (len(base), len(dz)) == (3, 2)
    model(torch.randn(3, 4)).sum().backward()
    assert latent_weight(model[0]).grad is None
    detach_weight_quantizers(model)
    assert [layer.weight.requires_grad for layer in model] == [False, True]


@each("dtype", [torch.bfloat16, torch.float16, torch.float64])
@each("options", [{}, {"granularity": "channel", "scale": "learned"}])
def test_weights_of_any_float_type_keep_it(dtype, options):
    model = nn.Sequential(nn.Linear(8, 4)).to(dtype)
    attach_weight_quantizers(model, [], "deadzone", {"max_bits": 3, **options})
    assert model[0].weight.dtype == dtype
    assert 1 < len(model[0].weight.unique()) <= (7 if not options else 28)


# ------------------------------------------------------------------------------------------------------ tied weights


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model.eval()


def test_tied_weights_share_one_quantizer_and_stay_tied():
    model, x = tied(), torch.randn(5, 4)
    attach_weight_quantizers(model, [], "deadzone", {"max_bits": 3})
    first, second, third = (quantizer for _, quantizer in named_quantizers(model))
    assert first is second
    assert first is not third
    assert [len(group) for group in split_param_groups(model)] == [2 + 3, 2, 2]
    before = model(x)
    detach_weight_quantizers(model)
    assert torch.equal(model(x), before)
    assert model[0].weight is model[1].weight


def test_a_weight_that_is_also_used_as_float_stays_so():
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "head": nn.Linear(4, 7), "free": nn.Linear(4, 7)})
    model["head"].weight = model["free"].weight = model["embedding"].weight
    attach_weight_quantizers(model, ["free"], "deadzone", {"max_bits": 2})
    latent = model["embedding"].weight.detach().clone()
    quantized = forward_weight(model["head"]).detach().clone()
    assert not torch.equal(latent, quantized)
    detach_weight_quantizers(model)
    assert torch.equal(model["embedding"].weight, latent)
    assert model["free"].weight is model["embedding"].weight
    assert torch.equal(model["head"].weight, quantized)


def test_a_convolution_and_its_transpose_share_a_weight_but_no_scales():
    conv, back = nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 3, 3)
    back.weight = conv.weight
    model, x = nn.Sequential(conv, back), torch.randn(2, 3, 8, 8)
    attach_weight_quantizers(model, [], "deadzone", {"granularity": "channel", "scale": "learned", "max_bits": 3})
    assert [len(quantizer.learned_absmax) for _, quantizer in named_quantizers(model)] == [5, 3]
    before = model(x)
    detach_weight_quantizers(model)
    assert torch.equal(model(x), before)


def test_one_module_in_two_places_is_one_layer():
    layer = nn.Linear(4, 4)
    model, x = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(3, 4)
    assert attach_weight_quantizers(model, [], "deadzone", {"max_bits": 2}) == ["0"]
    before = model(x)
    detach_weight_quantizers(model)
    assert torch.equal(model(x), before)
    assert model[0] is model[2]


def test_an_optimizer_holds_the_same_parameters_after_detaching():
    model = nn.Sequential(nn.Linear(4, 2))
    parameters = list(model.parameters())
    attach_weight_quantizers(model, [], "deadzone", {})
    toggle_quantization(model, False)
    detach_weight_quantizers(model)
    assert {id(p) for p in model.parameters()} == {id(p) for p in parameters}


def test_a_weight_of_several_parameters_is_read_as_computed():
    layer = parametrizations.weight_norm(nn.Linear(4, 2))
    direction = layer.parametrizations.weight.original1
    expected = layer.parametrizations.weight.original0 * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(latent_weight(layer), expected)
    tanh = nn.Linear(4, 2)
    plain = tanh.weight
    parametrize.register_parametrization(tanh, "weight", nn.Tanh())
    assert latent_weight(tanh) is plain
