import sys

import pytest
import torch
import torch.nn.functional as F
from cases import each, few
from torch import nn

from codeq.common.errors import CodeqError
from codeq.graph.ops import Concat, Gather, Layer, PerChannel, Sum, Unknown
from codeq.graph.tracing import trace
from codeq.models import MODELS, resnet18, resnet20, vit
from codeq.quantizer.attach import attach_weight_quantizers


def kinds(model: nn.Module, size=(3, 8, 8)) -> list[str]:
    return [type(op).__name__ for op in trace(model, size).ops]


SMALL = {"resnet20", "mlp", "lenet5", "resnet18"}
SIZES = [*((name, 32) for name in MODELS if name != "vit"), ("resnet18", 224), ("resnet50", 224)]


@pytest.mark.parametrize(("name", "size"), few(sorted(SIZES, key=lambda case: case[0] not in SMALL), 5))
def test_every_model_but_vit_is_traced_without_unknown_operations(name, size):
    graph = trace(MODELS[name](num_classes=10), (3, size, size))
    assert not graph.unknown
    assert graph.ops[0].channels == 3
    assert graph.ops[-1].channels == 10


def test_a_network_may_be_deeper_than_the_stack_of_python():
    relus = [nn.ReLU() for _ in range(sys.getrecursionlimit())]
    graph = trace(nn.Sequential(nn.Conv2d(3, 2, 1), *relus, nn.Flatten(), nn.Linear(2 * 16, 2)), (3, 4, 4))
    assert [op.layer for op in graph.layers] == ["0", str(len(relus) + 2)]
    assert not graph.unknown


def test_resnet20_is_what_it_is_made_of():
    graph = trace(resnet20())
    count = {kind: sum(isinstance(op, kind) for op in graph.ops) for kind in (Layer, Sum, Gather, Unknown)}
    assert count == {Layer: 20, Sum: 9, Gather: 5, Unknown: 0}  # two shortcuts slice and pad, one flatten
    assert [op.layer for op in graph.layers][:2] == ["conv1", "layer1.0.conv1"]
    assert graph.layers[-1].layer == "linear"
    assert [op.spatial for op in graph.layers if op.layer in ("conv1", "layer2.0.conv1", "linear")] == [
        (32, 32),
        (16, 16),
        (1, 1),
    ]


def test_an_unchanged_model_is_traced_once_and_a_changed_one_again():
    model = resnet20()
    first = trace(model)
    assert trace(model) is first
    assert trace(model, (3, 64, 64)) is not first
    model.linear = nn.Linear(64, 7)
    assert trace(model).layers[-1].channels == 7


@pytest.mark.parametrize("build", [resnet20, resnet18, lambda: vit(img_size=32, patch_size=4)])
def test_attaching_quantizers_changes_nothing_in_the_graph(build):
    model = build()
    before = [(type(op), op.name, op.inputs, op.channels) for op in trace(model).ops]
    attach_weight_quantizers(model, [], "deadzone", {})
    assert [(type(op), op.name, op.inputs, op.channels) for op in trace(model).ops] == before


@pytest.mark.parametrize(("kwargs", "side"), few([({"img_size": 32, "patch_size": 4}, 8), ({}, 14)]))
def test_linear_layers_of_vit_are_used_at_every_token(kwargs, side):
    graph = trace(vit(num_classes=10, **kwargs), (3, kwargs.get("img_size", 224), kwargs.get("img_size", 224)))
    geometry = {op.layer: (op.channels, op.spatial) for op in graph.layers}
    tokens = side**2 + 1
    assert len(geometry) == 1 + 12 * 4 + 1
    assert geometry["patch_embed.proj"] == (192, (side, side))
    assert geometry["blocks.3.attn.qkv"] == (3 * 192, (tokens, 1))
    assert geometry["blocks.3.attn.proj"] == (192, (tokens, 1))
    assert geometry["blocks.11.mlp.fc1"] == (4 * 192, (tokens, 1))
    assert geometry["blocks.11.mlp.fc2"] == (192, (tokens, 1))
    assert geometry["head"] == (10, (1, 1))


def test_what_vit_does_besides_its_layers_is_listed():
    calls = {op.call for op in trace(vit(img_size=32, patch_size=4)).unknown}
    assert {"call_module blocks.0.norm1", "call_module norm"} <= calls
    assert "call_function scaled_dot_product_attention in blocks.0.attn" in calls
    assert "get_attr pos_embed" in calls
    assert not any("mlp" in call for call in calls)  # from fc1 to fc2 every channel is followed


