import copy
from math import inf

import numpy as np
import pytest
import reference
import torch
from torch import nn

from codeq.common.errors import CodeqError
from codeq.metrics import (
    NullChannels,
    QuantizationComparison,
    effective_macs,
    exact_stats,
    measure,
    null_output_channels,
    structured_stats,
    unstructured_macs,
    unstructured_stats,
)
from codeq.models import resnet18, resnet20, vit
from codeq.quantizer import DeadZoneQuantizer
from codeq.quantizer.attach import attach_weight_quantizers, named_quantizers

none = NullChannels.none


def compared(model: nn.Module, size=(3, 32, 32)) -> QuantizationComparison:
    comparison = QuantizationComparison(size)
    comparison.set_baseline(model)
    return comparison


def zero_some(model: nn.Module, seed: int = 0) -> None:
    """Zero filters, input channels, kernels and single weights at random."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            w = module.weight.data
            w[torch.rand(w.shape, generator=generator) < 0.3] = 0
            w[torch.rand(w.shape[:2], generator=generator) < 0.3] = 0
            w[torch.rand(len(w), generator=generator) < 0.3] = 0


def two_convs() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))


def test_a_convolution_of_ones_costs_1152_macs_and_half_of_it_576_unstructured():
    weight = torch.ones(4, 2, 3, 3)
    assert effective_macs(weight, none(2), none(4), 4, 4) == 1152
    weight[:, 0] = 0
    weight[0, 0], weight[0, 1] = 1, 0
    assert null_output_channels(weight, none(2)).count == 0
    assert effective_macs(weight, none(2), none(4), 4, 4) == 1152
    assert unstructured_macs(weight, 4, 4) == 576


def test_dead_filters_are_null_inputs_of_the_next_layer():
    model = two_convs()
    with torch.no_grad():
        model[0].weight[2:] = 0
    first, second = QuantizationComparison((3, 4, 4)).calculate_stats(model).layers
    assert first.null_out.indices == {2, 3}
    assert second.null_in.indices == {2, 3}
    assert first.pruning_ratio == 0.5
    assert first.macs == 3 * 2 * 9 * 16
    assert second.macs == 2 * 2 * 9 * 16


def test_a_filter_that_reads_null_channels_alone_is_null_itself():
    model = two_convs()
    with torch.no_grad():
        model[0].weight[2:] = 0
        model[2].weight[1, :2] = 0
    _, second = QuantizationComparison((3, 4, 4)).calculate_stats(model).layers
    assert second.null_out.indices == {1}


def test_a_dead_branch_does_not_silence_the_skip():
    model = resnet20()
    nn.init.zeros_(model.layer1[0].conv2.weight)
    layers = {layer.name: layer for layer in QuantizationComparison().calculate_stats(model).layers}
    assert layers["layer1.0.conv2"].macs == 0
    assert layers["layer1.0.conv2"].pruning_ratio == 1
    assert layers["layer1.1.conv1"].null_in.count == 0


@pytest.mark.parametrize("seed", range(3))
def test_both_accountings_equal_the_loops_of_the_reference(seed):
    model = resnet20()
    zero_some(model, seed)
    attach_weight_quantizers(model, ["linear"], "deadzone", {"init_deadzone_logit": 1.0, "init_bit_logit": 0.5})
    comparison = QuantizationComparison()
    structured, unstructured = comparison.calculate_stats(model), comparison.calculate_unstructured_stats(model)
    assert any(layer.null_in.count for layer in structured.layers)
    for s, u in zip(structured.layers, unstructured.layers, strict=True):
        layer = model.get_submodule(s.name)
        w = layer.weight.detach().numpy()
        bits = 32 if s.name == "linear" else int(layer.parametrizations.weight[0].quantizer.get_bitwidth())
        assert (s.bitwidth, u.bitwidth) == (bits, bits)
        assert s.macs == reference.structured_macs(w, set(s.null_in.indices), set(s.null_out.indices), *s.spatial)
        assert u.macs == reference.unstructured_macs(w, *u.spatial)
        assert (s.bops, u.bops) == (s.macs * bits * 32, u.macs * bits * 32)
        assert u.pruning_ratio == pytest.approx((w == 0).mean())
        assert s.pruning_ratio == s.null_out.count / len(w)
    assert structured.total_macs == sum(layer.macs for layer in structured.layers)
    assert unstructured.total_bops == sum(layer.bops for layer in unstructured.layers)


@pytest.mark.parametrize("quantized", [False, True])
def test_dead_hidden_units_of_a_vit_save_macs_in_both_layers_of_the_mlp(quantized):
    model = vit(num_classes=10, img_size=32, patch_size=4)
    baseline = compared(model).baseline
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[:100] = 0
    if quantized:
        attach_weight_quantizers(model, [], "uniform", {"bitwidth": 8})
    stats = QuantizationComparison().calculate_stats(model)
    saved = {dense.name: dense.macs - layer.macs for dense, layer in zip(baseline.layers, stats.layers, strict=True)}
    assert {name: macs for name, macs in saved.items() if macs} == {
        "blocks.1.mlp.fc1": 65 * 192 * 100,
        "blocks.1.mlp.fc2": 65 * 100 * 192,
    }
    by_name = {layer.name: layer for layer in stats.layers}
    assert by_name["blocks.1.mlp.fc2"].null_in.indices == set(range(100))
    assert by_name["blocks.1.mlp.fc1"].pruning_ratio == 100 / 768
    assert (by_name["blocks.1.mlp.fc1"].spatial, by_name["blocks.1.mlp.fc1"].kernel_size) == ((65, 1), (1, 1))


def test_zero_weights_of_a_vit_count_once_a_token():
    model = vit(num_classes=10, img_size=32, patch_size=4)
    before = QuantizationComparison().calculate_unstructured_stats(model).total_macs
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[0, :7] = 0
        model.head.weight[0, :7] = 0
    after = QuantizationComparison().calculate_unstructured_stats(model).total_macs
    assert before - after == 7 * 65 + 7


def test_a_dead_branch_of_a_torchvision_resnet_does_not_silence_the_skip():
    model = resnet18(num_classes=10)
    nn.init.zeros_(model.layer2[0].conv2.weight)
    layers = {layer.name: layer for layer in QuantizationComparison().calculate_stats(model).layers}
    assert layers["layer2.0.conv2"].macs == 0
    assert layers["layer2.1.conv1"].null_in.count == 0
    nn.init.zeros_(model.layer2[0].downsample[0].weight)
    layers = {layer.name: layer for layer in QuantizationComparison().calculate_stats(model).layers}
    assert layers["layer2.1.conv1"].null_in.count == 128


def test_layers_stand_in_order_of_execution_with_their_geometry():
    layers = QuantizationComparison().calculate_stats(resnet20()).layers
    assert [layer.name for layer in layers][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    by_name = {layer.name: layer for layer in layers}
    assert (by_name["layer3.0.conv1"].spatial, by_name["layer3.0.conv1"].kernel_size) == ((8, 8), (3, 3))
    assert (by_name["linear"].spatial, by_name["linear"].kernel_size) == ((1, 1), (1, 1))


def test_the_baseline_is_dense_and_32_bit_whatever_the_model_is():
    model = resnet20()
    zero_some(model)
    attach_weight_quantizers(model, [], "uniform", {"bitwidth": 2})
    baseline = compared(model).baseline
    assert baseline.total_macs == 40_551_040
    assert baseline.total_bops == 40_551_040 * 32 * 32


def test_ratios_are_baseline_over_compressed():
    comparison = compared(resnet20())
    model = resnet20()
    attach_weight_quantizers(model, [], "uniform", {"bitwidth": 4})
    structured, unstructured = comparison.calculate_stats(model), comparison.calculate_unstructured_stats(model)
    assert comparison.compression_ratio(structured) == 8.0
    assert comparison.mac_compression_ratio(structured) == 1.0
    bops, macs = comparison.baseline.total_bops, comparison.baseline.total_macs
    assert comparison.unstructured_compression_ratio(unstructured) == bops / unstructured.total_bops > 8.0
    assert comparison.unstructured_mac_compression_ratio(unstructured) == macs / unstructured.total_macs > 1.0


def test_nothing_left_is_an_infinite_ratio():
    model = two_convs()
    comparison = compared(model, (3, 4, 4))
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    assert comparison.compression_ratio(comparison.calculate_stats(model)) == inf
    assert comparison.unstructured_mac_compression_ratio(comparison.calculate_unstructured_stats(model)) == inf


def test_bits_of_activations_count_in_both_networks():
    comparison = QuantizationComparison(b_a=8)
    comparison.set_baseline(resnet20())
    assert comparison.baseline.total_bops == 40_551_040 * 32 * 8


def test_larger_inputs_cost_more_in_the_convolutions_alone():
    small, large = (QuantizationComparison((3, s, s)).calculate_stats(resnet20()) for s in (32, 64))
    assert large.total_macs - 640 == 4 * (small.total_macs - 640)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolutions_are_counted_group_by_group(groups):
    weight = torch.ones(8, 4 // groups, 3, 3)
    null_in, null_out = NullChannels({0, 3}, 4), NullChannels({1, 6, 7}, 8)
    expected = sum(
        9 * 25
        for o in range(8)
        for i in range(4)
        if o // (8 // groups) == i // (4 // groups) and o not in null_out.indices and i not in null_in.indices
    )
    assert effective_macs(weight, null_in, null_out, 5, 5) == expected


def test_mode_and_device_are_left_as_found_and_the_weights_too():
    model = resnet20()
    model.layer1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    QuantizationComparison().calculate_stats(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_switched_off_quantizers_cost_32_bits():
    model = two_convs()
    attach_weight_quantizers(model, [], "uniform", {"bitwidth": 4}, enabled=False)
    assert {layer.bitwidth for layer in QuantizationComparison((3, 4, 4)).calculate_stats(model).layers} == {32}


class Silent(nn.Module):
    def forward(self, w):
        return w


def test_unknown_bits_are_an_error_never_32():
    model = two_convs()
    attach_weight_quantizers(model, ["2"], Silent, {})
    with pytest.raises(CodeqError, match=r"layer '0'.*Silent has no get_bitwidth"):
        QuantizationComparison((3, 4, 4)).calculate_stats(model)


class Doubled(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, 2 * self.weight)


def test_what_cannot_be_counted_is_an_error_never_skipped():
    with pytest.raises(CodeqError, match=r"'0' \(Doubled\) cannot be counted"):
        measure(nn.Sequential(Doubled(4, 4)), (4,))


def test_a_learned_scale_without_a_value_yet_is_no_layer_without_channels():
    model = two_convs()
    attach_weight_quantizers(model, [], DeadZoneQuantizer, {"scale": "learned"})
    for _, quantizer in named_quantizers(model):
        quantizer.reset_scale()
    assert len(measure(model, (3, 4, 4))) == 2


class Pairs(nn.Module):
    """A layer that reads all pairs of inputs of a batch."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        pairs = (x[:, None] + x[None]).flatten(0, 1)
        return self.layer(pairs).unflatten(0, (len(x), len(x))).sum(1)


