"""Explanations against the compacted networks: what they predict is what removing the group really saves."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each
from networks import TiedDecoder
from torch import nn
from torchvision import models

from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.flow import channel_flow
from codeq.flow.explain import explain
from codeq.models import resnet20
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.quantizer.layers import bitwidth, named_layers

SIZE = (3, 8, 8)


def wounded(make, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = make().eval()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data[torch.rand(len(module.weight), generator=generator) < 0.2] = 0
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return model


def compacted_cost(model: nn.Module, bits: dict[str, int]) -> tuple[int, int]:
    """MACs by PyTorch's counter, and BOPs from the shapes of the layers that are left."""
    report = compact(model, torch.rand(1, *SIZE))
    positions: dict[str, int] = {}
    hooks = [
        report.model.get_submodule(name).register_forward_hook(
            lambda _module, _x, y, name=name: positions.__setitem__(name, y[0, 0].numel() if y.ndim == 4 else 1)
        )
        for name in report.kept
        if name in dict(report.model.named_modules())
    ]
    with torch.no_grad():
        report.model(torch.rand(1, *SIZE))
    for hook in hooks:
        hook.remove()
    bops = sum(
        report.model.get_submodule(name).weight.numel() * used * bits[name] * 32 for name, used in positions.items()
    )
    return report.proof.compacted_macs, bops


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet20, lambda: resnet20(shortcut="B")], ids=["A", "B"])
def test_the_predicted_savings_are_those_measured_after_the_group_is_forced_dead(make):
    model = wounded(make, 0)
    bits = {name: bitwidth(name, layer) for name, layer in named_layers(model)}
    before = compacted_cost(model, bits)
    generator = np.random.default_rng(0)
    names = [name for name in bits if name != "linear"]
    for name in generator.choice(names, 3, replace=False):
        channel = int(generator.integers(len(model.get_submodule(name).weight)))
        explanation = explain(model, name, channel, SIZE)
        forced = copy.deepcopy(model)
        for writer, c in explanation.group.writers:
            forced.get_submodule(writer).weight.data[c] = 0
        after = compacted_cost(forced, bits)
        assert (explanation.saved_macs, explanation.saved_bops) == (before[0] - after[0], before[1] - after[1])


def test_savings_count_the_learned_bits():
    model = resnet20()
    attach_weight_quantizers(model, ["linear"], "uniform", {"bitwidth": 4})
    explanation = explain(model, "layer1.0.conv1", 2, SIZE)
    assert explanation.saved_macs == 2 * 9 * 16 * 64
    assert explanation.saved_bops == explanation.saved_macs * 4 * 32


def test_a_live_channel():
    explanation = explain(resnet20(), "layer1.0.conv1", 2)
    assert (explanation.kind, explanation.value, explanation.kept_by) == ("live", None, ())
    assert explanation.read_by == (("layer1.0.conv2", 2, 16 * 9),)
    assert explanation.reasons[0].startswith("144 of its 144 weights are not zero")


def test_batchnorms_shift_is_named_with_the_constant_it_makes():
    model = resnet20().eval()
    with torch.no_grad():
        model.layer1[0].conv1.weight[2] = 0
        model.layer1[0].bn1.bias[2] = 0.75
        model.layer1[0].bn1.running_mean[2] = 0.5
    explanation = explain(model, "layer1.0.conv1", 2)
    expected = 0.75 - 0.5 / (1 + 1e-5) ** 0.5
    assert explanation.kind == "constant"
    assert explanation.value == pytest.approx(expected, abs=1e-7)
    assert "layer1.0.bn1 (scale 1, shift 0.75, mean 0.5) makes it the constant 0.25" in explanation.reasons
    assert explanation.saved_macs == 0
    assert explanation.reasons[-1] == "its group is dead already"


def test_a_skip_partner_keeps_the_channel_alive():
    model = resnet20()
    with torch.no_grad():
        model.layer1[0].conv2.weight[3] = 0
        for stage, c in (("layer1", 3), ("layer2", 11), ("layer3", 27)):
            for block in getattr(model, stage)[1 if stage == "layer1" else 0 :]:
                block.conv2.weight[c] = 0
    explanation = explain(model, "layer1.0.conv2", 3)
    assert explanation.kept_by == (("conv1", 3),)
    assert "conv1[3] writes the same channel of the residual stream and keeps it alive" in explanation.reasons
    assert explanation.saved_macs > 0
    with torch.no_grad():
        model.conv1.weight[3] = 0
    dead = explain(model, "layer1.0.conv2", 3)
    assert (dead.kept_by, dead.saved_macs) == ((), 0)


