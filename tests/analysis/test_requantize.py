import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from cases import each
from run_tables import COMPACTED_WEIGHTS, DENSE_WEIGHTS, Halved
from torch import nn

from codeq import Evaluator, attach_weight_quantizers, named_quantizers
from codeq.analysis.requantize import Requantizer, bit_logit, dead_zone_logit
from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.models import resnet20
from codeq.quantizer.layers import latent_weight, named_layers


def quantized(quantizer: str = "deadzone", **kwargs) -> nn.Module:
    model = resnet20()
    attach_weight_quantizers(model, ["linear"], quantizer, kwargs)
    with torch.no_grad():
        latent_weight(model.layer2[0].conv1)[3].zero_()
        latent_weight(model.layer1[1].conv2)[:5].zero_()
    return model.eval()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b) -> bool:
    pd.testing.assert_frame_equal(a.layers, b.layers, check_exact=True)
    assert all(np.array_equal(a.liveness[name], b.liveness[name]) for name in b.liveness)
    keys = ["structured_bops_ratio", "structured_mac_ratio", "unstructured_bops_ratio", "unstructured_mac_ratio"]
    keys += ["structured_sparsity", "unstructured_sparsity", "mean_bits", "test_accuracy", "test_loss"]
    return all(getattr(a, key) == getattr(b, key) for key in keys)


@each("max_bits", [2, 3, 8, 16])
def test_the_logits_are_those_of_the_paper_formulas_in_float32(max_bits):
    for bits in range(2, max_bits + 1):
        theta = np.float32(bit_logit(bits, max_bits))
        assert np.round(np.tanh(np.abs(theta)) * np.float32(max_bits - 2) + 2) == bits
    for fraction in np.linspace(0, 1, 101):
        theta = np.float32(dead_zone_logit(float(fraction)))
        assert 1 - np.tanh(np.abs(theta)) == pytest.approx(fraction, abs=1e-6)
    for none in (0.0, 1e-20):
        assert np.tanh(np.float32(dead_zone_logit(none))) == 1  # no dead-zone at all


@pytest.mark.parametrize("options", [{}, {"granularity": "channel"}, {"scale": "learned", "absmax_over": "nonzero"}])
def test_figures_are_those_of_a_model_whose_logits_were_set_by_hand(options):
    model = quantized(max_bits=8, **options)
    for name, quantizer in named_quantizers(model):
        quantizer(model.get_submodule(name).weight)  # a learned scale takes its start
    what_if = Requantizer(model)
    random = np.random.default_rng(0)
    for _ in range(2):
        names = [name for name, _ in named_quantizers(model)]
        zones = {name: float(random.uniform()) for name in random.permutation(names)[:12].tolist()}
        bits = {name: int(random.integers(2, 9)) for name in random.permutation(names)[:12].tolist()}
        by_hand = copy.deepcopy(model)
        for name, quantizer in named_quantizers(by_hand):
            if name in zones:
                quantizer.logit_dz.data = torch.tensor(math.atanh(1 - zones[name]))
            if name in bits:
                quantizer.logit_bit.data = torch.tensor(math.atanh((bits[name] - 2) / 6) if bits[name] < 8 else 10.0)
        assert same(what_if.evaluate(zones, bits).result, Evaluator(by_hand).evaluate(by_hand))


def test_the_accuracy_is_the_evaluators():
    model, generator = quantized(), torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % 10)]
    what_if = Requantizer(model)
    found = what_if.evaluate(bits={"conv1": 2}, loader=batches).result
    for name, quantizer in named_quantizers(model):
        if name == "conv1":
            quantizer.logit_bit.data.fill_(0.0)
    expected = Evaluator(model).evaluate(model, batches)
    assert same(found, expected)


