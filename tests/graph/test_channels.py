"""Null channels against what random inputs really show, coupled groups against a derivation by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each, few
from torch import nn

from codeq.graph.channels import coupled_groups, live_kernels, null_channels
from codeq.graph.tracing import trace
from codeq.metrics import nonzero_kernels
from codeq.models import MODELS, resnet18, resnet20, resnet50, vit
from codeq.sparsity import coupled_group_lasso


class Branches(nn.Module):
    """Concatenation, slicing, channel padding, depthwise and grouped convolution, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.b = nn.Conv2d(3, 4, 1, bias=False)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10, bias=False)
        self.grouped = nn.Conv2d(10, 8, 1, groups=2, bias=False)
        self.c = nn.Conv2d(6, 10, 1, bias=False)
        self.fc = nn.Linear(10 * 4, 5, bias=False)

    def forward(self, x):
        y = torch.cat([F.relu(self.a(x)), self.b(x)], dim=1)
        y = F.relu(self.depthwise(y))
        z = F.pad(self.grouped(y)[:, 1:7], (0, 0, 0, 0, 2, 2))
        return self.fc(F.avg_pool2d(z + self.c(y[:, 2:8]), 4).flatten(1))


class Tokens(nn.Module):
    """The same on `[N, tokens, C]`, whose channels are the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 6, bias=False)
        self.b = nn.Linear(3, 4, bias=False)
        self.c = nn.Linear(10, 8, bias=False)
        self.fc = nn.Linear(4 * 8, 5, bias=False)
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        y = torch.cat([F.relu(self.a(tokens)), self.b(tokens)], dim=-1)
        z = F.pad(y[:, 1:, 1:7], (1, 1)) + self.c(y)[:, 1:]
        return self.fc(z[:, :4].flatten(1)) + self.head(F.gelu(z).mean(1))


def without_shifts(model: nn.Module) -> nn.Module:
    """Make BatchNorm a positive scaling, so that what the accounting ignores is not there."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.bias)
            module.running_mean.zero_()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model.double().eval()


