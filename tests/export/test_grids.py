"""Levels of quantizers that integers hold, and those that none do."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.export.entropy import decode
from codeq.export.grids import check_levels, compacted_grids, layer_grids
from codeq.export.integer_grid import integer_grid
from codeq.quantizer import DeadZoneQuantizer
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.quantizer.layers import latent_weight, named_layers


def test_a_quantizer_without_levels_is_refused_by_the_name_of_its_layer():
    class Shrink(nn.Module):
        def forward(self, w):
            return 0.9 * w

        def get_bitwidth(self):
            return torch.tensor(4)

    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 2))
    attach_weight_quantizers(net, ["0"], Shrink, {})
    with pytest.raises(CodeqError, match="layer '1': quantizer Shrink returns 40 different values, more than the 16"):
        check_levels(net)


def test_a_quantizer_with_levels_per_channel_has_as_many_in_each():
    class Counting(DeadZoneQuantizer):
        def forward(self, w):
            return super().forward(w)

    net = nn.Sequential(nn.ConvTranspose2d(8, 6, 3, groups=2))
    attach_weight_quantizers(net, [], Counting, {"granularity": "channel", "max_bits": 3})
    assert len(net[0].weight.unique()) > 2**3
    check_levels(net)
    net[0].parametrizations.weight[0].quantizer.forward = lambda w: w
    with pytest.raises(CodeqError, match="36 different values in one output channel, more than the 8 levels"):
        check_levels(net)


class Renamed(nn.Module):
    """Its layers have other names, other channels or several parts in the compacted network."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.add_module("global", nn.Conv2d(8, 8, 1))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.twice(self.twice(self.stem(x).relu()).relu()).relu()
        return self.fc(self.get_submodule("global")(self.grouped(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_layers_of_a_compacted_network_keep_their_grids_under_other_names(granularity):
    torch.manual_seed(0)
    net = Renamed().eval()
    attach_weight_quantizers(net, ["fc"], "deadzone", {"max_bits": 4, "granularity": granularity})
    with torch.no_grad():
        for name, dead in (("stem", [1, 2]), ("grouped", [0, 1, 5]), ("global", [3])):
            latent_weight(net.get_submodule(name))[dead] = 0
    report = compact(net, torch.randn(2, 3, 6, 6))
    layers = dict(named_layers(report.model))
    assert layers.keys() == {"stem", "twice", "twice_2", "grouped.parts.0", "grouped.parts.1", "global_", "fc"}
    again = compact(report.model, torch.randn(2, 3, 6, 6))
    first = compacted_grids(layer_grids(net), report)
    for grids, model in ((first, report.model), (compacted_grids(first, again), again.model)):
        assert grids.keys() == layers.keys() - {"fc"}
        for name, grid in grids.items():
            weight = model.get_submodule(name).weight.detach()
            assert torch.equal(grid.weights(grid.codes(weight), weight.dtype), weight), name


def test_weights_between_the_integers_take_those_of_seven_bits():
    weight = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)
    _, largest = integer_grid(weight, axis=0)
    assert 32 < largest.max() <= 64  # 2 · 255 · 64 fits into 16 bits
    exact = np.array([[101.0, 7.0, -3.0]], dtype=np.float32)
    assert integer_grid(exact, axis=0)[1].tolist() == [101]


def test_a_channel_of_zeros_takes_the_scale_of_its_neighbours():
    weight = np.array([[4.0, 2.0], [0.0, 0.0], [6.0, 3.0], [1.0, 0.0]], dtype=np.float32)
    assert integer_grid(weight, axis=0)[0].tolist() == [2.0, 2.0, 3.0, 1.0]


class TwoBits(nn.Module):
    """A quantizer that gives the weights as they are, and says that they have two bits."""

    def forward(self, w):
        return w * 1.0

    def get_bitwidth(self):
        return torch.tensor(2)


def test_as_many_levels_as_the_bits_have_are_taken_and_one_more_is_refused():
    net = nn.Sequential(nn.Linear(5, 1))
    attach_weight_quantizers(net, [], TwoBits, {})
    for values, taken in (([0.0, 1.0, 2.0, 5.0, 5.0], True), ([0.0, 1.0, 2.0, 5.0, 6.0], False)):
        latent_weight(net[0]).data = torch.tensor([values])
        with nullcontext() if taken else pytest.raises(CodeqError, match="5 different values, more than the 4 levels"):
            check_levels(net)


def test_a_stream_of_codes_that_ends_in_zeros_is_refused():
    with pytest.raises(CodeqError, match="ends in a word of zeros"):
        decode(bytes(4), [])