def test_without_settings_it_is_the_trained_model_again_and_that_is_never_touched():
    model = quantized(init_deadzone_logit=0.7, init_bit_logit=0.4)
    before, what_if = state(model), Requantizer(model)
    expected = Evaluator(model).evaluate(model)
    changed = what_if.evaluate({"conv1": 1.0, "layer3.0.conv1": 0.3}, {"conv1": 2, "layer3.0.conv1": 12})
    assert not changed.result.layers.equals(expected.layers)
    assert same(what_if.evaluate().result, expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_bits_beyond_the_learnable_ones_can_be_set():
    what_if = Requantizer(quantized(max_bits=4))
    layers = what_if.evaluate(bits={"conv1": 12}).result.layers
    assert layers["bits"].tolist() == [12, *[4] * 18, 32]


def test_bytes_density_and_dead_filters_count_every_conv_and_linear_layer():
    model = quantized(init_deadzone_logit=0.5)
    found = Requantizer(model).evaluate(bits={"conv1": 3})
    weights = {name: layer.weight.detach().numpy() for name, layer in named_layers(model)}
    bits = {name: 3 if name == "conv1" else 32 if name == "linear" else 8 for name in weights}
    assert found.packed_bytes == math.ceil(sum(w.size * bits[name] for name, w in weights.items()) / 8)
    assert found.float_bytes == 4 * sum(w.size for w in weights.values())
    density = found.result.layers.set_index("layer")["density"]
    nonzero = sum(density[name] * w.size for name, w in weights.items())
    assert found.density == pytest.approx(nonzero / sum(w.size for w in weights.values()), rel=1e-12)
    assert found.dead_filters == 6
    assert found.null_channels == 6


def test_bits_may_be_numpy_integers():
    layers = (
        Requantizer(quantized()).evaluate(bits={"conv1": np.int64(3), "layer1.0.conv1": np.int64(12)}).result.layers
    )
    assert layers["bits"].tolist()[:3] == [3, 12, 8]


def test_a_full_dead_zone_leaves_the_largest_hundredth():
    names = [name for name, _ in named_quantizers(quantized())]
    found = Requantizer(quantized()).evaluate(dict.fromkeys(names, 1.0))
    quantized_layers = found.result.layers.query("quantized")
    assert quantized_layers["density"].between(0.002, 0.012).all()


def test_a_uniform_quantizer_has_bits_alone():
    what_if = Requantizer(quantized("uniform", bitwidth=6))
    assert what_if.trained["conv1"].dead_zone is None
    assert what_if.evaluate(bits={"conv1": 3}).result.layers["bits"].tolist()[:2] == [3, 6]
    with pytest.raises(CodeqError, match=r"'conv1' has a uniform quantizer, whose dead-zone is one step"):
        what_if.evaluate({"conv1": 0.5})


@pytest.mark.parametrize(
    ("zones", "bits", "message"),
    [
        ({"conv2": 0.5}, {}, r"adjustable layer 'conv2' is unknown\. Did you mean 'conv1'"),
        ({}, {"linear": 4}, "adjustable layer 'linear' is unknown"),
        ({"conv1": 1.01}, {}, r"dead_zone=1.01: must lie in 0 … 1"),
        ({"conv1": math.nan}, {}, "dead_zone=nan"),
        ({}, {"conv1": 1}, "bits=1 of layer 'conv1': must be an integer from 2 to 16"),
        ({}, {"conv1": 17}, "bits=17"),
        ({}, {"conv1": 2.5}, "bits=2.5"),
    ],
)
def test_mistakes_are_named_and_change_nothing(zones, bits, message):
    what_if = Requantizer(quantized())
    with pytest.raises(CodeqError, match=message):
        what_if.evaluate(zones, bits)
    assert what_if.evaluate().result.mean_bits == 8


def test_a_float_model_has_nothing_to_set():
    with pytest.raises(CodeqError, match="none can be requantized"):
        Requantizer(resnet20())


def test_a_tied_weight_is_stored_once_and_set_by_its_first_layer():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), *(nn.Linear(16, 16, bias=False) for _ in range(3)))
    net[4].weight = net[2].weight
    attach_weight_quantizers(net, ["3"], "deadzone", {"max_bits": 8})
    what_if = Requantizer(net, (3, 4, 4))
    assert what_if.trained.keys() == {"0", "2"}
    found = what_if.evaluate(bits={"2": 4})
    assert dict(zip(found.result.layers["layer"], found.result.layers["bits"], strict=True)) == {
        "0": 8, "2": 4, "3": 32, "4": 4,
    }  # fmt: skip
    assert found.packed_bytes == 108 + 256 // 2 + 4 * 256
    assert found.float_bytes == 4 * (108 + 256 + 256)
    with torch.no_grad():
        latent_weight(net[2])[:8] = 0
    zeros = sum(int((layer.weight == 0).sum()) for layer in (net[0], net[2], net[3]))
    density = Requantizer(net, (3, 4, 4)).evaluate().density
    assert density == pytest.approx(1 - zeros / (108 + 256 + 256), rel=1e-12)


def test_bytes_of_a_compacted_network_are_compared_with_those_of_the_whole_one():
    net = Halved().eval()
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 8})
    small = compact(net, torch.rand(4, 3, 32, 32), keep_quantizers=True).model
    found = Requantizer(small, (3, 32, 32)).evaluate()
    assert (found.packed_bytes, found.float_bytes) == (COMPACTED_WEIGHTS, 4 * DENSE_WEIGHTS)