def positive_weights(model: nn.Module, generator: torch.Generator, share: float) -> None:
    """Draw positive weights, so that nothing cancels, and zero a share of filters and of single kernels."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            w = module.weight.data
            w.copy_(torch.rand(w.shape, generator=generator, dtype=w.dtype) + 0.1)
            w[torch.rand(len(w), generator=generator) < share] = 0
            w[torch.rand(w.shape[:2], generator=generator) < share] = 0


def seen_nulls(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Look which channels of every layer's input and output are 0 for all inputs."""
    seen = {}

    def look(name):
        def hook(_, inputs, output):
            seen[name] = tuple(
                (t.movedim(2 if t.ndim == 3 else 1, 0).flatten(1) == 0).all(1).numpy()
                for t in (inputs[0].detach(), output.detach())
            )

        return hook

    hooks = [
        module.register_forward_hook(look(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("seed", few(range(3)))
@each("share", [0.2, 0.5])
@each("name", ["resnet20-A", "resnet20-B", "branches", "tokens", "mlp"])
def test_null_channels_are_those_that_inputs_show(name, share, seed):
    model = {
        "resnet20-A": lambda: resnet20(shortcut="A"),
        "resnet20-B": lambda: resnet20(shortcut="B"),
        "branches": Branches,
        "tokens": Tokens,
        "mlp": MODELS["mlp"],
    }[name]()
    size = (3, 8, 8) if name in ("branches", "tokens") else (3, 32, 32)
    generator = torch.Generator().manual_seed(seed)
    without_shifts(model)
    positive_weights(model, generator, share)
    graph = trace(model, size)
    nonzero = {op.layer: nonzero_kernels(model.get_submodule(op.layer).weight) for op in graph.layers}
    predicted = null_channels(graph, nonzero)
    seen = seen_nulls(model, torch.rand(3, *size, generator=generator, dtype=torch.double) + 0.1)
    assert predicted.keys() == seen.keys()
    for layer, (null_in, null_out) in predicted.items():
        assert (null_in == seen[layer][0]).all(), layer
        assert (null_out == seen[layer][1]).all(), layer
    # Pixels that become tokens leave the dimension of channels; nothing else is unknown.
    assert [op.call for op in graph.unknown] == (["call_method flatten", "call_method transpose"] * (name == "tokens"))


def test_a_dead_branch_leaves_the_skip_alive():
    model = resnet20()
    nn.init.zeros_(model.layer1[0].conv2.weight)
    graph = trace(model)
    nulls = null_channels(
        graph, {op.layer: nonzero_kernels(model.get_submodule(op.layer).weight) for op in graph.layers}
    )
    assert nulls["layer1.0.conv2"][1].all()
    assert not nulls["layer1.1.conv1"][0].any()


def test_padded_channels_die_where_the_block_writes_nothing():
    model = resnet20()
    nn.init.zeros_(model.layer2[0].conv2.weight)
    graph = trace(model)
    nulls = null_channels(
        graph, {op.layer: nonzero_kernels(model.get_submodule(op.layer).weight) for op in graph.layers}
    )
    assert np.flatnonzero(nulls["layer2.1.conv1"][0]).tolist() == [*range(8), *range(24, 32)]


class Unknowns(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1, bias=False)
        self.call = call
        self.second = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x):
        return self.second(self.call(self.first(x)))


class Slopes(nn.Module):
    def __init__(self):
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([0.5, -1.0, 0.25, 2.0]))

    def forward(self, x):
        return F.prelu(x, self.slopes)


@each("call", [
    lambda x: x.cumsum(2), lambda x: torch.cumprod(x, dim=3), lambda x: x.norm(dim=(2, 3), keepdim=True),
    lambda x: torch.linalg.vector_norm(x, 3, (2, 3), keepdim=True), lambda x: x.var((2, 3), keepdim=True),
    lambda x: torch.hstack([x[:, 2:], x[:, :2]]),
    Slopes(), nn.Dropout3d(),
])  # fmt: skip
def test_what_keeps_zeros_keeps_null_channels_and_no_others(call):
    model = Unknowns(call).double().eval()
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight.copy_(layer.weight.abs() + 0.1)
        model.first.weight[[1, 3]] = 0
    graph = trace(model, (3, 4, 4))
    nulls = null_channels(graph, {name: nonzero_kernels(getattr(model, name).weight) for name in ("first", "second")})
    x = torch.rand(2, 3, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0)) + 0.1
    assert nulls["second"][0].tolist() == seen_nulls(model, x)["second"][0].tolist()
    assert nulls["second"][0].sum() == 2


@each("call", [torch.exp, torch.cos, F.softplus, torch.sigmoid, lambda x: x + 1, lambda x: torch.sub(x, 0.5)])
def test_a_channel_of_zeros_is_not_null_after_what_maps_zero_elsewhere(call):
    model = Unknowns(call)
    nn.init.zeros_(model.first.weight)
    graph = trace(model, (3, 4, 4))
    nulls = null_channels(graph, {name: nonzero_kernels(getattr(model, name).weight) for name in ("first", "second")})
    assert not graph.unknown
    assert not nulls["second"][0].any()


@each("call", [torch.sinc, lambda x: x.sort(dim=1)[0], lambda x: torch.add(x, 1, alpha=2), lambda x: x.roll(1, 1)])
def test_what_is_not_known_keeps_channels_alive_and_is_listed(call):
    model = Unknowns(call)
    nn.init.zeros_(model.first.weight)
    graph = trace(model, (3, 4, 4))
    nulls = null_channels(graph, {name: nonzero_kernels(getattr(model, name).weight) for name in ("first", "second")})
    assert nulls["first"][1].all()
    assert not nulls["second"][0].any()
    assert graph.unknown
    assert coupled_groups(graph).count == 0


