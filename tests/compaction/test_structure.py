"""The structure of a compacted network as data, and the network built from it."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.compaction.assembly import build_compacted
from codeq.compaction.structure import describe
from codeq.graph.activations import attach_activation_quantizers
from codeq.graph.baking import convert
from codeq.metrics import exact_stats, ledger
from codeq.quantizer.attach import attach_weight_quantizers, named_quantizers
from codeq.quantizer.layers import latent_weight
from codeq.training.initial_weights import load_initial_weights


class Network(nn.Module):
    """A gate, a residual sum, groups of several sizes, tokens with LayerNorm and attention by functions, slices."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.gate = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.grouped(x), inplace=True) + x
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[..., None, None]
        tokens = self.norm(x.flatten(2).mT)
        return self.fc(self.attention(tokens, tokens, tokens, need_weights=False)[0][:, 0])


def network(activations=False, quantized=True, **options) -> nn.Module:
    torch.manual_seed(0)
    net = Network()
    with torch.no_grad():
        net.stem[0].weight[[1, 2, 6]] = 0
        net.stem[1].bias[[1, 2, 6]] = 0
        net.grouped.weight[[1, 2, 5]] = 0
        net.grouped.bias.zero_()
    net.norm.bias.requires_grad = False
    if quantized:
        attach_weight_quantizers(net, ["gate"], "deadzone", {"max_bits": 6, **options})
    if activations:
        attach_activation_quantizers(net, torch.randn(8, 3, 6, 6), exclude_layers=["attention.*"])
    return net.eval()


@pytest.mark.parametrize(
    "options",
    [{"activations": True, "scale": "learned"}, pytest.param({"granularity": "channel"}, marks=pytest.mark.slow)],
)
def test_the_network_is_the_same_also_after_more_of_it_has_died(options):
    whole, x = network(**options), torch.randn(4, 3, 6, 6)
    model, sizes = whole, []
    for rows in ([], [0]):
        with torch.no_grad():
            latent_weight(model.get_submodule("grouped.parts.0" if sizes else "grouped"))[rows] = 0
        expected = model(x)
        kept = compact(model, x, keep_quantizers=True).model
        data = json.loads(json.dumps(describe(kept)))
        bare = network(**{name: value for name, value in options.items() if name != "activations"})
        built = build_compacted(data, kept.state_dict(), bare)
        built.load_state_dict(kept.state_dict())
        assert torch.equal(built(x), kept(x))
        torch.testing.assert_close(built(x), expected, rtol=0, atol=1e-6)
        assert exact_stats(built, (3, 6, 6)).total_bops == exact_stats(model, (3, 6, 6)).total_bops
        named = [{name: p.requires_grad for name, p in net.named_parameters()} for net in (built, kept)]
        assert named[0] == named[1]
        assert describe(built) == describe(kept)
        sizes.append(sum(p.numel() for p in built.parameters()))
        for net in (built, kept):
            net.zero_grad()
            F.cross_entropy(net.train()(x), torch.tensor([0, 1, 2, 3])).backward()
            net.eval()
        grads = {name: parameter.grad for name, parameter in kept.named_parameters()}
        for name, parameter in built.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[name], rtol=0, atol=0)
        model = built
    assert sizes[1] == sizes[0] - 2 * 9  # a filter over two channels
    parts = [q for name, q in named_quantizers(model) if name.startswith("grouped")]
    assert len({id(q.logit_bit) for q in parts}) == 1  # both groups still learn one bit-width
    assert describe(whole) is None


