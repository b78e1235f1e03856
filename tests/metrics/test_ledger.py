"""The ledger against sums written out by hand in NumPy, and against the modules it brings together."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from cases import each
from networks import RunningMaximum
from torch import nn
from torch.nn.utils import parametrize

from codeq.analysis.weights import weight_levels
from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.export.grids import check_levels, layer_grids
from codeq.metrics import enclosed_bits, exact_stats, ledger, measure, storage_bytes, weight_codes
from codeq.metrics.codes import integer_weights, smallest_distances
from codeq.models import resnet20
from codeq.quantizer import DeadZoneQuantizer, UniformSymmetric
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.quantizer.layers import forward_weight, latent_weight, named_layers

SIZE = (2, 5, 5)


def three_layers() -> nn.Module:
    """A convolution in front of a padded one and a classifier; filter 1 is dead and input 2 of the second unread."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(), nn.Linear(27, 2))
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    with torch.no_grad():
        latent_weight(net[0])[1] = 0
        latent_weight(net[0])[0, 0] = 0
        latent_weight(net[2])[:, 2] = 0
        latent_weight(net[4])[0, :5] = 0
    return net


def value(table, *row):
    return table.loc[row, "value"]


def test_every_convention_against_sums_by_hand():
    net = three_layers()
    table = ledger(net, SIZE, {"0": 8, "*": 5})
    weights = {name: forward_weight(net[int(name)]).detach().numpy() for name in "024"}
    used, act = {"0": 9, "2": 9, "4": 1}, {"0": 8, "2": 5, "4": 5}
    nonzero = {name: np.count_nonzero(w) for name, w in weights.items()}
    structured = {"0": 3 * 2 * 9, "2": 3 * 3 * 9, "4": 27 * 2}
    exact = {"0": 2 * 2 * 9, "2": 2 * 3 * 9, "4": 2 * np.any(weights["4"], axis=0).sum()}  # a few inputs are not read
    live = nonzero | {"2": np.count_nonzero(weights["2"][:, [0, 2, 3]])}
    for layers, names in (("all", "024"), ("inner", "2")):
        for convention, count in (
            ("unstructured", nonzero), ("structured", structured), ("exact", exact), ("live density", live),
        ):  # fmt: skip
            assert value(table, "MACs", convention, layers) == sum(count[n] * used[n] for n in names), convention
            assert value(table, "BOPs", convention, layers) == sum(count[n] * used[n] * 4 * act[n] for n in names)
        bits = {n: enclosed_bits(np.rint(weights[n] / (np.abs(weights[n]).max() / 7)).astype(int)).sum() for n in names}
        assert value(table, "BOPs", "EBOPs", layers) == sum(bits[n] * used[n] * act[n] for n in names)
        dense = sum(weights[n].size * used[n] for n in names)
        assert (table.loc[("MACs", slice(None), layers), "dense"] == dense).all()
        assert (table.loc[("BOPs", slice(None), layers), "dense"] == dense * 32 * 32).all()
    assert np.allclose(table["relative"] * table["ratio"], 1)


def test_bytes_by_hand():
    net = three_layers()
    packed = entropy = 0
    for name in (0, 2, 4):
        w = forward_weight(net[name]).detach().numpy().ravel()
        packed += int(np.ceil(w.size * 4 / 8))
        share = np.unique(w, return_counts=True)[1] / w.size
        entropy += int(np.ceil(w.size * -(share * np.log2(share)).sum() / 8))
    stored = storage_bytes(net)
    assert (stored.float32, stored.packed, stored.entropy) == (4 * (72 + 108 + 54), packed, entropy)
    assert entropy < packed
    table = ledger(net, SIZE)
    assert [value(table, "bytes", n, "all") for n in ("float32", "packed", "entropy")] == [936, packed, entropy]


def test_exact_is_what_is_left_in_the_compacted_network():
    torch.manual_seed(0)
    model = resnet20()
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.4})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                latent_weight(module)[torch.rand(module.out_channels) < 0.3] = 0
    for options in ({}, {"streams": "whole"}, {"borders": "live"}):
        table = ledger(model, (3, 8, 8), **options)
        macs = compact(model, torch.rand(1, 3, 8, 8), **options).proof.compacted_macs
        assert value(table, "MACs", "exact", "all") == macs
        assert value(table, "BOPs", "exact", "all") == exact_stats(model, (3, 8, 8), **options).total_bops


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_codes_of_the_dead_zone_quantizer_rebuild_its_weights(granularity):
    net = nn.Sequential(nn.Linear(40, 6))
    attach_weight_quantizers(net, [], "deadzone", {"granularity": granularity, "init_deadzone_logit": 0.6})
    codes = weight_codes(net[0])
    quantizer, w = DeadZoneQuantizer(granularity=granularity, init_deadzone_logit=0.6), latent_weight(net[0]).detach()
    s, d, bits = (t.detach().numpy() for t in quantizer.step_and_dead_zone(w))
    assert np.abs(codes).max() == 2 ** (int(bits) - 1) - 1
    assert np.count_nonzero(codes) == np.count_nonzero(forward_weight(net[0]).detach())
    assert np.allclose(s * codes + (d - s) / 2 * np.sign(codes), forward_weight(net[0]).detach(), rtol=1e-5)