class Gated(nn.Module):
    """Squeeze-and-excite between two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(2, 4, 1, bias=False)

    def forward(self, x):
        x = self.first(x)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.second(gate * x)


def test_a_gated_channel_is_null_with_what_it_gates_and_dies_with_its_gate():
    model = Gated()
    with torch.no_grad():
        model.first.weight[1] = 0
        model.excite.weight[2] = 0  # half open, which is not null
    graph = trace(model, (3, 4, 4))
    assert not graph.unknown
    nonzero = {name: nonzero_kernels(module.weight) for name, module in model.named_children()}
    nulls = null_channels(graph, nonzero)
    assert [np.flatnonzero(nulls[name][0]).tolist() for name in ("squeeze", "excite", "second")] == [[1], [], [1]]
    groups = coupled_groups(graph)
    assert groups.members(int(groups.writers["first"][3])) == (
        [("first", 3), ("excite", 3)],
        [("squeeze", 3), ("second", 3)],
    )


def small_vit() -> nn.Module:
    return vit(num_classes=10, img_size=32, patch_size=8)


def test_hidden_channels_of_a_vit_die_and_its_residual_stream_lives():
    model = without_shifts(small_vit())
    dead = [5, 7, 700]
    block = model.blocks[2]
    nn.init.zeros_(block.attn.proj.weight)
    nn.init.zeros_(model.patch_embed.proj.weight)
    with torch.no_grad():
        block.mlp.fc1.weight[dead] = 0
        block.mlp.fc2.weight[3] = 0
    graph = trace(model)
    predicted = null_channels(
        graph, {op.layer: nonzero_kernels(model.get_submodule(op.layer).weight) for op in graph.layers}
    )
    seen = seen_nulls(model, torch.rand(2, 3, 32, 32, dtype=torch.double))
    assert predicted.keys() == seen.keys()
    for layer, (null_in, null_out) in predicted.items():
        assert (null_in == seen[layer][0]).all(), layer
        assert (null_out == seen[layer][1]).all(), layer
    assert np.flatnonzero(predicted["blocks.2.mlp.fc2"][0]).tolist() == dead
    assert np.flatnonzero(predicted["blocks.2.mlp.fc2"][1]).tolist() == [3]
    assert predicted["blocks.2.attn.proj"][1].all()
    assert not predicted["blocks.2.mlp.fc1"][0].any()


def test_coupled_groups_of_a_vit_are_its_hidden_channels_alone():
    groups = coupled_groups(trace(small_vit()))
    assert groups.count == 12 * 768
    for side, names in ((groups.writers, "mlp.fc1"), (groups.readers, "mlp.fc2")):
        assert {name for name, group in side.items() if (group >= 0).any()} == {
            f"blocks.{b}.{names}" for b in range(12)
        }
    hidden = int(groups.writers["blocks.4.mlp.fc1"][9])
    assert groups.members(hidden) == ([("blocks.4.mlp.fc1", 9)], [("blocks.4.mlp.fc2", 9)])
    assert groups.classifiers == {"head"}


@pytest.mark.parametrize("size", few([32, 224]))
def test_coupled_groups_of_the_imagenet_resnets_are_streams_and_block_internal_channels(size):
    groups = coupled_groups(trace(resnet18(), (3, size, size)))
    assert groups.count == (64 + 128 + 256 + 512) * (1 + 2)  # the stream of each stage, and two blocks of one conv
    assert groups.members(int(groups.writers["layer2.1.conv2"][7])) == (
        [("layer2.0.conv2", 7), ("layer2.0.downsample.0", 7), ("layer2.1.conv2", 7)],
        [("layer2.1.conv1", 7), ("layer3.0.conv1", 7), ("layer3.0.downsample.0", 7)],
    )
    assert groups.members(int(groups.writers["conv1"][3]))[0] == [
        ("conv1", 3),
        ("layer1.0.conv2", 3),
        ("layer1.1.conv2", 3),
    ]
    internal = 2 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)  # two in each bottleneck
    assert coupled_groups(trace(resnet50(), (3, size, size))).count == 64 + 256 + 512 + 1024 + 2048 + internal


@pytest.mark.parametrize("build", [resnet18, small_vit])
def test_the_coupled_lasso_of_larger_models_has_finite_gradients(build):
    model = build()
    loss = coupled_group_lasso(model, input_size=(3, 32, 32))
    member = model.get_submodule("layer1.0.conv1" if build is resnet18 else "blocks.0.mlp.fc1")
    reader = model.get_submodule("layer1.0.conv2" if build is resnet18 else "blocks.0.mlp.fc2")
    with torch.no_grad():
        member.weight[2] = 0
        reader.weight[:, 2] = 0
    value = loss(model)
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert member.weight.grad.isfinite().all()
    assert (member.weight.grad[2] == 0).all()
    assert (member.weight.grad[3] != 0).any()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def groups_by_hand(shortcut: str) -> set[tuple[frozenset, frozenset]]:
    """Write out ResNet-20's groups: writers and readers as (layer, channel)."""
    found = set()
    sizes = {1: 16, 2: 32, 3: 64}
    for stage, size in sizes.items():
        for block in range(3):
            for c in range(size):
                writer, reader = f"layer{stage}.{block}.conv1", f"layer{stage}.{block}.conv2"
                found.add((frozenset({(writer, c)}), frozenset({(reader, c)})))
    # Residual streams, each stage's channel c by the channel of the last stage that it is part of.
    streams: dict[object, tuple[set, set]] = {}
    for stage, size in sizes.items():
        offset = {1: 24, 2: 16, 3: 0}[stage] if shortcut == "A" else 0
        for c in range(size):
            key = c + offset if shortcut == "A" else (stage, c)
            writers, readers = streams.setdefault(key, (set(), set()))
            writers |= {(f"layer{stage}.{block}.conv2", c) for block in range(3)}
            readers |= {(f"layer{stage}.{block}.conv1", c) for block in range(1, 3)}
            if stage == 1:
                writers.add(("conv1", c))
                readers.add(("layer1.0.conv1", c))
            if stage < 3:
                readers.add((f"layer{stage + 1}.0.conv1", c))
                if shortcut == "B":
                    readers.add((f"layer{stage + 1}.0.shortcut.0", c))
            else:
                readers.add(("linear", c))
            if shortcut == "B" and stage > 1:
                writers.add((f"layer{stage}.0.shortcut.0", c))
    return found | {(frozenset(w), frozenset(r)) for w, r in streams.values()}


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_coupled_groups_of_resnet20_are_those_derived_by_hand(shortcut):
    groups = coupled_groups(trace(resnet20(shortcut=shortcut)))
    members = [groups.members(g) for g in range(groups.count)]
    assert {(frozenset(w), frozenset(r)) for w, r in members} == groups_by_hand(shortcut)
    assert groups.count == {"A": 64 + 336, "B": 112 + 336}[shortcut]
    assert groups.classifiers == {"linear"}