def test_an_unread_channel():
    model = resnet20()
    nn.init.zeros_(model.layer1[0].conv2.weight[:, 2])
    explanation = explain(model, "layer1.0.conv1", 2)
    assert (explanation.kind, explanation.read_by, explanation.saved_macs) == ("unread", (), 0)
    assert "nothing reads it: every slice of it is zero or belongs to a dead filter" in explanation.reasons


@pytest.mark.slow
def test_depthwise_slices_are_read_by_their_own_filter():
    model = models.mobilenet_v2(num_classes=10).eval()
    explanation = explain(model, "features.2.conv.0.0", 5, (3, 32, 32))
    assert explanation.read_by[0] == ("features.2.conv.1.0", 5, 9)
    assert explanation.group.writers == (("features.2.conv.0.0", 5), ("features.2.conv.1.0", 5))


def test_a_logit_cannot_be_removed():
    explanation = explain(resnet20(), "linear", 3)
    assert (explanation.group, explanation.saved_macs) == (None, 0)
    assert "cannot be pruned" in str(explanation)


def test_mistakes():
    with pytest.raises(CodeqError, match="channel=99"):
        explain(resnet20(), "conv1", 99)
    for channel in ("0", 1.0, True, None):
        with pytest.raises(CodeqError, match=f"channel={channel!r}: must be an integer"):
            explain(resnet20(), "conv1", channel)


@pytest.mark.parametrize("layer", ["layer1.0.conv1", "layer1.0.conv2"])
def test_channels_of_a_layer_that_is_all_zero_or_reads_nothing_are_explained(layer):
    model = resnet20().eval()
    model.layer1[0].conv1.weight.data.zero_()
    model.layer1[0].bn1.bias.data.fill_(0.5)
    found = explain(model, layer, 0)
    assert found.kind == "fixed" if layer == "layer1.0.conv2" else "constant"
    assert any("layer1.0.bn" in reason for reason in found.reasons)


def test_a_channel_beside_attention_is_explained():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 4, stride=4)
            self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    found = explain(Tokens().eval(), "layer.linear1", 0, SIZE)
    assert (found.kind, found.saved_macs) == ("live", 4 * 16)


def test_a_dead_filter_of_a_layer_called_by_a_function_is_explained():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(F.conv2d(x, self.conv.weight, self.conv.bias).mean((2, 3)))

    model = Functional().eval()
    with torch.no_grad():
        model.conv.weight[1], model.conv.bias[1] = 0, 0.25
    found = explain(model, "conv", 1, SIZE)
    assert (found.kind, found.value, found.read_by) == ("constant", 0.25, (("fc", 1, 2),))


def test_all_calls_of_a_layer_are_looked_at():
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.shared, self.bn, self.fc = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)
            self.register_buffer("off", torch.zeros(1))

        def forward(self, x):
            read, unread = (self.bn(self.shared(F.relu(layer(x)))) for layer in (self.a, self.b))
            return self.fc((read + self.off * unread).mean((2, 3)))

    model = Again().eval()
    with torch.no_grad():
        model.shared.weight[1] = 0
    assert explain(model, "a", 0, SIZE).read_by == (("shared", 0, 3),)
    assert explain(model, "shared", 0, SIZE).kind == "live"
    dead = explain(model, "shared", 1, SIZE)
    assert dead.value == pytest.approx(model.shared.bias[1].item() / (1 + 1e-5) ** 0.5)


def test_layers_that_share_a_batchnorm_are_explained_apart():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.bn, self.fc = nn.BatchNorm2d(4), nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(torch.cat([F.relu(self.bn(layer(x))) for layer in (self.a, self.b)], 1).mean((2, 3)))

    model = Shared().eval()
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1] = 0, 0.25
    dead = explain(model, "a", 1, SIZE)
    assert (dead.kind, dead.kept_by, dead.read_by) == ("constant", (), (("fc", 1, 2),))
    assert dead.value == pytest.approx(0.25 / (1 + 1e-5) ** 0.5)
    assert dead.group.writers == (("a", 1), ("b", 1))
    assert not any("in each call" in reason or "residual stream" in reason for reason in dead.reasons)
    assert explain(model, "b", 1, SIZE).read_by == (("fc", 5, 2),)


def test_a_depthwise_filter_does_not_write_the_channel_that_it_reads():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[1].weight[2] = 0
    dead = explain(model, "1", 2, SIZE)
    assert (dead.kind, dead.kept_by, dead.read_by) == ("constant", (), (("2", 2, 2),))
    assert explain(model, "0", 1, SIZE).read_by == (("1", 1, 9),)
    assert explain(model, "1", 1, SIZE).kept_by == ()


