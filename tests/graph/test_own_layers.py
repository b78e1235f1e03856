"""Layers and BatchNorms with a forward of their own that calls the function of their PyTorch class."""

import pytest
import torch
import torch.nn.functional as F
from cases import each
from networks import shaken
from timm.layers import LayerNormAct2d
from torch import nn
from torch.ao import quantization
from torch.ao.nn import qat

from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.flow.explain import explain
from codeq.graph.activations import attach_activation_quantizers
from codeq.graph.call_recording import record_calls
from codeq.graph.channels import coupled_groups
from codeq.graph.tracing import trace
from codeq.metrics import exact_stats, measure
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.sparsity import coupled_group_lasso

SIZE = (3, 9, 9)


class SameConv(nn.Conv2d):
    """A convolution that pads its input as TensorFlow does."""

    def forward(self, x):
        rows, columns = (
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(x.shape[2:], self.stride, self.weight.shape[2:], strict=True)
        )
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class CastingLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with an activation function, and with a module that has parameters."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3)
        self.act = nn.PReLU()

    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return F.relu(x)


def network(own: bool) -> nn.Module:
    torch.manual_seed(0)
    conv, linear = (SameConv, CastingLinear) if own else (nn.Conv2d, nn.Linear)
    pad = {} if own else {"padding": 1}  # the same for odd sizes
    norms = [NormAct(6), NormAct(8)] if own else [nn.Sequential(nn.BatchNorm2d(n, eps=1e-3), nn.ReLU()) for n in (6, 8)]
    net = nn.Sequential(
        conv(3, 6, 3, stride=2, bias=False, **pad), norms[0], conv(6, 8, 3, **pad), norms[1],
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(8, 4),
    )  # fmt: skip
    for layer in (net[0], net[2]):
        nn.init.zeros_(layer.weight[:2])
    return shaken(net)


def test_they_count_couple_and_compact_as_plain_ones():
    own, plain = network(True), network(False)
    assert not trace(own, SIZE).unknown
    assert [(r.name, r.spatial) for r in measure(own, SIZE)] == [(r.name, r.spatial) for r in measure(plain, SIZE)]
    groups = [coupled_groups(trace(net, SIZE)) for net in (own, plain)]
    assert groups[0].count == groups[1].count == 14
    assert groups[0].batchnorms["1"].tolist() == groups[1].batchnorms["1.0"].tolist()
    x = torch.randn(3, *SIZE, dtype=torch.double)
    first, second = (compact(net, x) for net in (own, plain))
    assert first.proof.compacted_macs == second.proof.compacted_macs == exact_stats(own, SIZE).total_macs
    assert torch.allclose(first.model(x), second.model(x))
    assert not first.unknown


@each("batchnorm", [True, False])
def test_the_coupled_loss_takes_the_scale_and_shift_alone(batchnorm):
    own, plain = network(True), network(False)
    losses = [coupled_group_lasso(net, batchnorm=batchnorm, input_size=SIZE)(net) for net in (own, plain)]
    assert torch.allclose(*losses)
    coupled_group_lasso(own, batchnorm=batchnorm, input_size=SIZE).proximal_step(own, 100.0)
    assert not own[0].weight.any()
    assert own[1].act.weight == 0.25


def test_what_is_compacted_keeps_its_quantizers_and_trains_on():
    own = network(True).float()
    attach_weight_quantizers(own, [], "deadzone", {})
    x = torch.randn(3, *SIZE)
    attach_activation_quantizers(own, x)
    assert [record.activation_bits for record in measure(own, SIZE)] == [8, 8, 8]
    small = compact(own, x, keep_quantizers=True).model
    assert small.get_submodule("1").weight.requires_grad
    small.train()(x).square().sum().backward()
    assert small.get_submodule("1").weight.grad.any()


