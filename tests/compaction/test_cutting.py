"""Cutting of live channels: importance against finite differences, MACs against an outside counter."""

import copy

import numpy as np
import pytest
import torch
from cases import each
from networks import TiedDecoder, shaken
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from codeq import attach_weight_quantizers
from codeq.common.errors import CodeqError
from codeq.compaction import compact, cut_channels, cutting
from codeq.compaction.importance import group_importance
from codeq.compaction.latency import Prices
from codeq.graph.channels import coupled_groups
from codeq.graph.tracing import trace
from codeq.metrics.bops import dense_stats, exact_stats, structured_stats
from codeq.metrics.records import measure
from codeq.models import CifarResNet
from codeq.quantizer.layers import forward_weight

SIZE = (3, 8, 8)


def batches(count=3, size=SIZE, classes=10):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, *size, generator=generator), torch.randint(classes, (16,), generator=generator))
        for _ in range(count)
    ]


def chain():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 10),
    )  # fmt: skip
    return shaken(net).float()


def loss_changes(net, layer, x, y):
    """Derivative of the loss by a factor on each channel of a layer's affine result, by central differences."""
    changes, module = [], net[layer]
    for channel in range(len(module.weight)):
        losses = []
        for factor in (1 + 1e-4, 1 - 1e-4):
            other = copy.deepcopy(net)
            with torch.no_grad():
                other[layer].weight[channel] *= factor
                other[layer].bias[channel] *= factor
            losses.append(nn.functional.cross_entropy(other(x), y).item())
        changes.append((losses[0] - losses[1]) / 2e-4)
    return np.array(changes)


@pytest.mark.parametrize(
    ("multiple_of", "prices"),
    [(1, Prices()), (2, Prices()), (1, Prices(1.0, 100.0)), (2, Prices(0.0, 1e-9)), (3, Prices(1e-9, 1e-7, 1e-9))],
)
def test_the_channels_with_the_least_importance_for_their_cost_are_cut(multiple_of, prices):
    net = chain()
    exact = copy.deepcopy(net).double()
    importance = [
        np.mean([loss_changes(exact, layer, x.double(), y) ** 2 for x, y in batches()], axis=0) for layer in (1, 3)
    ]
    alive = [np.ones(6, bool), np.ones(5, bool)]
    cuts = []

    def macs(first, second):
        return 64 * 27 * first + 16 * 9 * first * second + 160 * second

    def cost(first, second):
        return prices.of(macs(first, second), 64 * first + 16 * second + 10, 3)

    while cost(alive[0].sum(), alive[1].sum()) > 0.6 * cost(6, 5):
        first, second = alive[0].sum(), alive[1].sum()
        costs = cost(1, second) - cost(0, second), cost(first, 1) - cost(first, 0)
        blocks = [
            live.nonzero()[0][np.argsort(of[live])][: (live.sum() - 1) % multiple_of + 1]
            for live, of in zip(alive, importance, strict=True)
        ]
        quotients = [
            of[block].sum() / len(block) / one for of, block, one in zip(importance, blocks, costs, strict=True)
        ]
        quotients = [
            quotient if len(block) < live.sum() else np.inf
            for quotient, block, live in zip(quotients, blocks, alive, strict=True)
        ]
        side = int(np.argmin(quotients))
        alive[side][blocks[side]] = False
        cuts.append((side, blocks[side]))
    for number in reversed(range(len(cuts))):
        side, block = cuts[number]
        later = [of for other, of in cuts[number + 1 :] if other == side]
        counts = [alive[0].sum(), alive[1].sum()]
        counts[side] += len(block)
        if all(alive[side][of].all() for of in later) and cost(*counts) <= 0.6 * cost(6, 5):
            alive[side][block] = True
    before = copy.deepcopy(net)
    cut = cut_channels(net, batches(), 0.6, SIZE, multiple_of, prices)
    assert cut.cut == 11 - alive[0].sum() - alive[1].sum()
    assert 0 < cut.cut < 9
    assert all(live.sum() % multiple_of == 0 or live.all() for live in alive)
    assert cut.macs == pytest.approx(macs(alive[0].sum(), alive[1].sum()) / macs(6, 5))
    assert cut.cost == pytest.approx(cost(alive[0].sum(), alive[1].sum()) / cost(6, 5))
    for layer, live in ((0, alive[0]), (1, alive[0]), (3, alive[1])):
        for (name, after), old in zip(net[layer].named_parameters(), before[layer].parameters(), strict=True):
            expected = old * torch.from_numpy(live).view(-1, *[1] * (old.ndim - 1))
            assert torch.equal(after, expected), (layer, name)
    assert torch.equal(net[6].weight, before[6].weight)


