"""Compacted networks that keep their quantizers: the same outputs and gradients, and another compaction."""

import copy

import numpy as np
import pytest
import torch
from cases import each
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from codeq.common.errors import CodeqError
from codeq.compaction import compact, prove
from codeq.compaction.layers import of_channels
from codeq.compaction.quantized import with_scale
from codeq.metrics import exact_stats, measure, structured_stats
from codeq.models import resnet20
from codeq.quantizer import DeadZoneQuantizer
from codeq.quantizer.attach import attach_weight_quantizers, named_quantizers
from codeq.quantizer.layers import latent_weight, named_layers


class Branches(nn.Module):
    """A residual sum, groups that keep different numbers of channels, a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = self.up(F.relu(self.grouped(x)) + x)
        return self.fc(x.mean((2, 3)))


def dying(**options) -> nn.Module:
    torch.manual_seed(0)
    net = Branches()
    with torch.no_grad():
        net.stem.weight[[1, 2, 6]] *= 0.01  # quantized to zero filters; their latent weights are not zero
        net.grouped.weight[[1, 2, 5]] *= 0.01
        net.up.weight[:, 4] *= 0.01
        net.bn.bias[[1, 2, 6]] = -1  # dead behind the ReLU
        net.grouped.bias.zero_()
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 4, "init_deadzone_logit": 1.2, **options})
    return net.eval()


@pytest.mark.parametrize("options", [{}, {"granularity": "channel", "grid": "affine"}, {"scale": "learned"}])
def test_outputs_and_one_step_are_those_of_the_whole_network(options):
    whole = dying(**options)
    if options.get("granularity") == "channel":  # a filter's own scale does not make it zero: prune exactly
        with torch.no_grad():
            for layer, rows in ((whole.stem, [1, 2, 6]), (whole.grouped, [1, 2, 5])):
                latent_weight(layer)[rows] = 0
    example = torch.randn(4, 3, 6, 6)
    report = compact(whole, example, keep_quantizers=True)
    small = report.model
    assert report.removed["stem"][1].tolist() == [1, 2, 6]
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole.parameters())
    assert prove(whole, small, [example]).relative_error < 1e-7
    torch.testing.assert_close(small(example), whole(example), rtol=1e-5, atol=1e-6)

    for name, quantizer in named_quantizers(whole):  # R fixed on both sides
        w = latent_weight(whole.get_submodule(name))
        quantizer.set_scale(quantizer.magnitude(w.transpose(0, 1) if name == "up" else w))
    for net in (whole, small):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        F.cross_entropy(net(example), torch.tensor([0, 1, 2, 3])).backward()
        before = {name: parameter.clone() for name, parameter in net.named_parameters()}
        optimizer.step()
        assert not torch.equal(before["fc.bias"], net.fc.bias)
    parts = {"grouped.parts.0": ([0, 3], [0, 3]), "grouped.parts.1": ([4, 6, 7], [0, 1, 3])}
    kept = {"stem": ([0, 3, 4, 5, 7], [0, 1, 2]), "fc": ([0, 1, 2, 3], report.kept["fc"][0].tolist()), **parts}
    for name, (rows, columns) in kept.items():
        moved = latent_weight(whole.get_submodule(name.partition(".")[0]))[rows][:, columns]
        torch.testing.assert_close(latent_weight(small.get_submodule(name)), moved, rtol=1e-5, atol=1e-7)
    up_in, up_out = (channels.tolist() for channels in report.kept["up"])
    torch.testing.assert_close(latent_weight(small.up), latent_weight(whole.up)[up_in][:, up_out], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(small.bn.weight, whole.bn.weight[[0, 3, 4, 5, 7]], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(small.fc.bias.grad, whole.fc.bias.grad, rtol=1e-4, atol=1e-6)  # it holds constants, too

    again = compact(small, example, keep_quantizers=True).model
    torch.testing.assert_close(again(example), small(example), rtol=1e-5, atol=1e-6)
    assert [name for name, _ in named_quantizers(again)] == [name for name, _ in named_quantizers(small)]
    with torch.no_grad():
        latent_weight(small.up)[4] = 0  # channel 6, which filter 6 of `grouped` alone writes: nothing reads it now
    assert compact(small, example, keep_quantizers=True).removed["grouped.parts.1"][1].tolist() == [1]


def test_the_scale_stays_when_weights_go_and_travels_in_the_state_dict():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2))
    with torch.no_grad():
        net[0].weight[:4] = 0  # half of the weights: the 0.99 quantile of the others is another
        net[0].bias[:4] = 0
    attach_weight_quantizers(net, [], "uniform", {"bitwidth": 5})
    expected = np.quantile(latent_weight(net[0]).detach().abs().numpy(), 0.99)
    small = compact(net, torch.randn(2, 3, 6, 6), keep_quantizers=True).model
    found = latent_weight(small.get_submodule("0"))
    assert found.shape[0] == 4
    quantizer = dict(named_quantizers(small))["0"]
    assert float(quantizer.magnitude(found)) == pytest.approx(expected)
    assert np.quantile(found.detach().abs().numpy(), 0.99) != pytest.approx(expected)
    other = copy.deepcopy(small)
    dict(named_quantizers(other))["0"].reset_scale()
    other.load_state_dict(small.state_dict())
    assert float(dict(named_quantizers(other))["0"].held_absmax) == pytest.approx(expected)


def test_layers_that_would_be_trained_apart_and_levels_of_removed_weights_are_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    class FromAll(nn.Module):
        def forward(self, w):
            return (w / w.sum()).round() * w.sum()

        def get_bitwidth(self):
            return torch.tensor(4)

    twice = Twice()
    attach_weight_quantizers(twice, [], "uniform", {})
    with pytest.raises(CodeqError, match="layer 'conv' is used more than once"):
        compact(twice, torch.randn(1, 3, 5, 5), keep_quantizers=True)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
        net[1].weight.copy_(torch.tensor([0.3, 2.0]).reshape(1, 2, 1, 1))
    attach_weight_quantizers(net, [], FromAll, {})
    with pytest.raises(CodeqError, match="quantizer FromAll of layer '"):
        compact(net, torch.randn(1, 1, 5, 5), keep_quantizers=True)


class Shared(nn.Module):
    """Activation function and normalizations in two calls each, and a convolution that keeps other channels in each."""

    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.slope, self.norm, self.tokens = nn.PReLU(), nn.BatchNorm2d(4), nn.LayerNorm(4)
        self.layer, self.fc = layer, nn.Linear(4, 4)

    def forward(self, x):
        x = self.slope(self.norm(self.second(self.slope(self.norm(self.first(x))))))
        x = self.tokens(self.tokens(self.layer(x).mean((2, 3))) + 1)
        return self.fc(x)


def test_modules_of_several_calls_stay_one_or_are_refused():
    net = Shared(nn.Identity())
    attach_weight_quantizers(net, [], "deadzone", {})
    x, labels = torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 2, 3])
    small = compact(net, x, keep_quantizers=True).model
    for model in (net.eval(), small):
        F.cross_entropy(model(x), labels).backward()
    for name in ("slope.weight", "norm.weight", "norm.bias", "tokens.weight", "tokens.bias"):
        torch.testing.assert_close(
            small.get_parameter(name).grad, net.get_parameter(name).grad, rtol=1e-4, atol=1e-6, msg=name
        )
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in net.parameters())

    conv = nn.Conv2d(4, 4, 1)
    net = Shared(nn.Sequential(conv, conv))
    attach_weight_quantizers(net, ["layer.*"], "deadzone", {})
    with pytest.raises(CodeqError, match=r"layer 'layer\.0' is used more than once"):
        compact(net, x, keep_quantizers=True)
    conv.requires_grad_(False)
    assert compact(net, x, keep_quantizers=True).proof.relative_error < 1e-10
    norm = nn.BatchNorm2d(4)
    net = Shared(nn.Sequential(norm, nn.Conv2d(4, 4, 1), norm))
    with torch.no_grad():
        net.layer[1].weight[2] = 0
        net.layer[1].bias[2] = 0
    attach_weight_quantizers(net, [], "deadzone", {})
    with pytest.raises(CodeqError, match=r"layer 'layer\.0' is used more than once"):
        compact(net, x, keep_quantizers=True)


class Tied(nn.Module):
    """A layer that shares its weight with another use of it, in front of it or behind."""

    def __init__(self, use):
        super().__init__()
        self.layer, self.other, self.use = nn.Linear(4, 4), nn.Linear(4, 4), use
        self.other.weight = self.layer.weight

    def forward(self, x):
        return self.use(self, F.relu(self.layer(x)))


@each(
    "use",
    [
        lambda net, x: net.other(x),
        lambda net, x: F.linear(x, net.other.weight),
        lambda net, x: x @ net.other.weight,
        lambda net, x: x + F.embedding(torch.arange(4), net.other.weight).sum(0),
    ],
)
def test_a_quantized_layer_that_shares_its_weight_with_a_float_use_of_it_is_refused(use):
    net, x = Tied(use), torch.randn(2, 4)
    attach_weight_quantizers(net, ["other"], "uniform", {})
    with pytest.raises(CodeqError, match=r"layer '\w+' is used more than once or shares its weights"):
        compact(net, x, keep_quantizers=True)
    assert compact(net, x).proof.relative_error < 1e-10
    net.layer.parametrizations.weight.original.requires_grad_(False)
    assert compact(net, x, keep_quantizers=True).proof.relative_error < 1e-10


@pytest.mark.parametrize("options", [{}, {"granularity": "channel"}])
def test_layers_on_images_folded_into_the_batch_keep_their_quantizers(options):
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.conv(x.flatten(0, 1)).mean((2, 3)).view(len(x), -1, 4).mean(1))

    net = Frames()
    attach_weight_quantizers(net, [], "deadzone", {"max_bits": 4, **options})
    x = torch.randn(2, 5, 3, 6, 6)
    small = compact(net, x, keep_quantizers=True).model
    assert [name for name, _ in named_quantizers(small)] == ["conv", "fc"]
    torch.testing.assert_close(small(x), net.eval()(x), rtol=1e-5, atol=1e-6)


class OnPatches(nn.Module):
    """A linear layer on tokens, whose fixed channels differ from token to token behind the position embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.positions = nn.Conv2d(3, 16, 2, 2), nn.Parameter(torch.randn(1, 16, 16))
        self.first, self.head = nn.Linear(16, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.first(self.patch(x).flatten(2).mT + self.positions).relu().mean(1))


