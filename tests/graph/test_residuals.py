"""Residual adds whose operands share a quantizer: where operands are found, NumPy oracle, costs, compaction, copies."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.compaction.assembly import build_compacted
from codeq.compaction.structure import describe
from codeq.graph.activations import attach_activation_quantizers
from codeq.graph.call_recording import record_calls
from codeq.graph.residuals import residual_adds, shared_operands
from codeq.metrics import ledger
from codeq.models.cifar_resnet import CifarResNet
from codeq.quantizer.activations import (
    ActivationQuantizer,
    named_activation_quantizers,
    quantize_activations,
    toggle_activation_quantization,
)


class Net(nn.Module):
    """Layers `a` to `d`, BatchNorm `bn` and a container `box`, called by the function `computed`."""

    def __init__(self, computed):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(2, 2, 1) for _ in range(4))
        self.bn, self.computed = nn.BatchNorm2d(2), computed
        self.box = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Identity())
        self.block, self.in_place, self.inside = Block(), InPlace(), Inside()

    def forward(self, x):
        return self.computed(self, x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(2, 2, 1)
        self.skip = nn.Identity()

    def forward(self, x):
        return F.relu(self.inner(x) + self.skip(x))


class InPlace(nn.Module):
    """Overwrites its argument, whose new values a caller may read."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return (self.inner(x) + x) * x.relu_()


class Inside(nn.Module):
    """Reads its result itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        x = F.relu(x)
        self.side = self.inner(x)
        return x


def in_place(net, x):
    y = net.bn(net.a(x))
    y += net.box(x)
    return y


def common_operand(net, x):
    y = net.a(x)
    return (net.b(x) + y) * (net.c(x) + y)


UNUSED = ["box.*", "block.*", "in_place.*", "inside.*", "c", "d"]
FOUND = [
    (lambda net, x: net.bn(net.a(x)) + net.b(x), [["bn.output", "b.output"]]),
    (lambda net, x: torch.add(net.a(x), other=net.b(x)), [["a.output", "b.output"]]),
    (lambda net, x: net.a(x).add(net.b(x), alpha=-1), [["a.output", "b.output"]]),
    (in_place, [["bn.output", "box.1.output"]]),
    (lambda net, x: net.a(x) + net.b(x) + net.c(x), [["a.output", "b.output", "c.output"]]),
    (lambda net, x: F.pad(net.a(x)[:, :1], (0, 0, 0, 0, 0, 1)) + net.b(x), [["a.output", "b.output"]]),
    (lambda net, x: net.block(F.relu(net.a(x))), [["block.inner.output", "block"]]),
    (lambda net, x: net.block(x) + net.a(x), [["block.output", "a.output"]]),
    (common_operand, [["b.output", "a.output", "c.output"]]),
    (lambda net, x: net.a(x) * net.b(x) + 1 + net.bn.weight[:, None, None], []),
    (lambda net, x: net.a(x) + net.b(x).mean((2, 3), keepdim=True), []),  # broadcast
]


def test_operands_are_found_where_modules_return_or_take_them():
    for computed, expected in FOUND:
        calls = record_calls(Net(computed).eval(), (2, 4, 4))
        found = [
            sorted(name + (".output" if kind == "output_quantizer" else "") for name, kind in group.sites.values())
            for group in shared_operands(calls)
            if group.sites
        ]
        assert found == [sorted(names) for names in expected]


FLOAT = [
    (lambda net, x: F.relu(net.a(x)) + net.b(x), ["relu computes an operand that no single module"]),
    (lambda net, x: net.a(x) + net.a(net.b(x)), ["call_module a computes"]),
    (lambda net, x: torch.add(net.a(x), net.b(x), alpha=0.5), [r"alpha=0.5 scales an operand"]),
    (lambda net, x: net.a(x) + x, ["placeholder x computes"]),
    (
        lambda net, x: (net.b(x) + (y := net.a(x))) * (F.relu(net.c(x)) + y),
        ["it has an operand in common with add 2", "relu computes"],
    ),
    (lambda net, x: net.in_place(net.a(x) * 2), ["call_method mul computes"]),
    (lambda net, x: net.inside(x) + net.inside.side, ["call_function relu in inside computes"]),
]


def test_adds_with_an_operand_out_of_reach_stay_float_and_are_listed(caplog):
    for computed, reasons in FLOAT:
        net = Net(computed).eval()
        adds = residual_adds(net, (2, 4, 4))
        assert len(adds) == len(reasons)
        for add, reason in zip(adds, reasons, strict=True):
            assert reason in add.reason
    x = torch.rand(3, 2, 4, 4)
    net = Net(FLOAT[0][0]).eval()
    with caplog.at_level(logging.WARNING):
        attach_activation_quantizers(net, x, exclude_layers=UNUSED, residual="shared")
    assert "The operands of add stay float: call_function relu computes an operand" in caplog.text
    assert [name for name, _ in named_activation_quantizers(net)] == ["a", "b"]  # neither side of the add
    with pytest.raises(CodeqError, match="residual='both': must be 'float' or 'shared'"):
        attach_activation_quantizers(Net(FLOAT[0][0]), x, residual="both")


class Tokens(nn.Module):
    """A residual network of linear layers: stem, and one block with BatchNorm at the end of its branch."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.fc = nn.Linear(5, 6), Branch(), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.block(F.relu(self.stem(x))))


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.bn = nn.Linear(6, 4), nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return F.relu(self.bn(self.second(F.relu(self.first(x)))) + x)