class OneNormTwice(nn.Module):
    """One BatchNorm behind two convolutions, whose shifts keep the channels of both alive."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn, self.fc = nn.BatchNorm2d(6), nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(torch.cat([F.relu(self.bn(layer(x))) for layer in (self.a, self.b)], 1).mean((2, 3)))


class OneLayerTwice(nn.Module):
    """A convolution with a BatchNorm for each size of its input, as in heads of detectors."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Linear(6, 10)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))

    def forward(self, x):
        sizes = x, F.avg_pool2d(x, 2)
        return self.fc(sum(F.relu(norm(self.conv(y))).mean((2, 3)) for norm, y in zip(self.norms, sizes, strict=True)))


@each("make", [OneNormTwice, OneLayerTwice])
def test_importance_counts_all_that_scales_a_channel(make):
    torch.manual_seed(0)
    net = shaken(make()).float()
    graph = trace(net, SIZE)
    groups = coupled_groups(graph)
    found = group_importance(copy.deepcopy(net), graph, groups, batches())
    assert groups.count == 6
    norms = [net.bn] if make is OneNormTwice else [*net.norms]
    of = groups.batchnorms["bn" if make is OneNormTwice else "norms.1"]
    expected = np.zeros(6)
    for x, y in batches():
        loss = nn.functional.cross_entropy(net(x), y)
        parameters = [p for norm in norms for p in (norm.weight, norm.bias)]
        grads = torch.autograd.grad(loss, parameters)
        changes = sum(p * grad for p, grad in zip(parameters, grads, strict=True)).detach().double().numpy()
        expected[of] += changes**2 / 3
    np.testing.assert_allclose(found, expected, rtol=1e-4)


class Twins(nn.Module):
    """Two convolutions with one weight, or one of them called twice."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(3, 6, 1, bias=False), nn.Linear(12, 10)
        self.b.weight = self.a.weight
        self.tied = tied

    def forward(self, x):
        twin = self.b if self.tied else self.a
        return self.fc(torch.cat([F.relu(self.a(x)), F.relu(twin(x.flip(1)))], 1).mean((2, 3)))


def test_a_weight_that_layers_share_counts_once():
    graphs = [trace(Twins(tied), SIZE) for tied in (True, False)]
    tied, called_twice = (
        group_importance(Twins(tied), graph, coupled_groups(graph), batches())
        for tied, graph in zip((True, False), graphs, strict=True)
    )
    np.testing.assert_allclose(tied, called_twice, rtol=1e-5)


class Grouped(nn.Module):
    """Depthwise and grouped convolutions beside a residual stream."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 12, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.narrow = nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.narrow(self.depthwise(self.norm(self.wide(x)).relu()).relu())
        return self.fc(x.mean((2, 3)))