def test_linear_layers_on_tokens_with_position_embeddings_keep_their_quantizers():
    net, x = OnPatches(), torch.randn(2, 3, 8, 8)
    attach_weight_quantizers(net, [], "deadzone", {})
    with torch.no_grad():
        latent_weight(net.patch)[3] = 0
    report = compact(net, x, keep_quantizers=True)
    assert 3 in report.removed["first"][0]
    torch.testing.assert_close(report.model(x), net.eval()(x), rtol=1e-5, atol=1e-6)
    kept = torch.from_numpy(report.kept["first"][0])
    assert torch.equal(latent_weight(report.model.first), latent_weight(net.first)[:, kept])
    absorbed = compact(net, x, borders="absorb", keep_quantizers=True)  # it has no borders
    assert absorbed.proof.relative_error < 1e-10


def test_parameters_that_become_constants_are_named():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.key, self.fc = nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
            self.token, self.scale, self.frozen = (nn.Parameter(torch.ones(1, 1, 4)) for _ in range(3))
            self.frozen.requires_grad_(False)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x.flatten(2).mT)], dim=1)
            return self.fc((x * self.scale + self.key(self.frozen)).mean(1))

    net = Tokens()
    attach_weight_quantizers(net, [], "uniform", {})
    example = torch.randn(2, 3, 2, 2)
    assert not compact(net, example).notes
    note = "not trained further: token, scale, key.weight (used outside of layers or without the input, constants of"
    assert compact(net, example, keep_quantizers=True).notes[0].startswith(note)
    assert not compact(dying(), torch.randn(4, 3, 6, 6), keep_quantizers=True).notes