@pytest.mark.parametrize(("layer", "size"), [(nn.Linear(4, 3), (4,)), (nn.Conv2d(4, 3, 1), (4, 2, 2))])
def test_a_layer_whose_cost_depends_on_the_batch_cannot_be_counted(layer, size):
    for count in (measure, exact_stats):
        with pytest.raises(CodeqError, match=r"layer 'layer' .*cannot be counted"):
            count(Pairs(layer), size)


def test_a_ratio_without_a_baseline_is_an_error():
    comparison = QuantizationComparison((3, 4, 4))
    with pytest.raises(CodeqError, match="set_baseline"):
        comparison.compression_ratio(comparison.calculate_stats(two_convs()))


@pytest.mark.parametrize("bits", [0, -8, 8.5, True, None])
def test_impossible_bits_of_activations_are_refused(bits):
    with pytest.raises(CodeqError, match=rf"b_a={bits}: must be an integer of at least 1 \(bits\)"):
        QuantizationComparison(b_a=bits)


@pytest.mark.parametrize("size", [32, (3, 0, 32), (3, 32.0, 32), (), None])
def test_what_is_no_input_size_is_refused(size):
    for count in (measure, exact_stats):
        with pytest.raises(CodeqError, match=r"input_size=.*: must be the shape of one input, e\.g\. \(3, 32, 32\)"):
            count(nn.Conv2d(3, 4, 1), size)