class LowRank(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.a = nn.Parameter(torch.randn(4, 2))
        self.b = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + x @ self.b.T @ self.a.T


class Standardized(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(), self.bias)


class Deciding(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias) if x.sum() > 0 else super().forward(x)


class Paired(nn.Linear):
    """A layer that returns a pair, as those of Megatron-LM do."""

    def forward(self, x):
        return F.linear(x, self.weight * 2), self.bias


class Unpaired(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


def test_one_that_returns_several_tensors_is_kept_whole():
    net = nn.Sequential(nn.Linear(4, 4), Paired(4, 4), Unpaired(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        net[3].weight[:, 1] = 0
    x = torch.randn(2, 4, dtype=torch.double)
    report = compact(net, x)
    assert report.unknown[0] == "1 (Paired)"
    assert torch.allclose(report.model(x), net(x))
    stats = exact_stats(net, (4,))
    assert [layer.name for layer in stats.layers] == ["0", "3"]
    assert "layer '1' returns something else than one tensor: no MACs in the exact accounting" in stats.notes
    assert not any("never called" in note or "constants" in note for note in stats.notes)
    with pytest.raises(CodeqError, match="layer '1' returns something else than one tensor: its channels are not"):
        explain(net, "1", 0, (4,))
    small = compact(net, x, keep_quantizers=True).model  # without a quantizer, it is a plain copy
    assert small.get_parameter("1.weight").requires_grad
    attach_weight_quantizers(net, [], "uniform", {})
    with pytest.raises(CodeqError, match="layer '1' returns something else than one tensor, so that its quantizer"):
        compact(net, x, keep_quantizers=True)


@pytest.mark.parametrize("layer", [LowRank, Standardized, Deciding])
def test_those_that_compute_with_more_are_kept_whole_and_not_counted(layer):
    net = nn.Sequential(nn.Linear(4, 4), layer(4, 4))
    message = f"layer '1' \\({layer.__name__}\\) cannot be counted: the forward of {layer.__name__} computes with more"
    with pytest.raises(CodeqError, match=message):
        measure(net, (4,))
    report = compact(net, torch.randn(2, 4))
    assert report.unknown == [f"1 ({layer.__name__})"]
    attach_weight_quantizers(net, [], "uniform", {})
    with pytest.raises(CodeqError, match=message):
        measure(net, (4,))


class Dropping(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.drop = nn.Dropout()

    def forward(self, x):
        return F.linear(self.drop(x), self.drop(self.weight - self.weight.mean()), self.bias)


class AdaNorm(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width)
        self.scale = nn.Linear(width, width)

    def forward(self, x):
        return super().forward(x) * self.scale(x)


def test_modules_inside_a_layer_that_is_kept_whole_are_not_recorded():
    calls = record_calls(nn.Sequential(nn.Linear(4, 4), Dropping(4, 4)), (4,))
    assert [str(node.target) for node in calls.graph.nodes] == ["input", "0", "1", "output"]
    assert [call.name for call in calls.module_calls] == ["0", "1", ""]


def test_layers_inside_a_norm_are_counted():
    net = nn.Sequential(nn.Linear(4, 4), AdaNorm(4), nn.Linear(4, 2))
    assert [record.name for record in measure(net, (4,))] == ["0", "1.scale", "2"]
    assert exact_stats(net, (4,)).total_macs == 40


class MixingNorm(nn.LayerNorm):
    def __init__(self, width, trained):
        super().__init__(width)
        matrix = torch.randn(width, width)
        self.mix = nn.Parameter(matrix) if trained else None
        self.register_buffer("fixed", None if trained else matrix)

    def forward(self, x):
        return F.linear(super().forward(x), self.fixed if self.mix is None else self.mix)


@each(("trained", "name"), [(True, "1.mix"), (False, "1.fixed")])
def test_matrices_inside_a_norm_are_counted(trained, name):
    net = nn.Sequential(nn.Linear(4, 4), MixingNorm(4, trained), nn.Linear(4, 2))
    assert [record.name for record in measure(net, (4,))] == ["0", name, "2"]
    assert exact_stats(net, (4,)).total_macs == compact(net, torch.randn(3, 4)).proof.compacted_macs == 40


def test_a_norm_with_an_activation_function_inside_is_followed():
    net = shaken(nn.Sequential(nn.Conv2d(3, 4, 1), LayerNormAct2d(4), nn.Conv2d(4, 2, 1)))
    assert exact_stats(net, SIZE).total_macs == 81 * 20
    x = torch.randn(3, *SIZE, dtype=torch.double)
    report = compact(net, x, keep_quantizers=True)
    assert torch.allclose(report.model(x), net.eval()(x))
    assert not report.notes  # its scale and shift are no constants
    assert all(report.model.get_parameter(f"1.{key}").requires_grad for key in ("weight", "bias"))


def test_layers_of_quantization_aware_training_in_pytorch_are_refused():
    configuration = quantization.QConfig(quantization.default_fake_quant, quantization.default_weight_fake_quant)
    for layer in (qat.Conv2d(3, 4, 1, qconfig=configuration), qat.Linear(9, 4, qconfig=configuration)):
        with pytest.raises(CodeqError, match="computes with more than its weight and bias"):
            measure(nn.Sequential(nn.Conv2d(3, 3, 1), layer).eval(), SIZE)
