"""Legal models off the beaten path are compacted right, kept whole, or refused with the true cause."""

import json
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each
from networks import TiedDecoder
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.compaction.assembly import build_compacted
from codeq.compaction.structure import describe
from codeq.metrics import measure

Pair = namedtuple("Pair", "scores features")


class Odd(nn.Module):
    """Two convolutions, of which the first has dead filters 1 and 4, around what a function does."""

    def __init__(self, head, middle=F.relu):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Linear(4, 2)
        self.middle, self.head = middle, head
        with torch.no_grad():
            self.first.weight[[1, 4]] = 0

    def forward(self, x):
        return self.head(self, self.second(self.middle(self.first(x))))


def classify(net, x):
    return net.fc(x.mean((2, 3)))


X = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def squeezed(net, x):
    return net.fc(F.adaptive_avg_pool2d(x, 1).squeeze()) if len(x) > 1 else classify(net, x)


def write(x):
    x[:, 0] = 0.5
    return x


EVEN = torch.tensor([True, False, True]).view(3, 1, 1)


def masked(x):
    mask = x.new_zeros(x.shape[1:])
    mask[0] = -1.0
    return (x + mask * torch.ones_like(mask)).relu()


HEADS = {
    "tuple": lambda net, x: (classify(net, x), x),
    "named tuple": lambda net, x: Pair(classify(net, x), x),
    "dict": lambda net, x: {"scores": classify(net, x)},
    "values of max": lambda net, x: net.fc(x.flatten(2).max(-1).values),
    "values and indices": lambda net, x: (net.fc(x.mean((2, 3))), x.flatten(2).max(-1)),
    "topk": lambda net, x: net.fc(x.flatten(2).topk(2, -1).values.mean(-1)),
    "squeeze": squeezed,
    "squeeze dims": lambda net, x: net.fc(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)),
    "float": lambda net, x: net.fc(x.mean((2, 3)).float()),
    "softmax in float": lambda net, x: classify(net, x).float().softmax(1),
    "integer": lambda net, x: (classify(net, x), classify(net, x).argmax(1)),
    "number per input": lambda net, x: (classify(net, x)[:, :1].squeeze(1).sigmoid(), classify(net, x)[:, 0] * 2),
    "norm of the features": lambda net, x: net.fc(x.mean((2, 3)) / x.flatten(1).norm(dim=1).clamp(min=1e-6)[:, None]),
    "length": lambda net, x: (classify(net, x), x.pow(2).sum((1, 2, 3)).sqrt()),
    "expanded indices": lambda net, x: classify(
        net, x.gather(1, torch.tensor([3, 0, 2, 1]).view(1, 4, 1, 1).expand_as(x))
    ),
}
MIDDLES = {
    "in place": lambda x: x.add_(1.0).relu_(), "slice written": write, "float": lambda x: x.float().relu(),
    "converted": lambda x: x.to(torch.float32) * 2, "mask": masked, "zeros": lambda x: x + torch.zeros_like(x),
    "place of the largest": lambda x: x.gather(3, x.max(3, keepdim=True)[1]), "running": lambda x: x.cumsum(1),
    "mean over the batch": lambda x: (x - x.mean(0)).relu(),
    "norm of all": lambda x: x / x.flatten(1).norm(dim=1)[:, None, None, None],
    "named type": lambda x: x.type("torch.FloatTensor").relu() if x.type() else x,
    "class as type": lambda x: x * (x > 0).type(torch.FloatTensor),
    "numbers of NumPy": lambda x: x * np.float64(0.5) / np.sqrt(2),
    "indices of NumPy": lambda x: x[:, np.arange(len(x[0]))[::-1].copy()],
    "choice": lambda x: torch.where(condition=x > 0, input=x, other=x.expm1()),
    "fixed mask": lambda x: torch.cat([x[:, torch.arange(6) > 2], x[:, :3].masked_select(EVEN).view(-1, 2, 4, 4),
                                       x[:, 1:2]], 1),
}  # fmt: skip


FACTORS = torch.tensor([1, 2, 3, 1, 1, 2]).view(6, 1, 1)
SLOPES = torch.tensor([0.1, -0.5, 0.25, 0.0, 1.0, 0.3])