class Renaming(nn.Module):
    """Its compacted network has parameters of other names: of parts of a convolution, of functions, of second calls."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.called, self.again = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.weight, self.shift = nn.Parameter(torch.randn(8, 8, 1, 1)), nn.Parameter(torch.randn(8))
        self.register_buffer("fixed", torch.randn(8, 8, 1, 1))

    def forward(self, x):
        x = self.norm(self.grouped(self.stem(x).relu())).relu()
        x = self.again(self.again(F.conv2d(x, self.called.weight, self.called.bias)))
        x = F.conv2d(F.conv2d(x, self.weight, self.shift), self.fixed)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("quantized", [False, True])
def test_what_is_frozen_stays_frozen_under_other_names(quantized):
    def make():
        torch.manual_seed(0)
        net = Renaming()
        with torch.no_grad():
            net.stem.weight[1], net.stem.bias[1], net.grouped.weight[2], net.grouped.bias[2] = 0, 0, 0, 0
            net.norm.bias[2] = 0
        frozen = net.grouped.weight, net.norm.weight, net.head.bias, net.weight, net.shift, net.called.bias
        for parameter in (*frozen, net.again.bias):
            parameter.requires_grad = False
        if quantized:
            attach_weight_quantizers(net, [], "deadzone", {})
        return net.eval()

    x = torch.randn(2, 3, 8, 8)
    kept = compact(make(), x, keep_quantizers=True).model
    end = ".parametrizations.weight.original" if quantized else ".weight"
    expected = {f"grouped.parts.0{end}", f"grouped.parts.1{end}", "norm.weight", "head.bias", "weight.weight"}
    expected |= {"weight.bias", "called.bias", "again.bias", "fixed.weight"}
    built = build_compacted(json.loads(json.dumps(describe(kept))), kept.state_dict(), make())
    for net in (kept, built, compact(kept, x, keep_quantizers=True).model):
        assert {name for name, parameter in net.named_parameters() if not parameter.requires_grad} == expected


@pytest.mark.parametrize("options", [{}, {"scale": "learned", "granularity": "channel"}])
def test_a_float_one_is_quantized_as_the_whole_network_is(options):
    kept = compact(network(quantized=False), torch.randn(4, 3, 6, 6), keep_quantizers=True).model
    built = build_compacted(describe(kept), kept.state_dict(), network(**options), quantize=True)
    names = ["stem.0", "grouped.parts.0", "grouped.parts.1", "attention_out_proj_call1", "fc"]
    assert [name for name, _ in named_quantizers(built)] == names
    load_initial_weights(built, kept.state_dict(), "file", strict=True)
    again = build_compacted(json.loads(json.dumps(describe(built))), built.state_dict(), network(**options))
    again.load_state_dict(built.state_dict())
    x = torch.randn(4, 3, 6, 6)
    assert torch.equal(again(x), built(x))
    torch.testing.assert_close(built(x), kept(x), rtol=0, atol=0.2)  # 6 bits
    assert not torch.equal(built(x), kept(x))


def changed(data, *path, value):
    data = copy.deepcopy(data)
    owner = data
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    return data


@pytest.fixture(scope="module")
def compacted():
    model = compact(network(), torch.randn(2, 3, 6, 6), keep_quantizers=True).model
    return describe(model), model.state_dict()


def test_data_that_name_other_code_or_fit_another_network_are_refused(compacted, tmp_path):
    data, state = compacted
    call = next(i for i, node in enumerate(data["nodes"]) if node[0] == "call_function")
    attribute = ["call_function", "builtins.getattr", {"tuple": [{"node": 1}, "__class__"]}, {"dict": {}}]
    method = next(i for i, node in enumerate(data["nodes"]) if node[0] == "call_method")
    touched = f"__import__('pathlib').Path({str(tmp_path / 'touched')!r}).touch()"
    for hostile, message in (
        (changed(data, "nodes", call, 1, value="os.system"), "calls 'os.system'"),
        (changed(data, "nodes", call, 1, value="builtins.eval"), "calls 'builtins.eval'"),
        (changed(data, "nodes", call, value=attribute), "calls 'builtins.getattr'"),
        (changed(data, "nodes", method, 1, value="numpy"), "calls 'numpy'"),
        (changed(data, "nodes", method, 1, value=f"size() + {touched}"), "calls .size"),
        (changed(data, "nodes", call, 3, value={"dict": {f"a={touched}, b": 1}}), "not an argument"),
        (changed(data, "nodes", call, 0, value="call_anything"), "calls"),
        (changed(data, "modules", f'stem".{touched}', value=data["modules"]["fc"]), "must be a dotted name"),
        (changed(data, "modules", "fc", "outputs", value=10**9), "from 1 to 4"),
        (changed(data, "modules", "fc", "inputs", value=0), "0 channels"),
        (changed(data, "modules", "fc", "of", value="nowhere"), "is damaged, or not made from this Network"),
        (changed(data, "modules", "fc", "kind", value="Evil"), "kind 'Evil'"),
        (changed(data, "modules", value=[]), "is damaged"),
        ({}, "is damaged"),
    ):
        with pytest.raises(CodeqError, match=message) as error:
            build_compacted(hostile, state, network())
        assert len(str(error.value)) < 600
    assert not list(tmp_path.iterdir())
    with pytest.raises(CodeqError, match="is damaged, or not made from this Sequential"):
        build_compacted(data, state, nn.Sequential(nn.Conv2d(3, 4, 3)))
    bare = Network().eval()
    with pytest.raises(CodeqError, match="is quantized in the compacted network only"):
        build_compacted(data, state, bare)


@pytest.mark.parametrize("adaptive_first", [True, False])
def test_functions_that_share_a_qualified_name_are_told_apart(adaptive_first):
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

        def forward(self, x):
            x = self.a(x)
            if adaptive_first:
                x = x * torch.sigmoid(F.adaptive_max_pool2d(x, 1))
                return self.h(F.max_pool2d(x, 2).mean((2, 3)))
            return self.h(F.adaptive_max_pool2d(F.max_pool2d(x, 2), 1).flatten(1))

    whole, x = Pools().eval(), torch.randn(4, 3, 8, 8)
    compacted = compact(whole, x).model
    built = build_compacted(describe(compacted), compacted.state_dict(), Pools())
    built.load_state_dict(compacted.state_dict())
    torch.testing.assert_close(built(x), whole(x))


class Modulated(nn.Conv2d):
    """A convolution that is kept whole, with buffers that are complex and that no state dict has."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("phases", torch.randn(self.out_channels, dtype=torch.complex128))
        self.register_buffer("gains", torch.rand(self.out_channels, dtype=torch.float64), persistent=False)

    def _conv_forward(self, input, weight, bias):
        factors = (self.phases.real * self.gains).to(weight.dtype)
        return super()._conv_forward(input, weight * factors[:, None, None, None], bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_all_tensors_have_the_precision_of_the_whole_network(dtype):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), Modulated(6, 4, 1), nn.BatchNorm2d(4)]
    whole = convert(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 2)), dtype).eval()
    with torch.no_grad():
        whole[0].weight[1] = 0
    x = torch.randn(2, 3, 6, 6)
    compacted = compact(whole, x.to(dtype)).model
    built = build_compacted(json.loads(json.dumps(describe(compacted))), compacted.state_dict(), whole)
    built.load_state_dict(compacted.state_dict())
    tensors = [{name: t.dtype for name, t in (*n.named_parameters(), *n.named_buffers())} for n in (built, compacted)]
    assert tensors[0] == tensors[1]
    assert torch.equal(built(x), compacted(x))


