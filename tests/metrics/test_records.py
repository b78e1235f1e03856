"""Every weight that a forward pass uses is counted or refused: without layers, shared, called twice or never."""

import pytest
import torch
import torch.nn.functional as F
from cases import each
from torch import nn

from codeq.common.errors import CodeqError
from codeq.evaluator import Evaluator
from codeq.metrics import (
    QuantizationComparison,
    dense_stats,
    exact_stats,
    ledger,
    measure,
    storage_bytes,
    structured_stats,
    unstructured_stats,
)
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.quantizer.layers import forward_weight, latent_weight


class Tokens(nn.Module):
    """An image as tokens through one transformer layer and a classifier."""

    def __init__(self, width=8, heads=2, hidden=16):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 2, stride=2)
        self.block = nn.TransformerEncoderLayer(width, heads, hidden, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


SIZE = (3, 8, 8)
TOKENS = 16
BY_HAND = {
    "embed": 3 * 8 * 4 * TOKENS, "block.self_attn.in_proj_weight": 3 * 8 * 8 * TOKENS,
    "block.self_attn.out_proj": 8 * 8 * TOKENS, "block.linear1": 8 * 16 * TOKENS, "block.linear2": 16 * 8 * TOKENS,
    "head": 8 * 5,
}  # fmt: skip


@pytest.mark.parametrize("quantized", [False, True])
def test_a_transformer_layer_of_torch_is_counted_whole(quantized):
    net = Tokens()
    comparison = QuantizationComparison(SIZE)
    comparison.set_baseline(net)
    if quantized:
        attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    records = measure(net, SIZE)
    for stats in (dense_stats(records), structured_stats(records)):
        assert {layer.name: layer.macs for layer in stats.layers} == BY_HAND
    bits = {layer.name: layer.bitwidth for layer in structured_stats(records).layers}
    assert bits["block.self_attn.in_proj_weight"] == 32  # no quantizer reaches it
    expected = sum(macs * 32 * (32 if name.endswith("in_proj_weight") or not quantized else 4)
                   for name, macs in BY_HAND.items())  # fmt: skip
    assert structured_stats(records).total_bops == expected
    assert Evaluator(net, SIZE).evaluate(net).layers["layer"].tolist() == list(BY_HAND)
    assert exact_stats(net, SIZE).total_macs == sum(BY_HAND.values())
    table = ledger(net, SIZE)
    for convention in ("structured", "exact") if quantized else ("structured", "unstructured", "exact", "live density"):
        assert table.loc[("MACs", convention, "all"), "value"] == sum(BY_HAND.values()), convention


def test_a_vit_of_torchvision_is_counted_whole():
    from torchvision.models.vision_transformer import VisionTransformer

    net = VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3)
    tokens, width, hidden = 17, 8, 12
    layer = tokens * (4 * width * width + 2 * width * hidden)
    by_hand = 16 * 3 * width * 16 + 2 * layer + width * 3
    assert dense_stats(measure(net, (3, 16, 16))).total_macs == by_hand


class Functional(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)
        self.use = use

    def forward(self, x):
        return self.use(self, self.conv(x).mean((2, 3)))


def test_a_weight_used_by_a_function_counts_for_its_layer():
    net = Functional(lambda net, x: F.linear(x, net.fc.weight, net.fc.bias))
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    layers = structured_stats(measure(net, SIZE)).layers
    assert [(layer.name, layer.macs, layer.bitwidth) for layer in layers] == [("conv", 768, 4), ("fc", 16, 4)]


@each("use", [
    lambda net, x: x @ net.fc.weight.t(), lambda net, x: torch.einsum("nc,oc->no", x, net.fc.weight),
    lambda net, x: F.linear(x, net.fc.weight * 2), lambda net, x: F.linear(x, net.fc.weight[:2]),
])  # fmt: skip
@each("quantized", [False, True])
def test_a_weight_used_in_another_way_is_refused_by_name(use, quantized):
    net = Functional(use)
    if quantized:
        attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    with pytest.raises(CodeqError, match=r"layer 'fc' .*cannot be counted"):
        measure(net, SIZE)


def test_a_layer_that_is_never_called_is_listed():
    net = Functional(lambda _, x: x)
    records = measure(net, SIZE)
    assert [record.name for record in records] == ["conv"]
    for stats in (structured_stats(records), unstructured_stats(records), dense_stats(records)):
        assert any("'fc' is never called" in note for note in stats.notes)
    assert any("'fc' is never called" in note for note in ledger(net, SIZE).attrs["notes"])
    assert storage_bytes(net).float32 == 4 * (12 + 16)  # it is stored all the same


def test_a_layer_that_is_called_twice_counts_each_call():
    net = Functional(lambda net, x: net.fc(net.fc(x)))
    by_hand = 3 * 4 * 64 + 2 * 4 * 4
    records = measure(net, SIZE)
    assert [(record.name, record.spatial) for record in records] == [("conv", (8, 8)), ("fc", (2, 1))]
    assert dense_stats(records).total_macs == structured_stats(records).total_macs == by_hand
    assert exact_stats(net, SIZE).total_macs == by_hand
    assert ledger(net, SIZE).loc[("MACs", "unstructured", "all"), "value"] == by_hand
    assert storage_bytes(net).float32 == 4 * (12 + 16)


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[3].weight = net[1].weight
    return net


@pytest.mark.parametrize("quantized", [False, True])
def test_tied_weights_are_stored_once_and_counted_at_each_use(quantized):
    net = tied()
    if quantized:
        attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    with torch.no_grad():
        latent_weight(net[1])[1] = 0
    records = measure(net, (1, 2, 2))
    assert [record.stored for record in records] == [True, False, True]
    assert [layer.macs for layer in dense_stats(records).layers] == [16, 16, 8]
    # Channel 1 is null after both, so the second one and the classifier read 3 channels.
    assert [layer.macs for layer in structured_stats(records).layers] == [12, 9, 6]
    stored = storage_bytes(net)
    assert (stored.float32, stored.packed) == (96, 12 if quantized else 96)
    weights = torch.cat([forward_weight(net[n]).detach().ravel() for n in (1, 5)])
    zeros = (weights == 0).float().mean().item()
    result = Evaluator(net, (1, 2, 2)).evaluate(net)
    assert result.unstructured_sparsity == pytest.approx(zeros)
    assert result.structured_sparsity == pytest.approx(1 / 6)


def test_a_tied_weight_that_only_one_layer_quantizes_is_stored_twice():
    net = tied()
    attach_weight_quantizers(net, ["3"], "uniform", {"bitwidth": 4})
    assert [record.stored for record in measure(net, (1, 2, 2))] == [True, True, True]
    assert storage_bytes(net).packed == 16 // 2 + 16 * 4 + 8 // 2


def test_a_model_without_layers_costs_nothing():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
    result = Evaluator(net, (1, 2, 2)).evaluate(net)
    assert (result.structured_stats.total_macs, result.mean_bits) == (0, 32)


def test_operations_that_are_not_followed_are_listed_and_their_channels_live():
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Flatten(2), nn.Softmax(1), nn.Flatten(), nn.Linear(256, 2))
    with torch.no_grad():
        net[0].weight[1] = 0
    records = measure(net, SIZE)
    assert any("not followed: " in note for note in records.notes), records.notes
    assert records[-1].null_in.count == 0