class Slopes(nn.Module):
    """PReLU in functional form."""

    def __init__(self, count, function=F.prelu):
        super().__init__()
        self.slopes, self.function = nn.Parameter(SLOPES[:count].clone()), function

    def forward(self, x):
        return self.function(x, self.slopes)


FOLLOWED = {  # each channel of the result is computed from one of the argument
    "nearest": lambda x: F.interpolate(x, scale_factor=2), "bilinear": nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "by size": lambda x: F.interpolate(input=x, size=x.shape[2:], mode="bicubic"),
    "one slope": nn.PReLU(), "slopes": nn.PReLU(6), "swapdims": lambda x: x.swapdims(2, 3),
    "moveaxis": lambda x: x.moveaxis(1, -1).moveaxis(source=-1, destination=1), "clip": lambda x: x.clip(max=6),
    "tile": lambda x: x.tile(1, 1, 2, 1), "repeated": lambda x: torch.repeat_interleave(x, 2, dim=3),
    "unfold": lambda x: x.unfold(2, 2, 2)[..., 0], "split": lambda x: torch.cat(x.tensor_split(3, 1)[::-1], axis=1),
    "stacked": lambda x: torch.hstack([x[:, 3:], x[:, :3]]), "like": lambda x: x.flatten(1).view_as(x),
    "lerp": lambda x: torch.lerp(x, x * x, 0.5), "quotient": lambda x: torch.true_divide(input=x, other=3.0),
    "log": lambda x: x.abs().log1p(), "round": lambda x: x + (x * 8).round(), "threshold": nn.Threshold(0.1, 0.2),
    "shrink": nn.Hardshrink(0.1), "power mean": nn.LPPool2d(2, 2), "cumsum": lambda x: x.cumsum(2),
    "cumprod": lambda x: torch.cumprod(x, dim=-1), "norm": lambda x: x / x.norm(dim=(2, 3), keepdim=True).add(1),
    "integers": lambda x: x * FACTORS.float(), "integers of a type": lambda x: x * FACTORS.to(x.dtype),
    "booleans": lambda x: x + (FACTORS > 1).type_as(x), "positions": lambda x: x + torch.arange(4).float().sin(),
    "new tensor": lambda x: x * x.new_tensor([1.0, 2.0, 3.0, 4.0]),
    "functional slopes": Slopes(6), "functional slope": Slopes(1), "slopes of a method": Slopes(6, torch.Tensor.prelu),
}  # fmt: skip


def compare(net, x=X):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    report = compact(net, x)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    net.eval()
    for batch in (x, torch.cat([x, 1 - x, x + 1])):
        with torch.no_grad():
            expected, found = net(batch.clone()), report.model(batch.clone())
        leaves = [torch.utils._pytree.tree_leaves(tree) for tree in (expected, found)]
        assert len(leaves[0]) == len(leaves[1])
        for a, b in zip(*leaves, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert torch.allclose(a.double(), b.double(), rtol=2e-2 if a.dtype == torch.bfloat16 else 1e-4, atol=1e-5)
    return report


@each("head", HEADS.values())
def test_outputs_and_heads_of_every_kind(head):
    report = compare(Odd(head))
    assert report.removed["first"][1].tolist() == [1, 4]


@each("head", [HEADS[name] for name in ("number per input", "norm of the features", "length")])
def test_a_number_for_each_input_is_not_taken_for_a_batch_of_one(head):
    compare(Odd(head), X[:1])


class PreActivation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())


def test_modules_that_nothing_calls_any_more_are_gone_and_the_rest_is_built_from_its_structure():
    torch.manual_seed(0)
    blocks = [PreActivation(4), PreActivation(4)]
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        blocks[0].conv2.weight.zero_()
    kept = compare(net).model
    assert not [name for name in kept.state_dict() if name.startswith("1.")]
    built = build_compacted(json.loads(json.dumps(describe(kept))), kept.state_dict(), net)
    built.load_state_dict(kept.state_dict())
    assert torch.equal(built(X), kept(X))