def test_batchnorms_belong_to_the_channels_they_scale():
    groups = coupled_groups(trace(resnet20()))
    assert (groups.batchnorms["layer2.1.bn2"] == groups.writers["layer2.1.conv2"]).all()
    assert (groups.batchnorms["bn1"] == groups.writers["conv1"]).all()


def test_channels_that_one_batchnorm_scales_in_two_calls_are_one_group():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(3, n, 1) for n in (4, 4, 4, 3))
            self.bn, self.padded, self.fc = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(8, 2)

        def forward(self, x):
            both = torch.cat([F.relu(self.bn(self.a(x))), F.relu(self.bn(self.b(x)))], 1)
            kept = self.padded(F.pad(self.d(x), (0, 0, 0, 0, 1, 0))) + self.padded(self.c(x))
            return self.fc(both.mean((2, 3))), kept

    groups = coupled_groups(trace(Shared(), (3, 4, 4)))
    assert groups.count == 4
    assert (groups.writers["a"] == groups.batchnorms["bn"]).all()
    assert (groups.writers["b"] == groups.batchnorms["bn"]).all()
    assert groups.members(int(groups.writers["a"][1])) == ([("a", 1), ("b", 1)], [("fc", 1), ("fc", 5)])
    assert (groups.batchnorms["padded"] == -1).all()  # the result of the network
    # Only what is added is one stream.
    assert not np.isin(groups.written["a"], groups.written["b"]).any()
    assert (groups.read["fc"] == np.concatenate([groups.written["a"], groups.written["b"]], axis=1)).all()
    assert (groups.written["c"][0, 1:] == groups.written["d"][0]).all()