def test_null_channels_are_a_set_with_a_total():
    nulls = NullChannels({2, 3}, 4)
    assert (nulls.count, nulls.ratio) == (2, 0.5)
    assert nulls.intersect(NullChannels({3, 0}, 4)) == NullChannels({3}, 4)
    assert (none(3).count, NullChannels.all(3).indices) == (0, {0, 1, 2})
    assert none(0).ratio == 0
    assert NullChannels.from_mask(nulls.mask()) == nulls
    with pytest.raises(CodeqError, match="do not combine"):
        nulls.intersect(none(5))
    with pytest.raises(CodeqError, match=r"\[4\].*0 … 3"):
        NullChannels({4}, 4)
    with pytest.raises(CodeqError, match="multiple"):
        effective_macs(torch.ones(4, 2, 1, 1), none(3), none(4), 1, 1)


def test_records_serve_both_accountings():
    records = measure(resnet20())
    assert structured_stats(records).total_macs == unstructured_stats(records).total_macs == 40_551_040
    assert all(isinstance(record.nonzero, np.ndarray) for record in records)


def test_null_filters_of_a_weight_that_is_not_square():
    weight = torch.tensor([[0.0, 5.0], [0.0, 0.0], [1.0, 0.0]])
    assert null_output_channels(weight, NullChannels.none(2)).indices == {1}
    assert null_output_channels(weight, NullChannels({0}, 2)).indices == {1, 2}
    assert null_output_channels(weight, NullChannels({1}, 2)).indices == {0, 1}