def test_a_constant_network_is_built_from_its_structure():
    net = Odd(lambda _net, _x: torch.zeros(3))
    kept = compact(net, X).model
    built = build_compacted(json.loads(json.dumps(describe(kept))), kept.state_dict(), net)
    built.load_state_dict(kept.state_dict())
    assert torch.equal(built(X), torch.zeros(3))
    assert describe(built) == describe(kept)


class LowRank(nn.Conv2d):
    """A convolution that adds a product of small matrices to its weights, in the method that `forward` calls."""

    def __init__(self, *args):
        super().__init__(*args)
        self.a, self.b = nn.Parameter(torch.randn(self.out_channels, 2)), nn.Parameter(torch.randn(2, self.in_channels))

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight + (self.a @ self.b)[..., None, None], bias)


def test_a_convolution_that_computes_with_other_weights_is_not_taken_for_a_plain_one():
    net = Odd(classify)
    net.first = LowRank(3, 6, 3)
    with torch.no_grad():
        net.first.weight.zero_()
    report = compare(net)
    assert report.unknown == ["first (LowRank)"]
    assert report.removed["first"][1].tolist() == []
    with pytest.raises(CodeqError, match=r"layer 'first' \(LowRank\) cannot be counted"):
        measure(net, (3, 6, 6))


def _pruned(net):
    prune.ln_structured(net.first, "weight", 0.5, 2, 0)


@each("hooked", [_pruned, lambda net: weight_norm(net.first), lambda net: spectral_norm(net.first)])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_weights_that_a_hook_computes_are_refused_with_the_way_out(hooked):
    """After loading a state dict they are those of the last call, and nothing says so."""
    net = Odd(classify)
    hooked(net)
    for look in (lambda: measure(net, (3, 6, 6)), lambda: compact(net, X)):
        with pytest.raises(
            CodeqError, match=r"weights of 'first' are computed by a hook \(\w+\): (make|use) .*torch\.nn"
        ):
            look()


@each("middle", MIDDLES.values())
def test_operations_in_the_middle(middle):
    report = compare(Odd(classify, middle))
    assert {1, 4} <= {0, *report.removed["first"][1].tolist()}


@each("middle", FOLLOWED.values())
def test_operations_on_each_channel_keep_no_dead_one(middle):
    if isinstance(middle, nn.PReLU) and middle.num_parameters > 1:
        middle.weight.data.copy_(SLOPES)
    net = Odd(classify, middle)
    report = compare(net)
    assert report.removed["first"][1].tolist() == [1, 4]
    assert len(report.kept["second"][0]) == 4
    built = build_compacted(json.loads(json.dumps(describe(report.model))), report.model.state_dict(), net)
    built.load_state_dict(report.model.state_dict())
    assert torch.equal(built(X), report.model(X))


@each("reduced", [
    lambda x: x.mean(axis=(2, 3)), lambda x: torch.mean(input=x, dim=[2, 3]), lambda x: x.std((2, 3)),
    lambda x: x.var(dim=(-2, -1)), lambda x: x.logsumexp((2, 3)), lambda x: x.nansum((2, 3)),
    lambda x: x.amax(axis=(2, 3), keepdims=True)[..., 0, 0], lambda x: x.flatten(2).prod(2), lambda x: x[:, :, 0, 1],
    lambda x: x.norm(dim=(2, 3)), lambda x: torch.norm(x, 1, (2, 3)), lambda x: torch.linalg.norm(x, dim=(2, 3)),
    lambda x: torch.linalg.vector_norm(x, 3, (2, 3)),
    lambda x: torch.linalg.vector_norm(x=x, dim=(2, 3)), lambda x: x.flatten(2).cumsum(2)[..., 5],
])  # fmt: skip
def test_statistics_of_each_channel_keep_no_dead_one(reduced):
    net = Odd(classify)
    with torch.no_grad():
        net.second.weight[2], net.second.bias[2] = 0, 0
    net.head = lambda self, x: self.fc(reduced(x))
    assert compare(net).removed["second"][1].tolist() == [2]


def test_a_structure_with_second_names_of_functions_and_methods_is_built():
    net = Odd(lambda net, x: classify(net, torch.subtract(x.clip(max=0.2), x.square())))
    kept = compact(net, X).model
    saved = json.dumps(describe(kept))
    older = saved.replace('"torch._VariableFunctionsClass.sub"', '"torch._VariableFunctionsClass.subtract"').replace(
        '"clamp"', '"clip"'
    )
    built = build_compacted(json.loads(older), kept.state_dict(), net)
    built.load_state_dict(kept.state_dict())
    assert torch.equal(built(X), kept(X))


