"""Compacted models against the masked ones they were made from, and their MACs by fvcore."""

import copy
import io
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each, few
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import MixedLayers, shaken, shuffled
from torch import nn

from codeq.common.errors import CodeqError
from codeq.compaction import compact, layers, prove, rebuild
from codeq.compaction.parts import BiasMap, Constant, Restore, Take
from codeq.evaluator import Evaluator
from codeq.metrics import exact_stats, ledger
from codeq.models import CifarMLP, CifarResNet, resnet20, vit
from codeq.quantizer.attach import attach_weight_quantizers, named_quantizers

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def fvcore_macs(model: nn.Module, x: torch.Tensor) -> int:
    """MACs of conv and linear layers for one input, counted outside of codeq."""
    from fvcore.nn import FlopCountAnalysis

    count = FlopCountAnalysis(model, x[:1]).unsupported_ops_warnings(False).tracer_warnings("none")
    return int(sum(macs for call, macs in count.by_operator().items() if call in ("conv", "linear", "addmm")))


def zero_filters(model: nn.Module, share: float, seed: int, batchnorm: bool = False) -> None:
    """Zero random filters, and with `batchnorm` as many scales and shifts."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LAYERS):
            module.weight.data[torch.rand(len(module.weight), generator=generator) < share] = 0
        if batchnorm and isinstance(module, nn.BatchNorm2d):
            dead = torch.rand(len(module.weight), generator=generator) < share
            module.weight.data[dead] = 0
            module.bias.data[dead] = 0


def zero_stage(model: nn.Module, seed: int) -> None:
    """Zero all layers of one random child, and a third of the filters elsewhere."""
    zero_filters(model, 0.3, seed)
    with_layers = [c for c in model.children() if any(isinstance(m, LAYERS) for m in c.modules())]
    for module in with_layers[seed % len(with_layers)].modules():
        if isinstance(module, LAYERS):
            nn.init.zeros_(module.weight)


ZEROED = {
    "weights": lambda model: zero_filters(model, 0.3, 1),
    "batchnorm": lambda model: zero_filters(model, 0.3, 2, batchnorm=True),
    "stage": lambda model: zero_stage(model, 3),
}


def check(model: nn.Module, x: torch.Tensor, **options):
    """Compact, and compare outputs and MACs without codeq's own proof."""
    before = copy.deepcopy(model.state_dict())
    report = compact(model, x, **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    inputs = torch.randn(3, *x.shape[1:], dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected, result = model(inputs), report.model(inputs)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 1e-10 * expected.abs().max()
    stats = exact_stats(model, tuple(x.shape[1:]), **options)
    assert fvcore_macs(report.model, x) == stats.total_macs == report.proof.compacted_macs
    return report


@pytest.mark.parametrize("zeroed", few(ZEROED, 2))
@each("make", [lambda: CifarResNet(2), lambda: CifarResNet(2, shortcut="B"), CifarMLP])
def test_same_outputs_and_the_counted_macs(make, zeroed):
    torch.manual_seed(0)
    model = shaken(make(), 0)
    ZEROED[zeroed](model)
    size = (3, 32, 32) if make is CifarMLP else (3, 12, 12)
    report = check(model, torch.rand(2, *size, dtype=torch.float64))
    assert report.proof.compacted_macs < 0.8 * report.proof.masked_macs
    assert report.proof.masked_macs == fvcore_macs(model, torch.rand(1, *size, dtype=torch.float64))


WHOLE = {"whole": {"streams": "whole"}, "by 8": {"streams": "whole", "multiple_of": 8}}


@pytest.mark.parametrize("zeroed", few(ZEROED, 2))
@each("options", WHOLE.values())
def test_same_outputs_and_the_counted_macs_of_whole_streams(options, zeroed):
    model = shaken(CifarResNet(2))
    ZEROED[zeroed](model)
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    report = check(model, x, **options)
    # Channels are moved only where a parameter-free shortcut carries them into the next stage.
    moved = {name for name, module in report.model.named_modules() if isinstance(module, (Take, Restore))}
    assert {"_".join(name.split("_")[:2]) for name in moved} <= {"add_2", "add_4"}
    assert compact(model, x).proof.compacted_macs <= report.proof.compacted_macs < report.proof.masked_macs
    assert str(options.get("multiple_of", 1)) in report.assumes
    if options.get("multiple_of") == 8 and zeroed != "stage":
        assert all(layer.weight.shape[0] % 8 == 0 for layer in report.model.modules() if isinstance(layer, nn.Conv2d))


def test_absorbing_borders_is_right_inside_and_says_how_wrong_at_the_borders():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, padding=1)).double()
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias[1] = 0.5
    x = torch.rand(4, 1, 6, 6, dtype=torch.float64)
    report = compact(net, x, borders="absorb")
    with torch.no_grad():
        difference = (report.model(x) - net(x)).abs()
    assert difference[:, :, 1:-1, 1:-1].max() < 1e-12
    kernel = net[1].weight[:, 1].detach() * 0.5
    corner = (kernel.sum((1, 2)) - kernel[:, 1:, 1:].sum((1, 2))).abs()
    assert torch.allclose(difference[0, :, 0, 0], corner)
    assert report.proof.max_error == pytest.approx(float(difference.max()), abs=1e-12)
    assert not any(isinstance(m, BiasMap) for m in report.model.modules())
    assert report.proof.compacted_macs == compact(net, x).proof.compacted_macs


