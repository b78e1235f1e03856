import copy
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from cases import each
from matplotlib.figure import Figure
from networks import Doubling
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from codeq import (
    Evaluator,
    QuantizationComparison,
    attach_weight_quantizers,
    compact,
    coupled_group_lasso,
    fused_quantization,
    group_lasso_channels,
    named_quantizers,
    toggle_quantization,
)
from codeq.common.errors import CodeqError
from codeq.metrics.encoding import decode_mask, decode_norms
from codeq.models import CifarMLP, resnet20
from codeq.quantizer import QUANTIZERS
from codeq.quantizer.layers import WeightQuantization, latent_weight
from codeq.training.objective import THETA_REGULARIZER, Objective

INPUT = (3, 8, 8)
BITS = {"conv2": 2, "conv3": 4, "linear": 6}


class Exact(nn.Module):
    """Changes nothing, says its bits and counts its calls."""

    def __init__(self, bits: int = 4) -> None:
        super().__init__()
        self.bits = bits
        self.calls = 0

    def forward(self, w):
        self.calls += 1
        return w.clone()

    def get_bitwidth(self):
        return torch.tensor(self.bits)


class Net(nn.Module):
    """Defines its layers in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 10)
        self.conv3 = nn.Conv2d(6, 2, 3, padding=1, stride=2)
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv1(x)))
        x = self.drop(torch.relu(self.conv2(x)))
        return self.linear(self.conv3(x).amax((2, 3)))


@pytest.fixture
def net() -> Net:
    """Known zeros: filter 0 of conv1 (float); filters 0 and 1 of conv2, and one kernel more; four rows of linear."""
    model = Net()
    attach_weight_quantizers(model, ["conv1"], Exact, {})
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.conv3, model.linear):
            latent_weight(layer).copy_(0.3 * torch.randn_like(latent_weight(layer)))
        model.conv1.weight[0] = 0
        latent_weight(model.conv2)[:2] = 0
        latent_weight(model.conv2)[2, 0] = 0
        latent_weight(model.linear)[:4] = 0
    for name, quantizer in named_quantizers(model):
        quantizer.bits = BITS[name]
    return model


@pytest.fixture
def evaluator() -> Evaluator:
    return Evaluator(Net(), INPUT)


def batches(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        yield torch.randn(size, *INPUT, generator=generator), torch.randint(10, (size,), generator=generator)


def test_accuracy_and_loss_equal_a_plain_loop_over_uneven_batches(net, evaluator):
    for x, _ in batches([16, 16], seed=1):
        net(x)  # gives BatchNorm statistics of its own
    result = evaluator.evaluate(net.train(), list(batches([7, 5, 1])))
    plain, right, losses = copy.deepcopy(net).eval(), 0, []
    for x, y in batches([7, 5, 1]):
        for image, label in zip(x, y, strict=True):
            logits = plain(image[None])[0].detach().double()
            right += int(logits.argmax() == label)
            losses.append(float(logits.exp().sum().log() - logits[label]))
    assert 0 < right < 13
    assert result.test_accuracy == right / 13
    assert result.test_loss == pytest.approx(sum(losses) / 13, rel=1e-5)


def test_batches_stay_as_they_are_where_a_model_overwrites_its_input(evaluator):
    net, kept = Doubling(192, 10), list(batches([7, 5]))
    assert evaluator.accuracy(net, kept) == evaluator.accuracy(net, kept)
    assert all(torch.equal(x, before) for (x, _), (before, _) in zip(kept, batches([7, 5]), strict=True))


def test_without_a_loader_accuracy_and_loss_are_none(net, evaluator):
    result = evaluator.evaluate(net)
    assert result.test_accuracy is None
    assert result.test_loss is None


def test_a_loader_without_batches_is_a_clear_error_that_leaves_the_modes_alone(net, evaluator):
    net.train()
    with pytest.raises(CodeqError, match="no batches"):
        evaluator.evaluate(net, [])
    assert all(module.training for module in net.modules())


def test_inputs_that_the_model_does_not_take_are_a_clear_error(net, evaluator):
    with pytest.raises(CodeqError, match=r"fails on inputs of int64 \[2, 3, .*\]: RuntimeError"):
        evaluator.evaluate(net, [(torch.ones(2, *INPUT).long(), torch.tensor([1, 2]))])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64])
def test_labels_of_any_integer_type_count(net, evaluator, dtype):
    x = torch.rand(4, *INPUT)
    assert evaluator.accuracy(net, [(x, net.eval()(x).argmax(1).to(dtype))])[0] == 1.0


@pytest.mark.parametrize("label", [10, -1, -100])  # cross_entropy leaves out -100 in silence
def test_labels_of_no_class_are_a_clear_error(net, evaluator, label):
    with pytest.raises(
        CodeqError, match="1 of 2 labels are none of the 10 classes of the model: must be integers 0 … 9"
    ):
        evaluator.evaluate(net, [(torch.rand(2, *INPUT), torch.tensor([1, label]))])


@pytest.mark.parametrize("labels", [torch.tensor([[1], [2]]), torch.eye(10)[:2], torch.tensor([1.0, 2.0])])
def test_labels_that_would_broadcast_are_a_clear_error(net, evaluator, labels):
    with pytest.raises(CodeqError, match="labels are"):
        evaluator.evaluate(net, [(torch.rand(2, *INPUT), labels)])


def test_sparsities_are_those_of_the_quantized_convolutions_alone(net, evaluator):
    result = evaluator.evaluate(net)
    assert result.structured_sparsity == 2 / 8
    assert result.unstructured_sparsity == (2 * 36 + 9) / (216 + 108)


def test_mean_bits_count_every_quantized_layer_once(net, evaluator):
    assert evaluator.evaluate(net).mean_bits == (2 + 4 + 6) / 3


def test_costs_equal_a_count_by_hand(net, evaluator):
    result = evaluator.evaluate(net)
    positions = {"conv1": 64, "conv2": 64, "conv3": 16, "linear": 1}
    bits = BITS | {"conv1": 32}
    dense = {"conv1": 3 * 4 * 9, "conv2": 4 * 6 * 9, "conv3": 6 * 2 * 9, "linear": 2 * 10}
    # What is left: zeros left out one by one; or dead filters and the input channels they fed.
    single = {"conv1": 3 * 3 * 9, "conv2": 216 - 81, "conv3": 108, "linear": 12}
    channels = {"conv1": 3 * 3 * 9, "conv2": 3 * 4 * 9, "conv3": 4 * 2 * 9, "linear": 2 * 6}

    def total(weights, unit):
        return sum(weights[name] * positions[name] * (32 * unit[name] if unit else 1) for name in weights)

    floats = dict.fromkeys(dense, 32)
    assert result.unstructured_mac_ratio == pytest.approx(total(dense, None) / total(single, None))
    assert result.unstructured_bops_ratio == pytest.approx(total(dense, floats) / total(single, bits))
    assert result.structured_mac_ratio == pytest.approx(total(dense, None) / total(channels, None))
    assert result.structured_bops_ratio == pytest.approx(total(dense, floats) / total(channels, bits))


def test_costs_equal_those_of_the_comparison(net, evaluator):
    comparison = QuantizationComparison(INPUT)
    comparison.set_baseline(Net())
    structured, unstructured = comparison.calculate_stats(net), comparison.calculate_unstructured_stats(net)
    result = evaluator.evaluate(net)
    assert result.structured_stats == structured
    assert result.unstructured_stats == unstructured
    assert result.structured_bops_ratio == comparison.compression_ratio(structured)
    assert result.structured_mac_ratio == comparison.mac_compression_ratio(structured)
    assert result.unstructured_bops_ratio == comparison.unstructured_compression_ratio(unstructured)
    assert result.unstructured_mac_ratio == comparison.unstructured_mac_compression_ratio(unstructured)


def test_a_float_model_has_32_bits_and_saves_nothing():
    model = resnet20()
    result = Evaluator(model).evaluate(model)
    assert result.mean_bits == 32
    assert result.layers["bits"].unique().tolist() == [32]
    assert not result.layers["quantized"].any()
    assert (result.structured_bops_ratio, result.unstructured_mac_ratio) == (1.0, 1.0)
    assert (result.structured_sparsity, result.unstructured_sparsity) == (0.0, 0.0)


def test_quantizers_switched_off_count_as_float(net, evaluator):
    toggle_quantization(net, enabled=False)
    result = evaluator.evaluate(net)
    assert result.mean_bits == 32
    assert not result.layers["quantized"].any()


def test_of_a_model_without_convolutions_all_layers_count():
    model = CifarMLP()
    with torch.no_grad():
        model.fc2.weight[:21] = 0
    result = Evaluator(model).evaluate(model)
    assert result.structured_sparsity == 21 / (120 + 84 + 10)
    assert result.unstructured_sparsity == 21 * 120 / (3072 * 120 + 120 * 84 + 84 * 10)


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_convolutions_in_any_number_of_dimensions_count_alone(conv):
    dims = conv(1, 1, 1).weight.ndim - 2
    net = nn.Sequential(conv(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4**dims, 5))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[3].weight[:] = 0
    size = (2, *[4] * dims)
    result = Evaluator(net, size).evaluate(net)
    assert (result.structured_sparsity, result.unstructured_sparsity) == (1 / 4, 1 / 4)


def test_a_model_of_zeros_alone_is_infinitely_small(evaluator):
    model = Net()
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.conv3, model.linear):
            layer.weight.zero_()
    result = evaluator.evaluate(model)
    assert result.structured_bops_ratio == result.structured_mac_ratio == math.inf
    assert result.unstructured_bops_ratio == result.unstructured_mac_ratio == math.inf
    assert (result.structured_sparsity, result.unstructured_sparsity) == (1.0, 1.0)


def test_the_layer_table_has_a_row_a_layer_in_order_of_execution(net, evaluator):
    table = evaluator.evaluate(net).layers
    assert table.columns.tolist() == [
        "layer", "quantized", "bits", "theta_dz", "theta_bit", "filters", "dead_filters", "alive", "norms", "density",
        "null_in", "null_out", "structured_pruning", "unstructured_pruning", "structured_macs", "structured_bops",
        "unstructured_macs", "unstructured_bops",
    ]  # fmt: skip
    assert table["layer"].tolist() == ["conv1", "conv2", "conv3", "linear"]
    assert table["quantized"].tolist() == [False, True, True, True]
    assert table["bits"].tolist() == [32, 2, 4, 6]
    assert table["filters"].tolist() == [4, 6, 2, 10]
    assert table["dead_filters"].tolist() == [1, 2, 0, 4]
    assert table["null_in"].tolist() == [0, 1, 2, 0]
    assert table["null_out"].tolist() == [1, 2, 0, 4]
    assert table["density"].tolist() == pytest.approx([3 / 4, (216 - 81) / 216, 1, 0.6])
    assert table["structured_pruning"].tolist() == pytest.approx([1 / 4, 2 / 6, 0, 0.4])
    assert table["unstructured_pruning"].tolist() == pytest.approx([1 / 4, 81 / 216, 0, 0.4])
    assert table["structured_macs"].tolist() == [81 * 64, 108 * 64, 72 * 16, 12]
    assert table["unstructured_bops"].tolist() == [81 * 64 * 1024, 135 * 64 * 64, 108 * 16 * 128, 12 * 192]
    assert table["theta_dz"].isna().all()


def test_the_layer_table_holds_the_logits_of_the_quantizers(evaluator):
    model = Net()
    attach_weight_quantizers(model, ["conv1"], "deadzone", {"init_deadzone_logit": 2.0, "init_bit_logit": -0.5})
    table = evaluator.evaluate(model).layers
    assert table["theta_dz"].tolist() == pytest.approx([math.nan, 2.0, 2.0, 2.0], nan_ok=True)
    assert table["theta_bit"].tolist() == pytest.approx([math.nan, -0.5, -0.5, -0.5], nan_ok=True)


def test_liveness_marks_the_filters_with_a_weight_left(net, evaluator):
    result = evaluator.evaluate(net)
    assert list(result.liveness) == ["conv1", "conv2", "conv3", "linear"]
    assert result.liveness["conv1"].tolist() == [False, True, True, True]
    assert result.liveness["conv2"].tolist() == [False, False, True, True, True, True]
    for name, digits, count in result.layers[["layer", "alive", "filters"]].itertuples(index=False):
        assert decode_mask(digits, count).tolist() == result.liveness[name].tolist()


@each("quantizer", [*QUANTIZERS, None])
def test_norms_are_those_of_the_weights_that_the_network_uses(quantizer):
    model = Net()
    if quantizer:
        attach_weight_quantizers(model, ["conv1"], quantizer, {})
    with torch.no_grad():
        latent_weight(model.conv2)[:2] = 0
        latent_weight(model.linear)[...] = 0
        model.conv1.weight[1] = math.nan
        model.conv1.weight[2] = 3e-30  # its squares are zero in float32
    table = Evaluator(Net(), INPUT).evaluate(model).layers.set_index("layer")
    for name in ("conv1", "conv2", "conv3", "linear"):
        weight = model.get_submodule(name).weight.detach().numpy().astype(np.float64)
        expected = np.sqrt((weight.reshape(len(weight), -1) ** 2).sum(axis=1))
        found = decode_norms(table["norms"][name], len(weight))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert ((found == 0) == (expected == 0)).all()
    assert not decode_norms(table["norms"]["linear"], 10).any()
    assert decode_norms(table["norms"]["conv1"], 4)[2] == pytest.approx(3e-30 * 27**0.5)


def test_every_module_keeps_the_mode_it_had_and_nothing_else_changes(net, evaluator):
    spectral_norm(net.conv1)
    net.train()
    net.bn.eval()
    before = {name: module.training for name, module in net.named_modules()}
    state = copy.deepcopy(net.state_dict())
    evaluator.evaluate(net, batches([4]))
    evaluator.plot_channel_liveness(net)
    evaluator.plot_sparsity_map(net, "conv1")
    assert {name: module.training for name, module in net.named_modules()} == before
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("sizes", [None, [3], [1] * 9])
def test_each_weight_is_quantized_once_however_many_batches_come(net, evaluator, sizes):
    evaluator.evaluate(net)  # the model is traced the first time
    before = {name: quantizer.calls for name, quantizer in named_quantizers(net)}
    evaluator.evaluate(net, sizes and batches(sizes))
    assert {name: q.calls - before[name] for name, q in named_quantizers(net)} == dict.fromkeys(before, 1)


def test_an_evaluation_sees_the_weights_of_its_own_time(net, evaluator):
    before = evaluator.evaluate(net).unstructured_sparsity
    with torch.no_grad():
        latent_weight(net.conv3).zero_()
    assert evaluator.evaluate(net).unstructured_sparsity == pytest.approx(before + 108 / 324)


def test_figures_show_the_model(net, evaluator):
    liveness = evaluator.plot_channel_liveness(net)
    kernels = evaluator.plot_sparsity_map(net, "conv2")
    bars = evaluator.plot_layer_sparsity_bars(evaluator.evaluate(net))
    assert all(isinstance(figure, Figure) for figure in (liveness, kernels, bars))
    image = np.asarray(liveness.axes[0].images[0].get_array())
    assert image.shape == (4, 10)
    assert [(row == 0).sum() for row in image] == [1, 2, 0, 4]
    assert (np.asarray(kernels.axes[0].images[0].get_array()) == 0).sum() == 81


def test_an_unknown_layer_gets_the_nearest_name(net, evaluator):
    with pytest.raises(CodeqError, match=r"layer 'conv' is unknown\. Did you mean 'conv\d'"):
        evaluator.plot_sparsity_map(net, "conv")
    with pytest.raises(CodeqError, match="layer 'bn' is unknown"):
        evaluator.plot_sparsity_map(net, "bn")


def test_a_quantizer_that_hides_its_bits_is_a_clear_error(evaluator):
    class Silent(nn.Module):
        def forward(self, w):
            return w

    model = Net()
    attach_weight_quantizers(model, [], Silent, {})
    with pytest.raises(CodeqError, match=r"'conv1'.*Silent has no get_bitwidth"):
        evaluator.evaluate(model)


def test_the_baseline_is_dense_whatever_the_model_it_came_from(net):
    assert Evaluator(net, INPUT).evaluate(net).structured_mac_ratio > 1


def test_the_input_size_decides_the_costs():
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, padding=1)))
    assert Evaluator(model, (3, 8, 8)).evaluate(model).structured_stats.total_macs == 108 * 64
    assert Evaluator(model, (3, 4, 4)).evaluate(model).structured_stats.total_macs == 108 * 16


class Tokens(nn.Module):
    """Few weights in a convolution, many in linear layers, as in a vision transformer."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.second(self.first(self.embed(x).flatten(1)).relu())