def test_a_statistic_over_the_batch_is_left_whole():
    compare(Odd(lambda net, x: net.fc(x.mean((2, 3)) - torch.std(x, unbiased=False))))


def test_a_mask_made_from_the_shape_alone_is_a_constant():
    report = compare(Odd(classify, masked))
    assert report.unknown == []
    assert report.removed["first"][1].tolist() == [1, 4]


def test_a_named_tuple_stays_one():
    result = compact(Odd(HEADS["named tuple"]), X).model(X)
    assert type(result) is Pair


def test_a_model_in_bfloat16():
    report = compare(Odd(HEADS["tuple"]).bfloat16(), X.bfloat16())
    assert {p.dtype for p in report.model.parameters()} == {torch.bfloat16}


def test_conversions_inside_a_forward_are_left_out():
    net = Odd(HEADS["softmax in float"]).bfloat16()
    with torch.no_grad():
        found, expected = compact(net, X.bfloat16()).model(X.bfloat16()), net(X.bfloat16())
    assert (found.dtype, expected.dtype) == (torch.bfloat16, torch.float32)
    assert torch.allclose(found.float(), expected, atol=1e-2)


@each("dtype", [torch.bfloat16, torch.float64])
def test_a_network_that_converts_its_input_still_takes_what_it_took(dtype):
    class Converting(Odd):
        def forward(self, x):
            return super().forward(x.to(self.fc.weight.dtype))

    net = Converting(classify).to(dtype).eval()
    report = compact(net, X)
    assert report.removed["first"][1].tolist() == [1, 4]
    with torch.no_grad():
        found, expected = report.model(X), net(X)
        assert found.dtype == expected.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)
        built = build_compacted(json.loads(json.dumps(describe(report.model))), report.model.state_dict(), net)
        built.load_state_dict(report.model.state_dict())
        assert torch.equal(built(X), found)
        assert compact(report.model, X).model(X).dtype == dtype
        assert report.model.float()(X).dtype == torch.float32  # it may be converted as any other


@each(
    "head",
    [
        lambda net, x: F.softmax(classify(net, x), dim=-1, dtype=torch.float32) @ net.fc.weight,
        lambda net, x: net.fc(x.sum((2, 3), dtype=torch.float32)),
        lambda net, x: net.fc(torch.fft.ifft(x.mean((2, 3)).to(torch.cfloat)).real),
    ],
)
def test_types_that_calls_name_are_those_of_the_result(head):
    report = compare(Odd(head))
    built = build_compacted(json.loads(json.dumps(describe(report.model))), report.model.state_dict(), Odd(head))
    built.load_state_dict(report.model.state_dict())
    assert torch.equal(built(X), report.model(X))


@each("dtype", [torch.float32, torch.bfloat16, torch.float64])
@each("middle", [
    lambda x: x.masked_fill(x < 0, torch.finfo(x.dtype).min).softmax(2),
    lambda x: x + (x.new_full((6, 1, 1), torch.finfo(x.dtype).max) > 1e300),
    lambda x: x + (x + 1) * (torch.finfo(x.dtype).eps > 2 ** -7.5) + (torch.finfo(x.dtype).eps < 1e-10),
])  # fmt: skip
def test_numbers_of_a_type_are_those_of_the_weights(middle, dtype):
    net, x = Odd(classify, middle).to(dtype).eval(), X.to(dtype)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-4
    with torch.no_grad():
        torch.testing.assert_close(compact(net, x).model(x), net(x), rtol=tolerance, atol=tolerance)


@each("affine", [{"bias": False}, {"affine": False}])
def test_a_batchnorm_without_a_shift_is_compacted(affine):
    net = Odd(classify, middle=nn.BatchNorm2d(6, **affine))
    net.middle.running_var.fill_(4.0)
    with torch.no_grad():
        net.first.bias[[1, 4]] = 0
    assert compare(net).removed["first"][1].tolist() == [1, 4]