def test_hidden_units_of_an_mlp_are_groups_and_its_outputs_are_not():
    groups = coupled_groups(trace(MODELS["mlp"]()))
    assert groups.count == 120 + 84
    assert groups.members(int(groups.writers["fc1"][7])) == ([("fc1", 7)], [("fc2", 7)])
    assert (groups.writers["fc3"] == -1).all()
    assert (groups.readers["fc1"] == -1).all()


def test_a_flattened_channel_is_read_by_all_its_pixels():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2 * 9, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = coupled_groups(trace(model, (1, 3, 3)))
    writers, readers = groups.members(int(groups.writers["0"][1]))
    assert writers == [("0", 1)]
    assert readers == [("2", c) for c in range(9, 18)]


def test_a_depthwise_filter_dies_with_its_input():
    groups = coupled_groups(
        trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)), (3, 8, 8))
    )
    writers, readers = groups.members(int(groups.writers["0"][2]))
    assert writers == [("0", 2), ("1", 2)]
    assert ("2", 2) in readers


def test_channels_that_a_depthwise_convolution_multiplies_are_kept():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    groups = coupled_groups(trace(net, (3, 8, 8)))
    assert groups.count == 0
    assert (groups.writers["0"] == -1).all()
    assert (groups.writers["1"] == -1).all()


def test_live_kernels_go_group_by_group():
    nonzero = np.ones((4, 2), dtype=bool)
    live = live_kernels(nonzero, 2, np.array([True, False, False, True]))
    assert live.tolist() == [[False, True], [False, True], [True, False], [True, False]]


class CalledElsewhere(nn.Module):
    """Calls a layer once on channels in their usual place, and once, or another layer with its weight, on others."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.fc1, self.other, self.fc2 = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        if tied:
            self.other.weight = self.fc1.weight
        self.tied = tied

    def forward(self, x):
        elsewhere = (self.other if self.tied else self.fc1)(x.permute(0, 2, 3, 1))
        return self.fc2(F.relu(self.fc1(x.mean((2, 3))))), elsewhere


@each("tied", [False, True])
def test_what_a_prunable_filter_writes_reaches_the_output_through_the_slices_of_its_group_alone(tied):
    torch.manual_seed(0)
    net, x = CalledElsewhere(tied).double(), torch.randn(2, 3, 4, 4, dtype=torch.double)
    graph = trace(net, (3, 4, 4))
    groups = coupled_groups(graph)
    for group in range(groups.count):
        writers, readers = groups.members(group)
        with torch.no_grad():
            for name, channel in readers:
                net.get_submodule(name).weight[:, channel] = 0
        net.zero_grad()
        sum(result.sum() for result in net(x)).backward()
        for name, channel in writers:
            assert not net.get_submodule(name).weight.grad[channel].any(), (name, channel)
    assert (groups.writers["fc1"] == -1).all()
    assert (groups.readers["fc2"] == -1).all()


class CalledTwice(nn.Module):
    """Calls a convolution on four channels, and on two channels and two of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 2, 1, bias=False)
        self.shared, self.fc = nn.Conv2d(4, 4, 1, bias=False), nn.Linear(4, 2)

    def forward(self, x):
        first, second = self.shared(self.wide(x)), self.shared(F.pad(self.narrow(x), (0, 0, 0, 0, 0, 2)))
        return self.fc((first + second).relu().mean((2, 3)))


def test_what_is_zero_in_the_last_call_alone_is_neither_null_nor_out_of_its_group():
    net = CalledTwice()
    graph = trace(net, (3, 4, 4))
    nonzero = {name: nonzero_kernels(layer.weight) for name, layer in net.named_children()}
    nonzero["shared"][:] = np.eye(4, dtype=bool)
    null_in, null_out = null_channels(graph, nonzero)["shared"]
    assert not null_in.any()
    assert not null_out.any()
    groups = coupled_groups(graph)
    assert groups.readers["shared"].tolist() == groups.writers["wide"].tolist()
    assert groups.readers["shared"][:2].tolist() == groups.writers["narrow"].tolist()