class NotFollowed(nn.Module):
    """Layers that count, but whose channels are not followed, beside a convolution that is."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.up = nn.Conv2d(3, 48, 3), nn.Conv2d(48, 6, 3), nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.attend, self.fc = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 10)

    def forward(self, x):
        x = self.up(self.wide(self.stem(x).relu())).flatten(2).mT
        return self.fc(self.attend(x, x, x, need_weights=False)[0].mean(1))


class InWindows(nn.Module):
    """Two convolutions, and an MLP on windows that are folded into the batch, which compaction keeps whole."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)
        self.first, self.second, self.fc = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 10)

    def forward(self, x):
        x = self.conv(self.stem(x).relu())
        n, c, h, w = x.shape
        windows = x.reshape(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(4 * n, h * w // 4, c)
        return self.fc(self.second(self.first(windows).relu()).reshape(n, h * w, c).mean(1))


MODELS = {"chain": chain, "grouped": Grouped, "resnet": lambda: CifarResNet(1), "not followed": NotFollowed}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_group_costs_what_the_network_costs_without_it_less(make):
    net, prices = make().eval(), Prices(2.0, 300.0, 1e5)
    graph = trace(net, SIZE)
    spaces = cutting._Spaces(graph, coupled_groups(graph), measure(net, SIZE), prices)
    channels = np.array([len(members) for members in spaces.members(np.ones(len(spaces.space_of), bool))])
    for space, cost in enumerate(spaces.cost_of_one(channels)):
        fewer = channels - np.eye(len(channels), dtype=int)[space]
        assert cost == pytest.approx(spaces.cost(channels) - spaces.cost(fewer), rel=1e-9)
        assert cost > 2 * (spaces.macs(channels) - spaces.macs(fewer))  # elements cost, too


def test_elements_of_layers_that_are_not_followed_count_where_they_are_written():
    size = (3, 8, 8)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 6, 2, 2), nn.Flatten(), nn.Linear(384, 10)
    )
    graph = trace(net, size)
    spaces = cutting._Spaces(graph, coupled_groups(graph), measure(net, size), Prices(0.0, 1.0))
    assert spaces.dense_cost == 4 * 36 + 6 * 16 + 6 * 64 + 10
    tied = nn.Sequential(TiedDecoder(), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    graph = trace(tied, size)
    spaces = cutting._Spaces(graph, coupled_groups(graph), measure(tied, size), Prices(0.0, 1.0))
    assert spaces.dense_cost == 6 * 36 + 6 * 36 + 3 * 64 + (4 + 2) * 64


@pytest.mark.parametrize(
    ("make", "share"), [(InWindows, 0.9), *((make, share) for make in MODELS.values() for share in (0.8, 0.3))]
)
def test_what_is_left_is_what_the_compacted_network_computes(make, share):
    torch.manual_seed(2)
    net = make().eval()
    cut = cut_channels(net, batches(), share, SIZE)
    assert cut.macs <= share
    proof = compact(net, torch.randn(2, *SIZE)).proof  # PyTorch's counter of operations that really run
    assert proof.compacted_macs / proof.masked_macs == pytest.approx(cut.macs, rel=1e-9)


def test_quantized_weights_of_cut_channels_are_zero_and_dead_ones_count():
    net = chain()
    attach_weight_quantizers(net, [], "deadzone", {})
    with torch.no_grad():
        net[0].parametrizations.weight.original[:2] = 0
    done = cut_channels(net, batches(), 0.5, SIZE)
    assert (forward_weight(net[0])[:2] == 0).all()
    dead = int(
        (forward_weight(net[0]).flatten(1) == 0).all(1).sum() + (forward_weight(net[3]).flatten(1) == 0).all(1).sum()
    )
    assert dead == done.cut > 2
    assert str(done).startswith(f"{dead} of 11 prunable channels are zero")
    again = copy.deepcopy(net)
    assert cut_channels(again, batches(), 0.5, SIZE) == done  # nothing more to do
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), net.parameters(), strict=True))


def test_inverses_of_numpy_2_0_have_a_dimension_more(monkeypatch):
    unique = np.unique

    def older(values, axis=None, **options):
        found = unique(values, axis=axis, **options)
        return (found[0], found[1][None]) if axis == 1 and options == {"return_inverse": True} else found

    net, other = chain(), chain()
    expected = cut_channels(net, batches(1), 0.5, SIZE)
    monkeypatch.setattr(np, "unique", older)
    assert cut_channels(other, batches(1), 0.5, SIZE) == expected


@pytest.mark.parametrize("budget", [0.95, 0.4])
def test_constants_of_channels_that_were_dead_before_stay(budget):
    net = chain()
    with torch.no_grad():
        net[0].weight[:2] = 0
        net[1].bias[:2] = 2.0
    before, (x, _) = copy.deepcopy(net), batches(1)[0]
    cut = cut_channels(net, batches(), budget, SIZE)
    assert torch.equal(net[1].weight[:2], before[1].weight[:2])
    assert (net[1].bias[:2] == 2.0).all()
    assert cut.cut == sum(int((net[i].weight.flatten(1) == 0).all(1).sum()) for i in (0, 3))
    assert (cut.cut == 2) == torch.equal(net(x), before(x)) == (budget > 0.9)
    proof = compact(net, x).proof
    assert proof.compacted_macs == pytest.approx(cut.macs * proof.masked_macs)