def test_sparsities_of_convolutions_alone_say_how_little_that_is():
    model = Tokens()
    with torch.no_grad():
        model.first.weight.zero_()
    result = Evaluator(model, (3, 8, 8)).evaluate(model)
    assert result.unstructured_sparsity == 0  # the convolution's
    note = "zero weights and dead filters are those of the convolutions, which have 1.0% of the weights"
    assert note in result.notes
    assert not Evaluator(resnet20()).evaluate(resnet20()).left_out


class OneLogitPerChannel(nn.Module):
    """A quantizer of a user with a logit for each output channel."""

    def __init__(self):
        super().__init__()
        self.logit_dz = nn.Parameter(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))

    def forward(self, w):
        return w * (w.abs() > self.logit_dz.sigmoid().detach()) + 0 * self.logit_dz

    def get_bitwidth(self):
        return torch.tensor(4.0)


def test_the_table_has_the_mean_of_several_logits():
    net = nn.Sequential(nn.Conv2d(3, 2, 3))
    parametrize.register_parametrization(net[0], "weight", WeightQuantization(OneLogitPerChannel(), enabled=True))
    layers = Evaluator(net, (3, 8, 8)).evaluate(net).layers
    assert layers["theta_dz"].tolist() == [2.0]
    factor = 0.1
    objective = Objective(net, [], [([q for name, q in net.named_parameters() if name.endswith("logit_dz")], factor)])
    _, parts = objective.backward(lambda x: net(x).mean((2, 3)), torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), [])
    assert parts.values[list(parts.names).index(THETA_REGULARIZER)].item() == pytest.approx(factor * (1 + 9))