def test_what_dies_in_a_compacted_network_is_counted_also_behind_a_scatter():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
            self.conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.fc((x + F.relu(self.conv(x))).mean((2, 3)))

    net = Residual().eval()
    with torch.no_grad():
        net.stem.weight[[0, 1]] = 0
        net.conv.weight[[1, 5]] = 0
    small = compact(net, torch.randn(2, 3, 4, 4)).model
    with torch.no_grad():
        small.stem.weight[3] = 0  # channel 5, dead in the stream, too
    records = measure(small, (3, 4, 4))
    assert records.notes == ()
    expected = 16 * 9 * (3 * 3 + 3 * 4) + 4 * 2  # channels 2, 3, 4 of the stem, 0, 2, 3, 4 of the stream
    assert structured_stats(records).total_macs == exact_stats(small, (3, 4, 4)).total_macs == expected


def test_what_dies_in_a_compacted_resnet_is_counted_also_behind_its_strided_shortcuts():
    torch.manual_seed(0)
    net = resnet20().eval()
    with torch.no_grad():
        for writer in (net.conv1, *(block.conv2 for block in net.layer1)):
            writer.weight[:4] = 0
        net.layer2[0].conv2.weight[:6] = 0
    small = compact(net, torch.randn(2, 3, 8, 8)).model
    with torch.no_grad():  # another channel of the first stream, which the shortcut takes into the second
        for name in ("conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"):
            small.get_submodule(name).weight[0] = 0
    records = measure(small, (3, 8, 8))
    assert records.notes == ()
    proof = compact(small, torch.randn(2, 3, 8, 8)).proof
    assert structured_stats(records).total_macs == proof.compacted_macs < proof.masked_macs