def test_an_image_of_another_size_than_vit_takes_is_a_clear_error():
    with pytest.raises(CodeqError, match=r"cannot be traced with an input of \(3, 64, 64\).*model \(32\)"):
        trace(vit(img_size=32, patch_size=4), (3, 64, 64))


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Decides(), "Decides cannot be traced"),
        (nn.Sequential(nn.Linear(5, 2)), r"\(3, 8, 8\)"),
        (nn.Sequential(nn.Conv2d(4, 2, 1)), "cannot be traced"),
    ],
)
def test_a_model_that_cannot_be_traced_is_a_clear_error(model, message):
    with pytest.raises(CodeqError, match=message):
        trace(model, (3, 8, 8))


def test_tracing_leaves_the_mode_of_every_module_alone():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout())
    model[1].eval()
    trace(model, (3, 8, 8))
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_tracing_leaves_batchnorm_statistics_alone():
    model = resnet20()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trace(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


class Slopes(nn.Module):
    """PReLU in functional form."""

    def __init__(self, count):
        super().__init__()
        self.slopes = nn.Parameter(torch.ones(count))

    def forward(self, x):
        return F.prelu(x, self.slopes)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


@each(
    ("function", "kind"),
    [
        (lambda x: x + x, Sum),
        (lambda x: x + x[:, :1], Unknown),
        (lambda x: x * 2, PerChannel),
        (lambda x: x / 2 - 1, PerChannel),
        (lambda x: x.div(2, rounding_mode="floor"), Unknown),
        (lambda x: x * torch.ones(4, 1, 1), Unknown),
        (lambda x: F.interpolate(x, scale_factor=2), PerChannel),
        (lambda x: F.interpolate(input=x, size=(4, 4), mode="bilinear"), PerChannel),
        (lambda x: F.interpolate(x.flatten(2), scale_factor=2), Unknown),
        (nn.Upsample(scale_factor=2), PerChannel),
        (nn.PReLU(4), PerChannel),
        (lambda x: x[:, :, 0, -1], PerChannel),
        (lambda x: x[..., 3, 3], PerChannel),
        (lambda x: x[..., 1:], Gather),
        (lambda x: x[:, 0, 0, :], Unknown),
        (lambda x: x[:, 0, 0, :4], Unknown),  # not the channels, though as many
        (lambda x: F.max_pool2d(x, 8).squeeze(), PerChannel),
        (lambda x: x.amax(axis=(2, 3)), PerChannel),
        (lambda x: torch.sum(input=x, dim=(2, 3)), PerChannel),
        (lambda x: x.sum(3), Unknown),
        (lambda x: x.std((2, 3)), PerChannel),
        (lambda x: x.norm(dim=(2, 3)), PerChannel),
        (lambda x: torch.norm(x, 1, (2, 3), keepdim=True), PerChannel),
        (lambda x: torch.linalg.vector_norm(x=x, ord=2, dim=(2, 3)), PerChannel),
        (lambda x: torch.norm(x, 2, 1), Unknown),
        (lambda x: x.cumsum(3), PerChannel),
        (lambda x: torch.cumprod(x, dim=-2), PerChannel),
        (lambda x: x.cumsum(1), Unknown),
        (lambda x: torch.logcumsumexp(x, 3), Unknown),
        (lambda x: torch.hstack([x, x]), Concat),
        (lambda x: torch.column_stack((x.mean((2, 3)), x.amax((2, 3)))), Concat),
        (lambda x: torch.dstack([x, x]), Unknown),
        (lambda x: torch.dstack([x.mean((2, 3)), x.mean((2, 3))]), Unknown),
        (lambda x: torch.hstack([x.flatten(), x.flatten()]), Unknown),
        (lambda x: torch.vstack([x, x]), Unknown),
        (Slopes(4), PerChannel),
        (Slopes(1), PerChannel),
        (lambda x: F.prelu(x, x.new_ones(1)), Unknown),
        (lambda x: torch.cat([x, x], 1), Concat),
        (lambda x: torch.concatenate([x, x], axis=1), Concat),
        (lambda x: torch.cat([x, x], dim=2), Unknown),
        (lambda x: x[:, 1:3], Gather),
        (lambda x: x[:, : x.size(1) - 1], Gather),
        (lambda x: x[0], Unknown),
        (lambda x: x.flatten(1), Gather),
        (lambda x: x.view(x.size(0), -1), Gather),
        (lambda x: x.reshape(-1, 2, 2, 8, 8), Unknown),
        (lambda x: x.mean((2, 3)), PerChannel),
        (lambda x: x.mean(1), Unknown),
        (lambda x: x.flatten(1).mean(()), Unknown),
        (lambda x: x.flatten().view(-1, 1), Unknown),
        (lambda x: F.pad(x, (1, 1, 1, 1)), Gather),
        (lambda x: F.pad(x, (0, x.size(3) - 7)), Gather),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), Unknown),
        (lambda x: F.pad(x, (0, 0, 0, 0, -1, 1)), Unknown),  # removes a channel
        (nn.ZeroPad2d((1, 0, 2, 1)), Gather),
        (nn.ConstantPad2d(1, 0.0), Gather),
        (nn.ConstantPad2d(1, 1.0), Unknown),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), Unknown),
        (F.gelu, PerChannel),
        (lambda x: torch.softmax(x, 1), Unknown),
        (lambda x: torch.chunk(x, 2, 1)[0], Unknown),
    ],
)
def test_a_call_is_understood_or_said_to_be_unknown(function, kind):
    last = trace(Calls(function), (3, 8, 8)).ops[-2]
    assert isinstance(last, kind)