def tokens() -> tuple[Tokens, torch.Tensor]:
    torch.manual_seed(0)
    net = Tokens()
    for tensor in (net.block.bn.running_mean, net.block.bn.weight.data, net.block.bn.bias.data):
        tensor.uniform_(-1, 1)
    return net.eval(), torch.randn(50, 5)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_one_block_is_that_of_numpy(method):
    net, x = tokens()
    weights = {name: value.numpy().astype(np.float64) for name, value in net.state_dict().items()}
    attach_activation_quantizers(net, x, 4, method, residual="shared")

    def linear(name, values):
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def forward(quantize):
        seen = {}

        def q(key, values):
            seen[key] = values
            return quantize(key, values)

        stream = q("stream", np.maximum(linear("stem", q("x", x.numpy().astype(np.float64))), 0))
        hidden = q("hidden", np.maximum(linear("block.first", stream), 0))  # reads the operand: not quantized again
        bn = {key: weights[f"block.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")}
        normal = (linear("block.second", hidden) - bn["running_mean"]) / np.sqrt(bn["running_var"] + 1e-5)
        branch = q("branch", normal * bn["weight"] + bn["bias"])
        return linear("fc", q("sum", np.maximum(branch + stream, 0))), seen

    def range_of(*tensors):  # of 300 values at most, 0.1 % are none: the percentiles are the extremes
        low, high = min(0, *(t.min() for t in tensors)), max(t.max() for t in tensors)
        step = (high - low) / 15
        return step, round(low / step)

    _, values = forward(lambda _, tensor: tensor)
    ranges = {key: range_of(values[key]) for key in ("x", "hidden", "sum")}
    ranges["stream"] = ranges["branch"] = range_of(values["stream"], values["branch"])
    assert values["branch"].min() < 0 <= values["stream"].min()

    def quantize(key, tensor):
        step, low = ranges[key]
        return np.clip(np.round(tensor / step), low, low + 15) * step

    expected, seen = forward(quantize)
    with torch.no_grad():
        found = net(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    shared = net.block.input_quantizer
    assert shared is net.block.bn.output_quantizer is net.block.first.input_quantizer
    step, low = ranges["branch"]
    assert (float(shared.step), float(shared.low)) == (pytest.approx(step, rel=1e-5), low)
    total = (quantize("stream", seen["stream"]) + quantize("branch", seen["branch"])) / step
    np.testing.assert_allclose(total, total.round(), atol=1e-9)  # the sum is one of integers


def test_a_shared_step_gets_the_gradients_of_both_sides_once():
    net, x = tokens()
    attach_activation_quantizers(net, x, 3, "lsq", residual="shared")
    quantizer = net.block.input_quantizer
    step = quantizer.step.detach().clone().requires_grad_()
    net(x).square().sum().backward()
    weights = copy.deepcopy(net)
    toggle_activation_quantization(weights, enabled=False)

    def quantize(values, q, s=None):
        return quantize_activations(values, q.step.detach() if s is None else s, q.low, q.low + 7)

    block = weights.block
    stream = quantize(F.relu(weights.stem(quantize(x, net.stem.input_quantizer))), quantizer, step)
    hidden = quantize(F.relu(block.first(stream)), net.block.second.input_quantizer)
    total = F.relu(quantize(block.bn(block.second(hidden)), quantizer, step) + stream)
    weights.zero_grad()
    weights.fc(quantize(total, net.fc.input_quantizer)).square().sum().backward()
    torch.testing.assert_close(quantizer.step.grad, step.grad)
    torch.testing.assert_close(net.stem.weight.grad, weights.stem.weight.grad)


def resnet() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net, x = CifarResNet(1, shortcut="A"), torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        net.layer1[0].conv1.weight[3:9] = 0
        net.layer2[0].conv2.weight[:10] = 0
        net.layer2[0].bn2.bias[:10] = 0.3  # constants in the sum
    return net.eval(), x


def test_costs_copies_toggles_and_compaction():
    net, x = resnet()
    plain = copy.deepcopy(net)
    attach_activation_quantizers(plain, x, 6)
    float_logits = net(x)
    attach_activation_quantizers(net, x, 6, residual="shared")
    names = [name for name, _ in named_activation_quantizers(net)]
    assert {"layer1.0", "layer1.0.bn2.output", "layer1.0.output", "layer2.0.bn2.output"} <= set(names)
    of = dict(named_activation_quantizers(net))
    assert of["layer1.0.output"] is of["layer2.0.bn2.output"] is of["layer2.0.conv1"]  # behind the padded shortcut
    assert of["layer1.0.output"] is not of["layer1.0"]
    # Adds cost nothing, and layers have the bits of their inputs.
    costs = [ledger(model, (3, 8, 8))["value"] for model in (plain, net)]
    assert costs[0].equals(costs[1])

    replica = copy.deepcopy(net)
    with torch.no_grad():
        replica.layer2[0].conv1.input_quantizer.step.mul_(3)
    assert replica.layer1[0].output_quantizer.step == replica.layer2[0].bn2.output_quantizer.step
    assert not torch.equal(replica(x), net(x))
    replica.load_state_dict(net.state_dict())
    assert torch.equal(replica(x), net(x))
    toggle_activation_quantization(replica, enabled=False)
    assert torch.equal(replica(x), float_logits)

    small = compact(net, x, keep_quantizers=True).model
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)
    kept = [module for module in small.modules() if isinstance(module, ActivationQuantizer)]
    assert len(kept) == len(set(of.values())) == 8  # of 8 inputs of layers and 3 adds; adds quantize 3 of the inputs
    again = compact(small, x, keep_quantizers=True).model
    torch.testing.assert_close(again(x), small(x), rtol=1e-4, atol=1e-5)
    built = build_compacted(json.loads(json.dumps(describe(small))), small.state_dict(), resnet()[0])
    built.load_state_dict(small.state_dict())
    assert torch.equal(built(x), small(x))


def test_modules_that_are_called_around_their_hooks_are_refused():
    net = Net(lambda net, x: net.bn.forward(net.a(x)) + net.b(x)).eval()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CodeqError, match=r"quantizer of b.output, bn.output runs 1 times instead of 2"):
        attach_activation_quantizers(net, torch.rand(2, 2, 4, 4), exclude_layers=UNUSED, residual="shared")
    assert before.keys() == net.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_layer_that_stays_float_counts_the_bits_of_an_operand_that_it_reads():
    net, x = resnet()
    attach_activation_quantizers(net, x, 6, exclude_layers=["layer1.0.conv1"], residual="shared")
    assert torch.equal(net.layer1[0].input_quantizer.step, net.layer1[0].bn2.output_quantizer.step)
    table = ledger(net, (3, 8, 8))
    reference = copy.deepcopy(net)
    toggle_activation_quantization(reference, enabled=False)
    whole = ledger(reference, (3, 8, 8))
    for row in (("BOPs", "structured", "all"), ("BOPs", "exact", "all")):
        assert table.loc[row, "value"] == pytest.approx(whole.loc[row, "value"] * 6 / 32)