def torchvision_model(name: str, **kwargs):
    from torchvision import models

    model = getattr(models, name)(num_classes=10, **kwargs)
    if name == "vgg16_bn":  # whose classifier alone takes a gigabyte in float64, and minutes
        model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 64), nn.Linear(64, 64)
        model.classifier[6] = nn.Linear(64, 10)
    return model


ZOO = {
    "resnet18": {}, "resnet50": {}, "vgg16_bn": {"init_weights": False}, "densenet121": {}, "mobilenet_v2": {},
    "mobilenet_v3_small": {}, "efficientnet_b0": {}, "shufflenet_v2_x0_5": {}, "regnet_y_400mf": {},
    "regnet_x_400mf": {}, "convnext_tiny": {}, "googlenet": {"init_weights": False, "aux_logits": False},
    "squeezenet1_1": {}, "swin_t": {},
}  # fmt: skip
LARGE = {"resnet50", "densenet121", "efficientnet_b0", "convnext_tiny", "swin_t"}


def zoo():
    """Each model with each way to zero channels; one way for each of the smaller ones is checked more often."""
    for number, name in enumerate(ZOO):
        for which, zeroed in enumerate(ZEROED):
            often = number % len(ZEROED) == which and name not in LARGE
            yield pytest.param(name, zeroed, marks=pytest.mark.slow if often else pytest.mark.exhaustive)


@pytest.mark.parametrize(("name", "zeroed"), list(zoo()))
def test_same_outputs_and_the_counted_macs_throughout_torchvision(name, zeroed):
    torch.manual_seed(0)
    model = shaken(torchvision_model(name, **ZOO[name]), 0)
    ZEROED[zeroed](model)
    check(model, torch.rand(2, 3, 40, 40, dtype=torch.float64))