def test_a_dead_filter_before_statistics_of_the_batch_is_explained_without_them():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0.25
    found = explain(model, "0", 1, (3, 1, 1))
    assert (found.kind, found.value) == ("constant", 0.25)


def test_a_weight_that_is_used_without_a_layer_is_explained():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))

        def forward(self, x):
            return F.linear(x.mean((2, 3)), self.weight)[:, 1:]

    model = Packed()
    with torch.no_grad():
        model.weight[1] = 0
    found = explain(model, "weight", 1, SIZE)
    assert (found.kind, found.value, found.group) == ("constant", 0.0, None)
    assert explain(model, "weight", 0, SIZE).kind == "unread"
    with pytest.raises(CodeqError, match=r"layer 'bias' is unknown\. Allowed: weight"):
        explain(model, "bias", 0, SIZE)


def test_channels_of_layers_in_no_coupled_group_are_explained():
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.mlp, self.fc = nn.ConvTranspose2d(3, 4, 2), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.fc(self.mlp(self.up(x).permute(0, 2, 3, 1)).mean((1, 2)))

    model = Elsewhere().eval()
    with torch.no_grad():
        model.up.weight[:, 1], model.mlp.weight[2], model.mlp.bias[2] = 0, 0, 0.25
    dead, linear = explain(model, "up", 1, SIZE), explain(model, "mlp", 2, SIZE)
    assert (dead.kind, dead.value, dead.group) == ("constant", pytest.approx(model.up.bias[1].item()), None)
    assert (linear.kind, linear.value) == ("constant", 0.25)
    bias = f"{model.up.bias[1].item():.4g}"
    assert dead.reasons[:2] == (
        f"all of its 12 weights are zero, its bias is {bias}",
        f"its result is the constant {bias}",
    )
    assert linear.reasons[1] == "its result is the constant 0.25"
    assert explain(model, "up", 0, SIZE).kind == "live"
    with pytest.raises(CodeqError, match="channel=5: layer 'mlp' has channels 0 … 4"):
        explain(model, "mlp", 5, SIZE)
    with pytest.raises(CodeqError, match=r"layer 'no' is unknown\. Allowed: fc, mlp, up"):
        explain(model, "no", 0, SIZE)
    model.spare = nn.Linear(2, 2)
    with pytest.raises(CodeqError, match="layer 'spare' is not called; layers: up, mlp, fc"):
        explain(model, "spare", 0, SIZE)


class NamedLikeOthers(nn.Module):
    """Layers with the names of an argument and of a method."""

    def __init__(self):
        super().__init__()
        self.input, self.mean, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, input):
        return self.fc(self.mean(self.input(input).mean((2, 3))))


@each("layer", ["input", "mean"])
def test_layers_may_have_names_of_arguments_and_methods(layer):
    net = NamedLikeOthers()
    with torch.no_grad():
        net.get_submodule(layer).weight[3], net.get_submodule(layer).bias[3] = 0, 0.25
    explanation = explain(net, layer, 3, SIZE)
    assert (explanation.kind, explanation.value) == ("constant", 0.25)


def test_a_layer_whose_weights_are_used_in_both_directions_is_explained_in_its_own():
    net = TiedDecoder()
    with torch.no_grad():
        net.encoder.weight[4], net.encoder.bias[4] = 0, 0.25
    flow = channel_flow(net, SIZE)
    assert flow.kinds("encoder") == ["live"] * 4 + ["constant", "live"]
    explanation = explain(net, "encoder", 4, SIZE)
    assert (explanation.kind, explanation.value) == ("constant", 0.25)
    assert explain(net, "encoder", 5, SIZE).kind == "live"


@pytest.mark.parametrize(
    ("norm", "sentence"),
    [
        (nn.BatchNorm2d(4, eps=0), "1 (scale 1, shift 0.3, mean 0) makes it the constant 5.3"),
        (nn.Identity(), "its result is the constant 5"),
    ],
)
def test_a_constant_that_comes_from_the_bias_names_it(norm, sentence):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 5
        if isinstance(norm, nn.BatchNorm2d):
            norm.bias[1] = 0.3
    assert explain(model, "0", 1, SIZE).reasons[:2] == ("all of its 27 weights are zero, its bias is 5", sentence)


def test_a_constant_without_a_bias_has_its_value():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    nn.init.zeros_(model[0].weight[1])
    assert explain(model, "0", 1, SIZE).reasons[1] == "its result is the constant 0"