def test_a_compacted_network_without_parameters_is_evaluated_and_has_no_sparsity_loss():
    dead = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    nn.init.zeros_(dead[0].weight)
    x, y = torch.randn(5, 3, 8, 8), torch.zeros(5, dtype=torch.long)
    smaller = compact(dead, x).model
    assert not list(smaller.parameters())
    expected = Evaluator(dead, (3, 8, 8)).evaluate(dead, [(x, y)]).test_accuracy
    assert Evaluator(smaller, (3, 8, 8)).evaluate(smaller, [(x, y)]).test_accuracy == expected
    assert (
        group_lasso_channels(smaller).item()
        == coupled_group_lasso(smaller, input_size=(3, 8, 8))(smaller).item()
        == 0.0
    )


def test_weights_that_change_inside_the_context_of_another_model_are_evaluated_as_they_are():
    net, teacher = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.Conv2d(3, 4, 3))
    attach_weight_quantizers(net, [], "deadzone", {})
    evaluator = Evaluator(net, (3, 8, 8))
    with torch.no_grad(), fused_quantization(teacher):
        assert evaluator.evaluate(net).unstructured_sparsity < 1
        latent_weight(net[0]).zero_()
        assert evaluator.evaluate(net).unstructured_sparsity == 1


def test_sparsities_are_those_of_the_quantized_layers_where_the_convolutions_are_float():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 8))
    attach_weight_quantizers(net, ["0"], "deadzone", {})
    with torch.no_grad():
        latent_weight(net[2])[:2] = 0
    result = Evaluator(net, (3, 8, 8)).evaluate(net)
    assert result.structured_sparsity == 0.25
    assert result.unstructured_sparsity == float((net[2].weight == 0).double().mean())
    assert not result.left_out