class Stops(nn.Module):
    """Two convolutions, of which the first has dead filters 1 and 4, beside a branch that stops gradients."""

    def __init__(self, branch):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 2)
        self.branch = branch
        with torch.no_grad():
            self.first.weight[[1, 4]] = 0

    def forward(self, x):
        x = self.first(x)
        return self.fc((self.second(x).relu() + self.branch(x)).mean((2, 3)))


def stopped_in_place(x):
    gate = x.sigmoid()
    gate.detach_()
    return x * gate


def masked(x):
    with torch.no_grad():
        mask = x.abs().round() > 0
    return x * mask


@each("branch", [
    lambda x: x + ((4 * x).round() / 4 - x).detach(), lambda x: x * torch.detach(x).sigmoid(), lambda x: x * x.data,
    stopped_in_place, masked,
])  # fmt: skip
def test_gradients_stop_where_they_stop_in_the_whole_network(branch):
    net, x = Stops(branch).eval(), torch.randn(4, 3, 6, 6)
    attach_weight_quantizers(net, [], "deadzone", {})
    report = compact(net, x, keep_quantizers=True)
    assert report.removed["first"][1].tolist() == [1, 4]
    assert not any("detach" in call for call in report.unknown)
    calls = [node.target for node in compact(net, x).model.graph.nodes]
    assert not {"detach", torch.detach}.intersection(calls)  # which exported programs could not hold
    for model in (net, report.model):
        F.cross_entropy(model(x), torch.tensor([0, 1, 1, 0])).backward()
    small, whole = (latent_weight(model.first).grad for model in (report.model, net))
    torch.testing.assert_close(small, whole[report.kept["first"][1]], rtol=1e-4, atol=1e-6)


class SignSTE(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x.sign()

    @staticmethod
    def backward(_ctx, grad):
        return grad


def frozen(x):
    with torch.no_grad():
        return x.sigmoid()


def written(x):
    x = x.sigmoid()
    x.data.mul_(2)
    return x


@each(("branch", "call"), [(SignSTE.apply, "sign"), (frozen, "sigmoid"), (written, "mul")])
def test_gradients_that_a_compacted_network_cannot_stop_are_refused(branch, call):
    net, x = Stops(branch).eval(), torch.randn(2, 3, 6, 6)
    assert compact(net, x).removed["first"][1].tolist() == [1, 4]
    with pytest.raises(CodeqError, match=rf"keep_quantizers=True: {call} runs without gradients"):
        compact(net, x, keep_quantizers=True)


class Prepared(Stops):
    """Images are prepared without gradients."""

    def __init__(self, prepare):
        super().__init__(torch.relu)
        self.prepare = prepare
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))

    def forward(self, x):
        return super().forward(self.prepare(self, x))


def normalized(net, x):
    with torch.no_grad():
        return (x - net.mean) / 0.25


def shifted(net, x):
    x = x - net.mean
    x.data.mul_(2)
    return x