def test_constants_that_would_keep_their_channels_can_be_cut_too():
    net = chain()
    with torch.no_grad():
        net[0].weight[:2] = 0
        net[1].bias[:2] = 2.0
    kept, (x, _) = copy.deepcopy(net), batches(1)[0]
    cut = cut_channels(net, batches(), 0.95, SIZE, constants=False)
    assert cut == cut_channels(kept, batches(), 0.95, SIZE)
    assert (net[1].bias[:2] == 0).all()
    proof = compact(net, x, borders="live").proof
    assert proof.compacted_macs == pytest.approx(cut.macs * proof.masked_macs)
    assert compact(kept, x, borders="live").proof.compacted_macs > proof.compacted_macs


@pytest.mark.parametrize(
    ("macs", "given", "message"),
    [
        (0.0, batches(1), "budget=0.0: must be a fraction between 0 and 1"),
        (1.0, batches(1), "budget=1.0"),
        (float("nan"), batches(1), "budget=nan"),
        ("0.5", batches(1), "budget='0.5': must be a fraction between 0 and 1"),
        (0.001, batches(1), "of the cost cannot be reached: 13.12% is left where every layer keeps one channel"),
        (0.5, [], "no batches"),
        (0.5, [(torch.full((1, *SIZE), float("inf")), torch.zeros(1, dtype=torch.long))], "not finite"),
    ],
)
def test_a_budget_that_cannot_be_met_changes_nothing(macs, given, message):
    net = chain()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CodeqError, match=message):
        cut_channels(net, given, macs, SIZE)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@each("multiple_of", [0, -8, 2.0, "8", True])
def test_a_multiple_that_is_no_positive_integer_is_refused(multiple_of):
    with pytest.raises(CodeqError, match=f"multiple_of={multiple_of!r}: must be an integer of at least 1"):
        cut_channels(chain(), batches(1), 0.5, SIZE, multiple_of)


@each("returned", [lambda scores: {"scores": scores}, lambda scores: (scores, scores), lambda scores: scores[:, 0]])
def test_a_network_that_returns_no_scores_is_refused(returned):
    net = chain()
    net.register_forward_hook(lambda _module, _x, scores: returned(scores))
    with pytest.raises(
        CodeqError, match=r"the model returns (dict|tuple|float32 \[16\]): importance takes class scores"
    ):
        cut_channels(net, batches(1), 0.5, SIZE)


def test_labels_that_are_no_class_numbers_are_refused():
    ((x, y),) = batches(1)
    with pytest.raises(CodeqError, match=r"labels are int64 \[16, 1\]: accuracy takes integer class numbers \[16\]"):
        cut_channels(chain(), [(x, y[:, None])], 0.5, SIZE)


def test_a_network_without_prunable_channels_is_refused():
    with pytest.raises(CodeqError, match="no channel of the network can be removed"):
        cut_channels(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), batches(1), 0.5, SIZE)


@each("computed", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_filters_that_cannot_be_zeroed_are_refused_by_layer(computed):
    net = chain()
    layer = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    computed(net.get_submodule(layer))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CodeqError, match=f"filters of layer '{layer}' do not become zero .*cannot be pruned"):
        cut_channels(net, batches(1), 0.5, SIZE)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_filters_under_a_spectral_norm_are_cut():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.LazyLinear(10))
    net(torch.zeros(1, *SIZE))
    parametrizations.spectral_norm(net[0])
    with torch.inference_mode():
        cut = cut_channels(net, batches(1), 0.6, SIZE)
    records = measure(net, SIZE)
    assert structured_stats(records).total_macs == pytest.approx(cut.macs * dense_stats(records).total_macs)