def test_codes_of_another_quantizer_and_of_float_weights():
    class Coarse(nn.Module):
        def forward(self, w):
            return (w / 0.5).round() * 0.5

        def get_bitwidth(self):
            return torch.tensor(5)

    net = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 1))
    attach_weight_quantizers(net, ["1"], Coarse, {})
    with torch.no_grad():
        latent_weight(net[0]).copy_(torch.tensor([[0.4, -1.1, 0.1, 2.6]]))
    assert weight_codes(net[0]).tolist() == [[1, -2, 0, 5]]
    assert weight_codes(net[1]) is None
    assert ledger(net, (4,)).loc[("BOPs", "EBOPs", "all"), "value"] == (1 + 1 + 3) * 32 + 32 * 32
    with torch.no_grad():
        latent_weight(net[0]).copy_(torch.tensor([[1.5, -1.5, 1.5, 1.5]]))
    assert weight_codes(net[0]).tolist() == [[1, -1, 1, 1]]  # a single level is one from 0


def test_levels_that_are_rounded_differently_are_one():
    rows = [[0.3, 0.3 + 1e-8, -0.9, 0.0], [0.0, 0.0, 0.0, 0.0], [0.25, 0.5, -0.875, 0.875]]
    found = smallest_distances(torch.tensor(rows, dtype=torch.double))
    assert found.flatten().tolist() == pytest.approx([0.3, 1.0, 0.25], rel=1e-6)


def test_a_ledger_leaves_the_statistics_of_a_quantizer_as_they_are():
    net = nn.Sequential(nn.Linear(4, 2))
    attach_weight_quantizers(net, [], RunningMaximum, {})
    before = copy.deepcopy(net.train().state_dict())
    ledger(net, (4,))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("base", [DeadZoneQuantizer, UniformSymmetric])
def test_a_subclass_with_a_forward_of_its_own_has_the_codes_of_its_levels(base):
    class Ternary(base):
        def forward(self, w):
            return 0.5 * w.sign() * (w.abs() > 1)

    net = nn.Sequential(nn.Linear(4, 1))
    attach_weight_quantizers(net, [], Ternary, {})
    with torch.no_grad():
        latent_weight(net[0]).copy_(torch.tensor([[0.4, -1.1, 0.1, 2.6]]))
    assert weight_codes(net[0]).tolist() == integer_weights(net[0]).tolist() == [[0, -1, 0, 1]]
    assert layer_grids(net) == {}
    assert weight_levels(net, "0")["level"].tolist() == [-0.5, 0.0, 0.5]


class EverySecond(nn.Module):
    """A mask behind the quantizer."""

    def forward(self, w):
        return w * (torch.arange(w.numel()) % 2).view_as(w)


@each(("name", "options"), [("uniform", {"bitwidth": 4}), ("deadzone", {"grid": "affine", "init_deadzone_logit": 1.1})])
def test_weights_that_a_mask_removes_have_code_zero_and_cost_nothing(name, options):
    net = nn.Sequential(nn.Linear(40, 6))
    attach_weight_quantizers(net, [], name, options)
    expected, mask = integer_weights(net[0]), np.arange(240).reshape(6, 40) % 2
    assert list(layer_grids(net)) == ["0"]
    parametrize.register_parametrization(net[0], "weight", EverySecond())
    np.testing.assert_array_equal(integer_weights(net[0]), expected * mask)
    np.testing.assert_array_equal(np.sign(weight_codes(net[0])), np.sign(expected * mask))
    assert value(ledger(net, (40,)), "BOPs", "EBOPs", "all") == 32 * enclosed_bits(expected * mask).sum()
    assert layer_grids(net) == {}
    check_levels(net)


class Half(nn.Module):
    """Scales the weights behind the quantizer."""

    def forward(self, w):
        return w / 2


@each("name", ["uniform", "deadzone"])
@each("behind", [Half, EverySecond])
def test_levels_are_those_of_the_weights_behind_a_parametrization(name, behind):
    net = nn.Sequential(nn.Linear(40, 6))
    attach_weight_quantizers(net, [], name, {})
    parametrize.register_parametrization(net[0], "weight", behind())
    levels, counts = np.unique(net[0].weight.detach().double().numpy(), return_counts=True)
    table = weight_levels(net, "0")
    np.testing.assert_array_equal(table["level"], levels)
    np.testing.assert_array_equal(table["count"], counts)


