"""BatchNorms that are folded into convolutions, against the network as it was."""

import pytest
import torch
from cases import each
from torch import nn
from torch.nn.utils import parametrize

from codeq.models import build_model
from codeq.training import folding
from codeq.training.folding import folded

SIZE = (3, 8, 8)


def trained(model):
    """With statistics, scales and shifts that are not those of a new network."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((module.weight, -2.0), (module.bias, -1.0), (module.running_mean, -1.0)):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, 2.0)
            if module.running_var is not None:
                nn.init.uniform_(module.running_var, 0.3, 3.0)
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def assert_same(model, copy, size=SIZE):
    x = torch.randn(4, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, found = model(x.clone()), copy(x.clone())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_all_batchnorms_of_a_resnet_are_folded_and_the_network_is_left_as_it_was(name):
    model = trained(build_model(name, 10, {}))
    before, count = {key: value.clone() for key, value in model.state_dict().items()}, norms(model)
    copy = folded(model, (3, 32, 32))
    assert (norms(model), norms(copy)) == (count, 0)
    assert_same(model, copy, (3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_equation_of_a_folded_batchnorm():
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1, dtype=torch.float64), nn.BatchNorm2d(4, dtype=torch.float64)))
    conv, bn = model
    layer = folded(model.float(), SIZE)[0]
    factor = bn.weight / (bn.running_var + bn.eps).sqrt()
    torch.testing.assert_close(layer.weight, conv.weight * factor[:, None, None, None])
    torch.testing.assert_close(layer.bias, (conv.bias - bn.running_mean) * factor + bn.bias)


class Twice(nn.Module):
    """A convolution whose result has two readers, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.shared, self.other = (
            nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3),
        )  # fmt: skip

    def forward(self, x):
        y = self.conv(x)
        return (y + self.bn(y) + self.other(self.shared(x)) + self.shared(y)).flatten(1)


class Reads(nn.Module):
    """A convolution whose weight is read elsewhere, under another name of the module."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return (self.bn(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight)).flatten(1)


class Named(nn.Module):
    """A BatchNorm that is called under one of its two names."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norms = nn.ModuleList([self.bn])

    def forward(self, x):
        return self.norms[0](self.conv(x)).flatten(1)


class Values(nn.Module):
    """Control flow that depends on the values of the input."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return (self.bn(self.conv(x)) if x.sum() > 0 else x).flatten(1)


class Asks(nn.Module):
    """Reads a setting of its BatchNorm, which an Identity does not have."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(x)).flatten(1) * self.bn.num_features


def chain(*layers):
    return nn.Sequential(*layers, nn.Flatten())


def hooked():
    model = chain(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model[0].register_forward_hook(lambda _m, _x, y: y.abs())
    return model


def normalized():
    model = chain(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    return model


@pytest.mark.parametrize(
    "build",
    [
        Twice, Reads, Named, Values, Asks, hooked, normalized,
        lambda: chain(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)),
        lambda: chain(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
        lambda: chain(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
        lambda: chain(nn.ConvTranspose2d(3, 3, 1), nn.BatchNorm2d(3)),
        lambda: chain(nn.Conv2d(3, 3, 1).half(), nn.BatchNorm2d(3).half()),
    ],
)  # fmt: skip
def test_what_cannot_be_folded_is_left_as_it_is(build):
    model = trained(build())
    copy = folded(model, SIZE)
    assert norms(copy) == norms(model)
    if next(model.parameters()).dtype == torch.float32:
        assert_same(model, copy)


@pytest.mark.parametrize("options", [{"affine": False}, {"eps": 0.5}])
def test_settings_of_the_batchnorm_are_followed(options):
    for kind, norm, size in ((nn.Conv1d, nn.BatchNorm1d, (3, 8)), (nn.Conv3d, nn.BatchNorm3d, (3, 4, 4, 4))):
        model = trained(chain(kind(3, 4, 3, padding=1, bias=False), norm(4, **options), nn.ReLU()))
        copy = folded(model, size)
        assert norms(copy) == 0
        assert_same(model, copy, size)


class TwoPairs(nn.Module):
    """Two convolutions and their BatchNorms, the first of which `first` calls."""

    def __init__(self, first, **settings):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))
        self.norms = nn.ModuleList([nn.BatchNorm2d(3, **settings), nn.BatchNorm2d(3)])
        self.first = first

    def forward(self, x):
        return self.norms[1](self.convs[1](self.first(self.convs[0], self.norms[0], x)))


def with_two_names():
    model = TwoPairs(lambda conv, norm, x: norm(conv(x)))
    model.another = model.convs[0]
    return model


def with_a_hook():
    model = TwoPairs(lambda conv, norm, x: norm(conv(x)))
    model.norms[0].register_forward_hook(lambda _norm, _args, result: 2 * result)
    return model


@each(
    "build",
    [
        lambda: TwoPairs(lambda conv, norm, x: norm(conv(x)) + conv(x)),
        lambda: TwoPairs(lambda conv, norm, x: (y := conv(x)) + norm(y)),
        lambda: TwoPairs(lambda conv, norm, x: norm(conv(x)) + conv.weight.sum()),
        lambda: TwoPairs(lambda conv, norm, x: norm(conv(x)), track_running_stats=False),
        with_two_names,
        with_a_hook,
    ],
)
def test_a_pair_that_cannot_be_folded_does_not_keep_others(build):
    model = trained(build())
    copy = folded(model, SIZE)
    assert [type(norm).__name__ for norm in copy.norms] == ["BatchNorm2d", "Identity"]
    assert_same(model, copy)


def test_a_copy_that_predicts_something_else_is_not_used(monkeypatch):
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    fuse = folding.fuse_conv_bn_eval

    def inexact(conv, norm):
        fused = fuse(conv, norm)
        fused.weight.data *= 1.001
        return fused

    monkeypatch.setattr(folding, "fuse_conv_bn_eval", inexact)
    assert folded(model, SIZE) is model