class Aside(nn.Module):
    """It computes a branch that its output does not depend on, and a depthwise convolution of padded channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.aside, self.fc = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(10, 8, 3),
            nn.Conv2d(8, 4, 1),
            nn.Linear(8, 2),
        )
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)

    def forward(self, x):
        h = self.a(x).relu()
        self.aside(h)
        return self.fc(self.b(self.depthwise(F.pad(h, (0, 0, 0, 0, 1, 1)))).relu().mean((2, 3)))


def test_unused_branches_and_depthwise_convolutions_of_padded_channels_are_cut():
    torch.manual_seed(0)
    net, x = Aside(), torch.randn(6, 3, 8, 8)
    whole = exact_stats(net, (3, 8, 8)).total_macs
    cut_channels(net, [(x, torch.tensor([0, 1] * 3))], 0.5, (3, 8, 8))
    report = compact(net, x)
    torch.testing.assert_close(report.model(x), net.eval()(x), rtol=0, atol=1e-5)
    assert exact_stats(net, (3, 8, 8)).total_macs <= 0.55 * whole
    assert exact_stats(net, (3, 8, 8), streams="whole").total_macs <= 0.6 * whole


class UNet(nn.Module):
    """An encoder and a decoder with one connection between them, for a class of every pixel."""

    def __init__(self):
        super().__init__()

        def block(c_in, c_out):
            return nn.Sequential(
                nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.PReLU(c_out)
            )

        self.high, self.low, self.deep, self.up = (
            block(3, 16),
            block(16, 32),
            block(32, 32),
            nn.Upsample(scale_factor=2),
        )
        self.both, self.classify = block(48, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        high = self.high(x)
        low = self.low(F.max_pool2d(high, 2))
        return self.classify(self.both(torch.concat([self.up(self.deep(low) + low * 0.5), high], axis=1)))


def test_a_network_that_enlarges_its_features_is_cut_and_compacted():
    torch.manual_seed(0)
    model = UNet().eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.bias)
    assert not trace(model, (3, 16, 16)).unknown
    images = [(torch.randn(4, 3, 16, 16), torch.randint(0, 4, (4, 16, 16)))]
    cut_channels(model, images, 0.5, (3, 16, 16))
    report = compact(model, images[0][0])
    dense = sum(
        layer.weight.numel() * (64 if name.startswith(("low", "deep")) else 256)
        for name, layer in UNet().named_modules()
        if isinstance(layer, nn.Conv2d)
    )
    assert 0.4 < report.proof.compacted_macs / dense <= 0.5
    assert report.proof.relative_error < 1e-9


def cut_by_scores(monkeypatch, net, scores, budget):
    """Cut channels in twos by these scores of the filters of layers, and return the filters that are left of each."""

    def importance(_plain, _graph, groups, _batches):
        found = np.zeros(groups.count)
        for name, of in scores.items():
            found[groups.writers[name]] = of
        return found

    monkeypatch.setattr(cutting, "group_importance", importance)
    cut_channels(net, [], budget, (1, 1, 1), multiple_of=2)
    return [np.flatnonzero(net.get_submodule(name).weight.detach().flatten(1).any(1)).tolist() for name in scores]


@each(
    ("sizes", "first", "second", "left"),
    [
        # Of 4 + 16 + 8 MACs two filters of the first layer save 10, at a loss of 10, and two of the second 12, of 9.
        ((4, 4), (5, 99, 5, 99), (99, 0, 99, 9), [[0, 1, 2, 3], [0, 2]]),
        # Of 3 + 12 + 8 MACs one filter of the first saves 5, at a loss of 3, and two of the second 10, of 4.
        ((3, 4), (99, 3, 99), (2, 99, 2, 99), [[0, 1, 2], [1, 3]]),
        ((3, 4), (99, 1, 99), (2, 99, 2, 99), [[0, 2], [0, 1, 2, 3]]),
    ],
)
def test_the_block_that_loses_least_for_its_cost_is_cut(sizes, first, second, left, monkeypatch):
    a, b = sizes
    layers = nn.Conv2d(1, a, 1), nn.ReLU(), nn.Conv2d(a, b, 1), nn.ReLU(), nn.Flatten(), nn.Linear(b, 2)
    assert cut_by_scores(monkeypatch, nn.Sequential(*layers), {"0": first, "2": second}, 0.9) == left


def test_less_important_channels_do_not_come_back_before_others_of_their_layer(monkeypatch):
    # 15 MACs: the fifth filter is cut, then two more, which do not fit again into 10.5. The fifth would.
    net = nn.Sequential(nn.Conv2d(1, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5, 2))
    assert cut_by_scores(monkeypatch, net, {"0": (3, 9, 1, 2, 8)}, 0.7) == [[1, 4]]


def test_inputs_without_a_class_do_not_count():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
    graph = trace(net, (3, 2, 2))
    x, y = torch.randn(4, 3, 2, 2, dtype=torch.double), torch.tensor([0, -100, 2, -100])
    found, expected = (
        group_importance(copy.deepcopy(net), graph, coupled_groups(graph), [batch])
        for batch in ((x, y), (x[::2], y[::2]))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.any()