@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 8), lambda: nn.ConvTranspose2d(6, 8, 3, groups=2)])
def test_a_subclass_with_a_scale_per_channel_has_the_codes_of_each_channel(make):
    class Counting(DeadZoneQuantizer):
        calls = 0

        def forward(self, w):
            self.calls += 1
            return super().forward(w)

    options = {
        "granularity": "channel", "fixed_bit_val": 3, "learnable_bit": False, "init_deadzone_logit": 0.7,
        "grid": "affine",
    }  # fmt: skip
    found = []
    for kind in (Counting, DeadZoneQuantizer):
        torch.manual_seed(0)
        net = nn.Sequential(make())
        attach_weight_quantizers(net, [], kind, options)
        found.append((integer_weights(net[0]), weight_levels(net, "0")))
    (codes, table), (expected, levels) = found
    assert np.abs(expected).max() == 4  # of the levels 0, 2, 3 and 4 times the step
    np.testing.assert_array_equal(codes, expected)
    assert table["code"].tolist() == levels["code"].tolist()
    assert table["count"].tolist() == levels["count"].tolist()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_of_uniform_quantizers_are_exact(bits, dtype):
    net = nn.Sequential(nn.Linear(64, 64)).to(dtype)
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": bits})
    w = latent_weight(net[0]).detach().double().numpy()
    largest = 2 ** (bits - 1) - 1
    scaled = w / (np.quantile(np.abs(w), 0.99) / largest)
    codes = weight_codes(net[0])
    assert np.abs(codes).max() == largest
    assert np.abs(codes - np.clip(scaled, -largest, largest)).max() < 0.51


def test_a_layer_of_zeros_has_codes_of_zeros_and_takes_no_entropy():
    net = nn.Sequential(nn.Linear(8, 8))
    attach_weight_quantizers(net, [], UniformSymmetric, {"bitwidth": 4})
    nn.init.zeros_(latent_weight(net[0]))
    assert not weight_codes(net[0]).any()
    assert (storage_bytes(net).packed, storage_bytes(net).entropy) == (32, 0)
    assert ledger(net, (8,)).loc[("BOPs", "unstructured", "all"), "ratio"] == float("inf")


@each("bits", [0, -1, 2.5, True, {"conv1": "8"}])
def test_impossible_activation_bits(bits):
    with pytest.raises(CodeqError, match="activation_bits"):
        ledger(resnet20(), activation_bits=bits)


def test_a_name_with_brackets_is_its_own_pattern():
    net = nn.Sequential(OrderedDict({"conv[0]": nn.Conv2d(2, 4, 3), "conv[1]": nn.Conv2d(4, 3, 3)}))
    table = ledger(net, SIZE, {"conv[0]": 8})
    macs = [9 * 4 * 2 * 9, 3 * 4 * 9]
    assert value(table, "BOPs", "unstructured", "all") == 32 * (8 * macs[0] + 32 * macs[1])


def test_a_pattern_without_a_layer():
    with pytest.raises(CodeqError, match="activation_bits: pattern 'conv9' matches no"):
        ledger(resnet20(), activation_bits={"conv9": 8})


def test_inner_layers_are_the_same_after_the_first_layer_was_removed():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pre, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 4, 1)
            self.b, self.c, self.h = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(12, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            pre = self.pre(x)
            return self.h(self.c(torch.cat([pre, self.b(self.a(x).relu())], 1)).mean((2, 3)))

    whole = Branches().eval()
    with torch.no_grad():
        whole.pre.weight.zero_(), whole.pre.bias.zero_()
    smaller = compact(whole, torch.randn(4, 3, 8, 8), keep_quantizers=True).model
    assert [r.name for r in measure(smaller, (3, 8, 8))] == ["a", "b", "c", "h"]
    before, after = ledger(whole, (3, 8, 8)), ledger(smaller, (3, 8, 8))
    inner = ("MACs", "exact", "inner")
    assert after.loc[inner, "value"] == before.loc[inner, "value"] == 64 * (3 * 4 + 4 * 4 * 9 + 4 * 4)
    assert after.loc[inner, "dense"] == before.loc[inner, "dense"]


def test_parts_of_the_first_layer_are_left_out_with_it():
    net = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(54, 2))
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 0, 0
    smaller = compact(net, torch.randn(2, 4, 3, 3)).model
    assert [name for name, _ in named_layers(smaller)][:2] == ["0.parts.0", "0.parts.1"]
    table = ledger(smaller, (4, 3, 3))
    assert value(table, "MACs", "exact", "inner") == 7 * 6 * 9
    assert value(table, "MACs", "exact", "all") == (3 * 2 + 4 * 2) * 9 + 7 * 6 * 9 + 54 * 2