def test_a_model_of_two_precisions_is_refused():
    net = Odd(lambda net, x: net.fc(x.mean((2, 3)).float())).bfloat16()
    net.fc.float()
    with pytest.raises(CodeqError, match=r"torch\.bfloat16 and torch\.float32.*one type"):
        compact(net, X.bfloat16())


def test_all_parameters_frozen():
    compare(Odd(classify).requires_grad_(False))


def test_hooks_that_change_values_are_followed():
    net = Odd(classify)
    net.first.register_forward_hook(lambda _module, _args, out: out + 1)
    net.second.register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    report = compare(net)
    assert report.removed["first"][1].tolist() == [1, 4]


def test_a_squeeze_that_drops_the_batch_is_refused_or_right():
    net = Odd(lambda net, x: net.fc(F.adaptive_avg_pool2d(x, 1).squeeze()))
    report = compact(net, X)
    with torch.no_grad():
        assert torch.allclose(report.model(X), net(X), atol=1e-5)


def test_random_outputs_are_refused():
    net = Odd(lambda net, x: classify(net, x) + torch.rand(2))
    with pytest.raises(CodeqError, match="random"):
        compact(net, X)


class ConstantBesideOneChannel(nn.Module):
    """Adds a tensor without live channels, `[N, 4, H, W]`, to one of a single channel that broadcasting repeats."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.b(x) + self.a(x).max(1, keepdim=True).values)


def test_a_constant_that_alone_has_all_channels_keeps_them():
    model = ConstantBesideOneChannel().eval()
    with torch.no_grad():
        model.b.weight.zero_()
        model.last.weight[:, 1] = 0  # channel 1 of the sum is not read
    x = torch.randn(3, 3, 5, 5)
    report = compact(model, x)
    torch.testing.assert_close(report.model(x), model(x), rtol=1e-5, atol=1e-6)
    assert report.proof.relative_error <= 1e-10


@each("streams", ["scatter", "whole"])
def test_weights_that_are_used_in_both_directions_are_compacted_in_each(streams):
    torch.manual_seed(0)
    net = TiedDecoder()
    with torch.no_grad():
        net.inner.weight[2], net.inner.bias[2] = 0, 0
    report = compact(net, X, streams=streams)
    assert report.removed["inner"][1].tolist() == ([2] if streams == "scatter" else [])
    torch.testing.assert_close(report.model(X), net(X))


class Phases(nn.Module):
    """Rotates its channels in pairs, as rotary position embeddings do, and multiplies spectra by complex weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("phases", torch.polar(torch.ones(3), torch.tensor([0.5, 1.0, 1.5]))[:, None, None])
        self.spectrum = nn.Parameter(torch.randn(6, 6, 4, 3, dtype=torch.cfloat))

    def forward(self, x):
        pairs = torch.view_as_complex(x.unflatten(1, (3, 2)).movedim(2, -1).contiguous()) * self.phases
        x = torch.view_as_real(pairs).movedim(-1, 2).flatten(1, 2)
        return torch.fft.irfft2(torch.einsum("nihw,oihw->nohw", torch.fft.rfft2(x), self.spectrum), s=x.shape[-2:])


def test_complex_tensors_keep_their_imaginary_parts():
    net = Odd(classify, nn.Sequential(Phases(), nn.ReLU()))
    report = compare(net)
    assert any("middle.0.spectrum is used outside of a layer" in note for note in report.notes)
    assert {str(buffer.dtype) for buffer in report.model.buffers() if buffer.is_complex()} == {"torch.complex64"}
    net.middle = nn.Sequential(Phases(), nn.ReLU())
    net.fc = nn.Linear(4, 2, dtype=torch.cfloat)
    net.head = lambda net, x: net.fc(x.mean((2, 3)).to(torch.cfloat)).abs()
    with pytest.raises(CodeqError, match=r"'fc' cannot be counted.* complex weights"):
        measure(net, (3, 6, 6))


def test_the_shape_of_an_input_in_place_of_a_batch_is_refused():
    with pytest.raises(CodeqError, match=r"example_input=\(3, 6, 6\): must be a tensor, a batch"):
        compact(Odd(classify), (3, 6, 6))
