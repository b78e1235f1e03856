"""Weights that belong to no layer are stored, and in the bytes of every figure."""

import pytest
import torch
import torch.nn.functional as F
from networks import RunningMaximum
from torch import nn

from codeq.analysis.requantize import Requantizer
from codeq.common.errors import CodeqError
from codeq.graph.activations import attach_activation_quantizers
from codeq.metrics import QuantizationComparison, ledger, storage_bytes
from codeq.metrics.budget import cost_figure, smallest_figure
from codeq.quantizer.attach import attach_weight_quantizers, toggle_quantization
from codeq.quantizer.layers import latent_weight, named_layers

SIZE = (5, 8)
FLOAT, QUANTIZED = 3 * 8 * 8, 8 * 8 + 2 * 8 * 16  # the packed projection of queries, keys and values; the layers


def test_the_projections_of_an_attention_are_in_all_bytes():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    comparison = QuantizationComparison(SIZE)
    comparison.set_baseline(net)
    assert comparison.baseline_bytes == storage_bytes(net, SIZE).packed == 4 * (FLOAT + QUANTIZED)
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    packed = 4 * FLOAT + QUANTIZED // 2
    stored = storage_bytes(net, SIZE)
    assert (stored.float32, stored.packed) == (4 * (FLOAT + QUANTIZED), packed)
    assert 4 * FLOAT < stored.entropy <= packed
    assert ledger(net, SIZE).loc[("bytes", "packed", "all"), "value"] == packed
    for figure in (cost_figure, smallest_figure):
        assert figure("bytes", net, comparison) == pytest.approx(packed / comparison.baseline_bytes)
    found = Requantizer(net, SIZE).evaluate(bits={"linear1": 2})
    assert (found.packed_bytes, found.float_bytes) == (packed - 128 // 4, stored.float32)


def test_a_parametrized_matrix_outside_of_layers_is_stored():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    nn.utils.parametrize.register_parametrization(attention, "in_proj_weight", nn.Identity())
    assert storage_bytes(Attending(attention), SIZE).float32 == 4 * (FLOAT + 8 * 8)


class Attending(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Shared(nn.Module):
    """A parameter of its own that is the weight of its layer, too, or another one."""

    def __init__(self, tied: bool):
        super().__init__()
        self.table, self.fc, self.never = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4), nn.Linear(4, 2)
        if tied:
            self.fc.weight = self.table

    def forward(self, x):
        return F.linear(self.fc(x), self.table)


@pytest.mark.parametrize("tied", [False, True])
def test_a_parameter_of_the_model_is_stored_once(tied):
    assert storage_bytes(Shared(tied), (4,)).float32 == 4 * (16 + 8 + (0 if tied else 16))


def test_a_parameter_that_is_quantized_in_a_layer_alone_is_stored_twice():
    net = Shared(tied=True)
    attach_weight_quantizers(net, ["never"], "uniform", {"bitwidth": 4})
    assert storage_bytes(net, (4,)).packed == 16 // 2 + 4 * (16 + 8)
    toggle_quantization(net, enabled=False)
    assert storage_bytes(net, (4,)).packed == 4 * (16 + 8)


class TwoMatrices(nn.Linear):
    def __init__(self):
        super().__init__(4, 4, bias=False)
        self.first = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return F.linear(F.linear(x, self.first), self.weight)


def test_a_second_matrix_of_a_layer_is_stored():
    assert storage_bytes(nn.Sequential(TwoMatrices()), (4,)).float32 == 4 * (16 + 16)


def test_layers_without_weights_before_their_first_forward_are_refused_by_name():
    with pytest.raises(CodeqError, match=r"0\.weight has no values before the first forward pass"):
        storage_bytes(nn.Sequential(nn.LazyLinear(4)))


def test_a_model_whose_matrices_are_those_of_its_layers_needs_no_input_size():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    assert storage_bytes(net).packed == storage_bytes(net[0]).packed == 8


@pytest.mark.parametrize("figure", [cost_figure, smallest_figure])
def test_an_unknown_figure_is_refused(figure):
    net = nn.Sequential(nn.Linear(4, 2))
    comparison = QuantizationComparison((4,))
    comparison.set_baseline(net)
    with pytest.raises(CodeqError, match="name='relative_macs': must be 'relative_bops' or"):
        figure("relative_macs", net, comparison)


def test_weights_that_are_tied_in_evaluation_mode_are_stored_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    attach_weight_quantizers(net, [], RunningMaximum, {})
    before = net.train()[0].parametrizations.weight[0].quantizer.largest.clone()
    assert storage_bytes(net).float32 == 4 * 16
    assert torch.equal(net[0].parametrizations.weight[0].quantizer.largest, before)


def test_the_smallest_mean_is_that_of_the_quantized_layers():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    comparison = QuantizationComparison((4,))
    comparison.set_baseline(net)
    assert smallest_figure("mean_bits", net, comparison) == 0  # there are none
    attach_weight_quantizers(net, ["1", "2"], "deadzone", {"max_bits": 6})
    attach_weight_quantizers(nn.Sequential(net[1]), [], "uniform", {"bitwidth": 5})
    assert smallest_figure("mean_bits", net, comparison) == (2 + 5) / 2
    assert cost_figure("mean_bits", net, comparison) == (6 + 5) / 2


def test_every_layer_fills_whole_bytes():
    net = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 3))
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": 3})
    with torch.no_grad():
        for _, layer in named_layers(net):
            latent_weight(layer).copy_(torch.tensor([1.0, 1.0, 0.0]).view_as(layer.weight))
    stored = storage_bytes(net)  # 9 bits a layer; three codes of two kinds have 2.75 bits of information
    assert (stored.packed, stored.entropy) == (2 * 2, 2 * 1)


class Spare(nn.Module):
    """Has a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.fc, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x)


def test_layers_that_are_never_called_can_have_the_fewest_bits_too():
    net, comparison = Spare(), QuantizationComparison((4,))
    comparison.set_baseline(net)
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 4})
    assert (smallest_figure("bytes", net, comparison), cost_figure("bytes", net, comparison)) == (2 / 32, 4 / 32)


def test_the_smallest_bops_have_the_bits_of_the_activations():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    comparison = QuantizationComparison((4,))
    comparison.set_baseline(net)
    attach_activation_quantizers(net, torch.zeros(1, 4), 8, "minmax", exclude_layers=["0"])
    attach_weight_quantizers(net, ["1"], "deadzone", {})
    assert smallest_figure("relative_bops", net, comparison) == 0.5 * 8 / 32  # of the float layer