class Backbone(Stops):
    """The first layer runs without gradients."""

    def forward(self, x):
        with torch.no_grad():
            x = self.first(x).relu()
        return self.fc((self.second(x).relu() + self.branch(x)).mean((2, 3)))


def detached(x):
    with torch.no_grad():
        gate = x.detach().sigmoid() * (x > 0).float()
    return x * gate


@each("net", [
    lambda: Prepared(normalized), lambda: Prepared(shifted), lambda: Backbone(torch.relu), lambda: Stops(detached),
])  # fmt: skip
def test_forwards_without_gradients_are_kept_where_no_gradients_would_flow(net):
    net, x = net().eval(), torch.randn(4, 3, 6, 6)
    attach_weight_quantizers(net, ["first"], "deadzone", {})
    net.first.requires_grad_(not isinstance(net, Backbone))
    report = compact(net, x, keep_quantizers=True)
    assert report.removed["first"][1].tolist() == [1, 4]
    for model in (net, report.model):
        F.cross_entropy(model(x), torch.tensor([0, 1, 1, 0])).backward()
    small, whole = (latent_weight(model.fc).grad for model in (report.model, net))
    torch.testing.assert_close(small, whole, rtol=1e-4, atol=1e-6)
    small, whole = (latent_weight(model.first).grad for model in (report.model, net))
    assert (small is None) == (whole is None) == isinstance(net, Backbone)
    if whole is not None:
        torch.testing.assert_close(small, whole[report.kept["first"][1]], rtol=1e-4, atol=1e-6)


@each("trained", ["weight", "quantizer"])
def test_layers_that_train_but_run_without_gradients_are_refused(trained):
    net, x = Backbone(torch.relu).eval(), torch.randn(2, 3, 6, 6)
    attach_weight_quantizers(net, ["second", "fc"], "deadzone", {})
    net.first.requires_grad_(False)
    part = latent_weight(net.first) if trained == "weight" else next(dict(named_quantizers(net))["first"].parameters())
    part.requires_grad_(True)
    with pytest.raises(CodeqError, match="keep_quantizers=True: relu runs without gradients"):
        compact(net, x, keep_quantizers=True)


class Half(nn.Module):
    def forward(self, w):
        return w * (torch.arange(w[0].numel()).reshape(w[0].shape) % 2)


def half(layer):
    parametrize.register_parametrization(layer, "weight", Half())


@each("computed", [parametrizations.weight_norm, parametrizations.spectral_norm, half])
def test_parametrizations_that_are_no_quantizers_are_refused(computed):
    net, x = Stops(torch.relu).eval(), torch.randn(2, 3, 6, 6)
    attach_weight_quantizers(net, ["second"], "deadzone", {})
    computed(net.second)
    with pytest.raises(CodeqError, match=r"'second' has the parametrization \w+, which is no quantizer"):
        compact(net, x, keep_quantizers=True)
    net.second.requires_grad_(False)
    assert compact(net, x, keep_quantizers=True).proof.relative_error < 1e-10


@each("scale", ["learned", "held"])
def test_copies_with_scales_of_their_own_share_the_logits_alone(scale):
    shared = DeadZoneQuantizer(scale=scale)
    shared.set_scale(torch.tensor(1.0))
    replica = with_scale(shared, torch.tensor(0.5))
    assert replica.logit_dz is shared.logit_dz
    assert replica.logit_bit is shared.logit_bit
    assert (shared.stored_scale.item(), replica.stored_scale.item()) == (1.0, 0.5)


def test_frozen_weights_stay_frozen():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    attach_weight_quantizers(net, [], "deadzone", {})
    latent_weight(net[0]).requires_grad_(False)
    smaller = compact(net, torch.randn(2, 3, 2, 2), keep_quantizers=True).model
    assert [latent_weight(layer).requires_grad for _, layer in named_layers(smaller)] == [False, True]


def test_a_batchnorm_of_fewer_channels_has_the_settings_of_the_whole_one():
    for settings in ({"eps": 0.1, "momentum": None}, {"momentum": 0.3, "affine": False}):
        whole, part = nn.BatchNorm2d(8, **settings), of_channels(nn.BatchNorm2d(8, **settings), 3)
        assert (part.num_features, part.eps, part.momentum) == (3, whole.eps, whole.momentum)
        assert part.affine == whole.affine