class OnTokens(Calls):
    """A call on `[N, 36, 4]`, whose channels are the last dimension."""

    def __init__(self, function):
        super().__init__(function)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.function(self.fc(self.conv(x).flatten(2).transpose(1, 2)))


@each(
    ("function", "kind", "channels"),
    [
        (lambda x: x + x, Sum, 4),
        (lambda x: x + x[:, :1], Unknown, 4),
        (lambda x: torch.cat([x, x], 2), Concat, 8),
        (lambda x: torch.cat([x, x], dim=-1), Concat, 8),
        (lambda x: torch.cat([x, x], 1), Unknown, 4),
        (lambda x: x[:, 1:3], Gather, 4),
        (lambda x: x[:, :, 1:3], Gather, 2),
        (lambda x: x[:, 0], Unknown, 4),
        (lambda x: x[()], Unknown, 4),
        (lambda x: x.flatten(1), Gather, 36 * 4),
        (lambda x: x.reshape(-1, 36, 2, 2), Unknown, 36),
        (lambda x: x.transpose(1, 2), Unknown, 36),
        (lambda x: x.mean(1), PerChannel, 4),
        (lambda x: x.mean((1,), keepdim=True), PerChannel, 4),
        (lambda x: x.mean(2), Unknown, 36),
        (lambda x: x.max(1).indices, Unknown, 4),
        (lambda x: x.norm(dim=1), PerChannel, 4),
        (lambda x: x.cumsum(1), PerChannel, 4),
        (lambda x: x.cumsum(2), Unknown, 4),
        (lambda x: torch.dstack([x, x]), Concat, 8),
        (lambda x: torch.hstack([x, x]), Unknown, 4),
        (lambda x: F.pad(x, (1, 1)), Gather, 6),
        (lambda x: F.pad(x, (0, 0, 1, 1)), Gather, 4),
        (nn.ZeroPad1d(1), Gather, 6),
        (nn.ZeroPad2d((0, 0, 1, 1)), Gather, 4),
        (F.gelu, PerChannel, 4),
        (lambda x: F.layer_norm(x, (4,)), Unknown, 4),
        (lambda x: F.max_pool2d(x, 2), Unknown, 2),
        (nn.AvgPool2d(2), Unknown, 2),
        (nn.BatchNorm1d(36), Unknown, 4),
    ],
)
def test_channels_of_tokens_are_the_last_dimension(function, kind, channels):
    last = trace(OnTokens(function), (3, 6, 6)).ops[-2]
    assert (type(last), last.channels) == (kind, channels)


class FoldsIntoBatch(nn.Module):
    """Takes each four windows of nine pixels as part of the batch, then all pixels."""

    def __init__(self):
        super().__init__()
        self.windows = nn.Linear(3, 4)
        self.pixels = nn.Linear(4, 2)

    def forward(self, x):
        windows = x.flatten(2).transpose(1, 2).reshape(-1, 9, 3)
        return self.pixels(self.windows(windows).reshape(-1, 4))


def test_positions_folded_into_the_batch_are_counted():
    graph = trace(FoldsIntoBatch(), (3, 6, 6))
    assert [op.spatial for op in graph.layers] == [(36, 1), (36, 1)]


def test_a_convolution_on_images_folded_into_the_batch_counts_each_of_them():
    graph = trace(nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(0, 1), nn.Conv2d(1, 2, 1)), (3, 6, 6))
    assert [op.spatial for op in graph.layers] == [(3 * 6, 6)]


def test_flattened_tokens_repeat_their_channels():
    index = trace(OnTokens(lambda x: x.flatten(1)), (3, 6, 6)).ops[-2].index
    assert index.tolist() == [0, 1, 2, 3] * 36


def test_layers_that_codeq_cannot_follow_are_unknown():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(x)

    (unknown,) = trace(Sequence(), (3, 8, 8)).unknown
    assert unknown.call == "call_module fc"


def test_weights_that_pytorch_computes_are_not_taken_for_tied():
    net = nn.Sequential(*(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(6)))
    assert trace(net, (4,)).ties == ()