class Normalized(nn.Conv2d):
    """A convolution with the BatchNorm of its input inside."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.norm = nn.BatchNorm2d(self.in_channels)

    def forward(self, x):
        return super().forward(self.norm(x).relu())


def test_modules_of_any_name_also_inside_of_layers_keep_their_quantizers_and_load():
    def make():
        names = ("conv-1", "größe", "stage 1", "class", "left/right")
        layers = [nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), Normalized(6, 5, 3), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)]
        net = nn.Sequential()
        for name, layer in zip(names, layers, strict=True):
            net.add_module(name, layer)
        attach_weight_quantizers(net, [], "deadzone", {})
        return net.eval()

    torch.manual_seed(0)
    whole, x = make(), torch.randn(4, 3, 6, 6)
    with torch.no_grad():
        latent_weight(whole.get_submodule("stage 1"))[[0, 3]] = 0
    compacted = compact(whole, x, keep_quantizers=True).model
    built = build_compacted(json.loads(json.dumps(describe(compacted))), compacted.state_dict(), make())
    built.load_state_dict(compacted.state_dict())
    torch.testing.assert_close(built(x), whole(x), rtol=0, atol=1e-6)
    assert len(list(named_quantizers(built))) == 4
    inner = ledger(built, (3, 6, 6)).loc[("MACs", "exact", "inner"), "value"]
    assert inner == 6 * 3 * 9 * 16 + 3 * 4 * 16