@pytest.mark.slow
def test_same_outputs_and_the_counted_macs_of_a_small_torchvision_model():
    torch.manual_seed(0)
    model = shaken(torchvision_model("mobilenet_v3_small"), 0)
    zero_filters(model, 0.3, 1)
    check(model, torch.rand(1, 3, 32, 32, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("zeroed", ZEROED)
def test_same_outputs_and_the_counted_macs_of_a_vision_transformer(zeroed):
    torch.manual_seed(0)
    model = vit(10, img_size=32, patch_size=8).double().eval()
    ZEROED[zeroed](model)
    report = check(model, torch.rand(2, 3, 32, 32, dtype=torch.float64))
    norms = [*(f"blocks.{i}.norm{j} (LayerNorm)" for i in range(12) for j in (1, 2)), "norm (LayerNorm)"]
    # Without a patch embedding nothing depends on the input, and a LayerNorm of constants needs no following.
    assert report.unknown == (norms if report.proof.compacted_macs else [])


class Mixed(MixedLayers):
    """Squeeze-and-excite, grouped, depthwise and transposed convolution, channel shuffle, chunk, cat, an unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        x = F.pad(x + F.silu(self.depthwise(x)), (1, 0, 0, 1))
        x *= torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        a, b = shuffled(self.grouped(x)).chunk(2, dim=1)
        x = torch.cat([F.max_pool2d(self.up(a), 2), F.relu(self.side(b))], 1)
        x = x + self.norm(x)[:, [1, 0, 3, 2, 5, 4, 7, 6]]
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))


@each("borders", ["map", "live"])
@pytest.mark.parametrize("seed", few(range(4), 2))
def test_every_kind_of_operation(seed, borders):
    torch.manual_seed(seed)
    model = shaken(Mixed(), seed)
    zero_filters(model, 0.4, seed)
    report = check(model, torch.rand(2, 3, 8, 8, dtype=torch.float64), borders=borders)
    assert "norm (GroupNorm)" in report.unknown


class Dag(nn.Module):
    """A random graph: each node applies one operation to earlier results, which all have the same height and width."""

    def __init__(self, plan: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.plan = plan
        self.mods = nn.ModuleList()
        channels = [3]
        for kind, a, b in plan:
            a, b = a % len(channels), b % len(channels)
            c = channels[a]
            if kind == "conv":
                self.mods.append(nn.Conv2d(c, 2 + b, 3, padding=1))
                c = 2 + b
            elif kind == "depthwise":
                self.mods.append(nn.Conv2d(c, 2 * c, 3, padding=1, groups=c))
                c = 2 * c
            elif kind == "bn":
                self.mods.append(nn.BatchNorm2d(c))
            elif kind in ("add", "mul") and channels[b] != c:
                self.mods.append(nn.Conv2d(channels[b], c, 1, bias=False))
            else:
                self.mods.append(nn.Identity())
                c = c + channels[b] if kind == "cat" else c
            channels.append(c)
        self.head = nn.Linear(channels[-1], 3)

    def forward(self, x):
        made = [x]
        for (kind, a, b), module in zip(self.plan, self.mods, strict=True):
            x, y = made[a % len(made)], made[b % len(made)]
            if kind in ("add", "mul"):
                x = x + module(y) if kind == "add" else x * torch.sigmoid(module(y))
            elif kind == "cat":
                x = torch.cat([x, y], dim=1)
            else:
                x = F.relu(x) if kind == "relu" else module(x)
            made.append(x)
        return self.head(made[-1].mean((2, 3)))


KINDS = ["conv", "conv", "bn", "relu", "add", "cat", "depthwise", "mul"]
NODES = st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9))


@settings(max_examples=30)
@given(plan=st.lists(NODES, min_size=2, max_size=9), seed=st.integers(0, 999), borders=st.sampled_from(["map", "live"]))
def test_random_graphs(plan, seed, borders):
    torch.manual_seed(seed)
    model = shaken(Dag(plan), seed)
    zero_filters(model, 0.4, seed)
    for module in model.modules():
        if isinstance(module, LAYERS):
            module.weight.data[:, torch.rand(module.weight.shape[1]) < 0.2] = 0
    check(model, torch.rand(2, 3, 5, 5, dtype=torch.float64), borders=borders)


def half_dead() -> nn.Module:
    model = shaken(CifarResNet(1), 4)
    zero_filters(model, 0.4, 4)
    return model


X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def drop_bias(monkeypatch):
    smaller = layers.smaller

    def without(call, absorb):
        layer, _ = smaller(call, absorb)
        if isinstance(layer, nn.Conv2d):
            layer.bias = None
        return layer, None

    monkeypatch.setattr(rebuild, "smaller", without)


def even_borders(monkeypatch):
    """Fold the constant into the bias as if there were no padding."""
    smaller = layers.smaller
    monkeypatch.setattr(rebuild, "smaller", lambda call, _: smaller(call, True))


def empty_stream(monkeypatch):
    """Put zeros where a residual stream should have the constant of a dead filter."""
    at = Restore.at
    monkeypatch.setattr(Restore, "at", lambda index, fixed, *rest: at(index, torch.zeros_like(fixed), *rest))


@pytest.mark.parametrize("fault", [drop_bias, even_borders, empty_stream])
def test_a_wrong_compaction_is_refused(fault, monkeypatch):
    model = half_dead()
    check(model, X)
    fault(monkeypatch)
    with pytest.raises(CodeqError, match="differs by"):
        compact(model, X)


def test_the_proof_measures_what_differs():
    a, b = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        for model, second in ((a, 1.0), (b, 3.0)):
            model[1].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, second]]))
            model[1].bias.zero_()
    x = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    proof = prove(a, b, [(x[:2], torch.tensor([1, 0])), (x[2:], torch.tensor([1]))])
    assert (proof.max_error, proof.relative_error, proof.flipped, proof.inputs) == (4.0, 2.0, 1, 3)
    assert (proof.masked_accuracy, proof.compacted_accuracy) == (pytest.approx(2 / 3), 1.0)
    assert (proof.masked_macs, proof.compacted_macs) == (4, 4)
    without = prove(a, b, [x])
    assert (without.flipped, without.masked_accuracy, without.compacted_accuracy) == (1, None, None)
    with pytest.raises(CodeqError, match="no batches"):
        prove(a, b, [])


def test_a_model_proves_nothing_against_itself():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    for other in (net, nn.Sequential(nn.Flatten(), net[1])):
        with pytest.raises(CodeqError, match="share weights"):
            prove(net, other, [torch.ones(1, 2)])


def test_original_numbers_are_kept():
    model = shaken(CifarResNet(2))
    with torch.no_grad():
        model.layer1[0].conv1.weight[[2, 7]] = 0
        model.layer1[0].conv2.weight[5] = 0
    report = compact(model, X)
    assert report.removed["layer1.0.conv1"][1].tolist() == [2, 7]
    assert report.removed["layer1.0.conv2"][0].tolist() == [2, 7]
    assert report.removed["layer1.0.conv2"][1].tolist() == [5]
    assert len(report.removed["layer1.1.conv1"][0]) == 0
    inputs, outputs = report.kept["layer1.0.conv2"]
    small = report.model.get_submodule("layer1.0.conv2").weight
    assert torch.equal(small, model.layer1[0].conv2.weight[outputs][:, inputs])
    for name, (inputs, outputs) in report.kept.items():
        both = np.concatenate([inputs, report.removed[name][0]]), np.concatenate([outputs, report.removed[name][1]])
        layer = model.get_submodule(name)
        assert [len(np.unique(side)) for side in both] == [layer.weight.shape[1], layer.weight.shape[0]]


@pytest.mark.parametrize("dead", few(["layer1.1", "layer3", "", "layer2.0.conv2", "conv1"], 3))
def test_whole_parts_dead(dead):
    model = shaken(CifarResNet(2))
    for module in model.get_submodule(dead).modules():
        if isinstance(module, LAYERS):
            nn.init.zeros_(module.weight)
    report = check(model, X)
    if dead in ("conv1", "", "layer3"):
        assert (report.proof.compacted_macs == 0) == (dead == "" or dead == "conv1")


def test_a_null_classifier_input_of_a_constant_stays_in_the_logits():
    model = shaken(CifarResNet(2))
    nn.init.zeros_(model.conv1.weight)
    report = compact(model, X)
    assert report.model(X).unique(dim=0).shape == (1, 10)
    assert torch.allclose(report.model(X), model(X), rtol=1e-12)


def test_a_state_dict_loads_into_another_compaction(tmp_path):
    model = half_dead()
    first, second = compact(model, X).model, compact(model, X).model
    for tensor in second.state_dict().values():
        if tensor.is_floating_point():
            tensor.zero_()
    torch.save(first.state_dict(), tmp_path / "small.pt")
    second.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))
    assert torch.equal(first(X), second(X))


def test_a_compacted_model_can_be_copied_and_pickled():
    small = compact(half_dead(), X).model
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for other in (copy.deepcopy(small), torch.load(file, weights_only=False)):
        assert torch.equal(other(X), small(X))


def test_other_batch_sizes_pass_and_other_image_sizes_do_not():
    model = half_dead()
    small = compact(model, X).model
    many = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(small(many), model(many), rtol=1e-10)
    with pytest.raises(CodeqError, match=r"takes inputs of \(3, 8, 8\), not \(3, 10, 10\)"):
        small(torch.rand(1, 3, 10, 10, dtype=torch.float64))


def test_the_result_is_plain_of_the_same_precision_and_the_model_keeps_its_quantizers():
    torch.manual_seed(0)
    model = resnet20()
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.2})
    report = compact(model, X.float())
    assert {p.dtype for p in report.model.parameters()} == {torch.float32}
    assert not any("parametrizations" in name for name, _ in report.model.named_modules())
    assert len(list(named_quantizers(model))) == 20
    assert model.training
    assert report.proof.relative_error <= 1e-10
    model.eval()
    with torch.no_grad():
        assert torch.allclose(report.model(X.float()), model(X.float()), rtol=1e-3, atol=1e-4)


def test_borders_live_needs_no_bias_maps_and_counts_more():
    model = half_dead()
    maps, live = check(model, X), check(model, X, borders="live")
    assert any(isinstance(m, BiasMap) for m in maps.model.modules())
    assert not any(isinstance(m, BiasMap) for m in live.model.modules())
    assert maps.proof.compacted_macs < live.proof.compacted_macs < live.proof.masked_macs


def test_a_layer_used_twice_is_kept_for_each_use():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.conv(F.relu(self.conv(x))).mean((2, 3)))

    model = Twice().double()
    with torch.no_grad():
        model.conv.weight[1] = 0
    report = check(model, X)
    assert report.proof.compacted_macs == 64 * 9 * (3 * 2 + 2 * 2) + 2 * 2
    assert [report.kept[name][0].tolist() for name in ("conv", "conv@2")] == [[0, 1, 2], [0, 2]]


def test_several_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            y = self.a(x)
            return {"map": y, "logits": (self.b(y.mean((2, 3))), torch.ones(3))}

    model = Two().double()
    with torch.no_grad():
        model.a.weight[1] = 0
        expected, result = model(X), compact(model, X).model(X)
    assert torch.allclose(result["map"], expected["map"])
    assert torch.allclose(result["logits"][0], expected["logits"][0])
    assert torch.equal(result["logits"][1], torch.ones(3).double())


def test_a_constant_output_follows_the_batch():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)).double()
    nn.init.zeros_(net[1].weight)
    small = compact(net, X).model
    assert any(isinstance(m, Constant) for m in small.modules())
    assert torch.equal(small(X.repeat(2, 1, 1, 1)), net[1].bias.expand(4, 2))


def test_windows_folded_into_the_batch_follow_its_size():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.fc, self.last = nn.Conv2d(3, 4, 1), nn.Linear(8, 3), nn.Linear(3, 2)

        def forward(self, x):
            n = x.shape[0]
            x = self.fc(self.before(x).permute(0, 2, 1, 3).reshape(n * 8, 4, 8)).reshape(n, 8 * 4, 3)
            return self.last(x.mean(1)) + n

    model = Windows().double()
    with torch.no_grad():
        model.before.weight[1] = 0
    report = check(model, X)
    assert report.unknown == ["reshape", "fc (Linear)", "reshape"]
    assert report.kept["before"][1].tolist() == [0, 2, 3]


def test_mistakes():
    with pytest.raises(CodeqError, match="example_input of shape"):
        compact(resnet20(), torch.zeros(3))
    with pytest.raises(CodeqError, match="cannot be traced"):
        compact(resnet20(), torch.zeros(1, 1, 8, 8))
    with pytest.raises(CodeqError, match="borders='fold': must be 'map' or 'live' or 'absorb'"):
        compact(resnet20(), X, borders="fold")
    with pytest.raises(CodeqError, match="keep_quantizers='no': must be True or False"):
        compact(resnet20(), X, keep_quantizers="no")


logging.getLogger("fvcore").setLevel(logging.ERROR)


def test_weights_that_the_counts_leave_out_are_in_the_report():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.mix = nn.Linear(12, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return self.fc(x.flatten(1)) @ self.mix

    report = compact(Mixed(), torch.randn(2, 3, 2, 2))
    assert len(report.notes) == 1
    assert report.notes[0].startswith("mix is used outside of a layer")
    assert compact(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.randn(2, 3, 2, 2)).notes == ()


@each("keep", [False, True])
def test_costs_of_the_result_are_compared_with_the_network_before_any_compaction(keep):
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 2)), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        net[0].weight[:4], net[0].bias[:4] = 0, 0
    small = compact(net, x, keep_quantizers=keep).model
    for model in (small, compact(small, x).model):
        table = ledger(model, (3, 6, 6))
        for row in ("MACs", "structured", "all"), ("MACs", "exact", "all"), ("bytes", "float32", "all"):
            assert table.loc[row, "relative"] == 0.5
        assert Evaluator(model, (3, 6, 6)).evaluate(model).structured_mac_ratio == 2.0


@each("keep", [False, True])
def test_the_result_trains_but_for_what_was_frozen(keep):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(2), nn.LayerNorm(16),
        nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip
    for frozen in (net[1].bias, net[3].weight):
        frozen.requires_grad = False
    x = torch.randn(2, 3, 6, 6)
    for model in (small := compact(net, x, keep_quantizers=keep).model, compact(small, x).model):
        trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        assert trains.keys() == dict(net.named_parameters()).keys()
        assert {name for name, trained in trains.items() if not trained} == {"1.bias", "3.weight"}
