"""Every weight that a forward pass uses is counted or refused: without layers, shared, called twice or never."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import each
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from codeq.common.errors import CodeqError
from codeq.compaction import compact
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


class Frames(nn.Module):
    """Frames of a video in the batch dimension."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        y = self.b(self.a(x.flatten(0, 1)).relu())
        return self.fc(y.mean((2, 3)).view(len(x), -1, 4).mean(1))


def test_convolutions_of_several_images_for_each_input_are_counted():
    net = Frames()
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0, 0
    records = measure(net, (5, 3, 8, 8))
    by_hand = {"a": 5 * 36 * 27 * 4, "b": 5 * 16 * 36 * 4, "fc": 8}
    assert {layer.name: layer.macs for layer in dense_stats(records).layers} == by_hand
    assert exact_stats(net, (5, 3, 8, 8)).total_macs == sum(by_hand.values())  # which does not follow merged dimensions
    dead = 5 * 36 * 27 + 5 * 16 * 9 * 4
    assert structured_stats(records).total_macs == sum(by_hand.values()) - dead


class FixedProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("basis", torch.randn(192, 16))
        self.fc = nn.Linear(16, 2)

    def forward(self, x):
        return self.fc(x.flatten(1) @ self.basis)


def test_a_product_with_a_fixed_matrix_is_named():
    note = "basis is used outside of a layer, by matmul: not counted"
    assert note in measure(FixedProduct(), (3, 8, 8)).notes
    assert note in exact_stats(FixedProduct(), (3, 8, 8)).notes


def test_the_exact_accounting_names_what_it_does_not_follow_and_layers_that_are_never_called():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    net[0].never = nn.Linear(2, 2)
    assert exact_stats(net, (3, 8, 8)).notes == (
        "layer '0.never' is never called: it counts no MACs",
        "in the exact accounting, channels count as live where operations are not followed: 1 (GroupNorm)",
    )


def test_a_model_in_training_keeps_the_state_of_its_parametrizations():
    net = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), spectral_norm(nn.Conv2d(4, 4, 3)))
    before = copy.deepcopy(net.state_dict())
    measure(net, (3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net[0].training


def test_costs_and_compaction_inside_inference_mode_are_those_outside():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(2, 3, 4, 4)
    with torch.inference_mode():
        macs, report = dense_stats(measure(net, (3, 4, 4))).total_macs, compact(net, x)
    assert macs == exact_stats(net, (3, 4, 4)).total_macs == report.proof.compacted_macs
    report.model(x).sum().backward()
