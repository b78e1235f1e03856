"""Quantizers of activations: LSQ against NumPy, shared inputs, accounting by hand, compaction."""

import copy

import numpy as np
import pytest
import torch
from cases import each
from networks import Doubling
from torch import nn
from torch.nn import functional as F

from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.compaction.assembly import build_compacted
from codeq.compaction.structure import describe
from codeq.graph.activations import attach_activation_quantizers, restore_activation_quantizers
from codeq.metrics import QuantizationComparison, ledger
from codeq.metrics.bops import exact_stats
from codeq.quantizer.activations import (
    ActivationQuantizer,
    named_activation_quantizers,
    quantize_activations,
    toggle_activation_quantization,
)
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.quantizer.calibration import calibrate
from codeq.runs.networks import load_weights


@pytest.mark.parametrize(("low", "bits"), [(-8, 4), (0, 3), (-3, 3)])
def test_lsq_is_that_of_its_equations(low, bits):
    """Esser et al., arXiv 1902.08153: eq. (1)-(3), (5) and the gradient scale of its section 2.2."""
    random = np.random.default_rng(0)
    x, upstream, s = random.normal(size=(5, 3, 4)), random.normal(size=(5, 3, 4)), 0.3
    x[0, 0, :2] = s * low, s * (low + 2**bits - 1)  # on the limits, where eq. (3) and (5) are not inside
    high = low + 2**bits - 1
    expected, slope, passes = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for at in np.ndindex(*x.shape):
        v = x[at] / s
        expected[at] = s * min(max(np.round(v), low), high)
        if v <= low:
            slope[at] = low
        elif v >= high:
            slope[at] = high
        else:
            slope[at], passes[at] = np.round(v) - v, 1.0
    leaf, step = torch.tensor(x, requires_grad=True), torch.tensor(s, dtype=torch.double, requires_grad=True)
    limits = torch.tensor(low, dtype=torch.double), torch.tensor(high, dtype=torch.double)
    quantized = quantize_activations(leaf, step, *limits)
    quantized.backward(torch.tensor(upstream))
    np.testing.assert_allclose(quantized.detach(), expected, rtol=1e-12)
    np.testing.assert_array_equal(leaf.grad, upstream * passes)
    assert step.grad.item() == pytest.approx((upstream * slope).sum() / np.sqrt(12 * high), rel=1e-9)
    with torch.no_grad():  # the path without gradients computes the same
        again = quantize_activations(leaf, step, *limits)
    np.testing.assert_array_equal(again, quantized.detach())
    narrow = quantize_activations(leaf.detach().bfloat16(), step, *limits)
    assert narrow.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_network_in_half_precision_keeps_its_levels(dtype, bits, symmetric):
    """The largest integer of 16 bits, 65535, and the step of a range of zeros are not numbers of float16."""
    x = torch.linspace(0, 4, 50)
    quantizer = ActivationQuantizer(bits=bits, method="minmax", symmetric=symmetric)
    quantizer.set_range(x.min(), x.max(), x.mean())
    expected = quantizer(x)
    half = quantizer.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=4 / (2**bits - 1))
    quantizer.set_range(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.0))
    assert quantizer(torch.zeros(3, dtype=dtype)).tolist() == [0, 0, 0]


@each("bits", [2, 8])
@each("lowest", [-11.5, -0.5])
def test_lsq_starts_for_negative_activations_as_for_their_mirror_image(bits, lowest):
    """Log-probabilities have no positive integer; those of a range around 0 have less of them than negative ones."""
    x = torch.linspace(lowest, 0, 40, dtype=torch.double).view(4, 10)
    found = []
    for sign in (1, -1):
        values = sign * x
        quantizer = ActivationQuantizer(bits=bits).double()
        quantizer.set_range(values.min(), values.max(), values.abs().mean())
        assert quantizer.step.item() == pytest.approx(2 * x.abs().mean().item() / np.sqrt(2**bits - 1), rel=1e-9)
        quantized = quantizer(values)
        (sign * quantized * torch.linspace(1, 2, 10)).sum().backward()
        found.append((sign * quantized.detach(), quantizer.step.grad))
    torch.testing.assert_close(*found, rtol=1e-9, atol=0)
    quantizer.set_range(torch.tensor(lowest), torch.tensor(-lowest / 8), torch.tensor(1.0))
    assert quantizer.step.item() == pytest.approx(2 / np.sqrt(-round((2**bits - 1) * -8 / 9)), rel=1e-9)


def test_lsq_starts_in_half_precision_with_as_many_levels_as_its_bits():
    quantizer = ActivationQuantizer(bits=16).half()
    quantizer.set_range(torch.tensor(0.0), torch.tensor(4.0), torch.tensor(2.0))
    assert quantizer.step.item() == pytest.approx(4 / np.sqrt(65535), rel=1e-3)


def test_ranges_by_method():
    torch.manual_seed(0)
    batches = [torch.randn(4, 1, 10, 50), 2 * torch.randn(4, 1, 10, 50)]
    values = [batch.numpy().ravel() for batch in batches]
    low, high = (float(np.mean([np.sort(v)[k] for v in values])) for k in (2, 1997))  # without 0.1 % at either end
    widest = max(np.abs(v).max() for v in values)
    mean = float(np.mean([np.abs(v).mean() for v in values]))
    top, bottom = (max(v.max() for v in values), min(v.min() for v in values))
    expected = {
        ("minmax", False): ((top - bottom) / 255, round(255 * bottom / (top - bottom))),
        ("minmax", True): (widest / 127, -128),
        ("percentile", False): ((high - low) / 255, round(255 * low / (high - low))),
        ("lsq", True): (2 * mean / np.sqrt(127), -128),
    }
    for (method, symmetric), (step, lowest) in expected.items():
        net = nn.Sequential(nn.Flatten(), nn.Linear(500, 2)).train()
        attach_activation_quantizers(net, batches[0], 8, method, symmetric=symmetric)
        calibrate(net, [(batch, None) for batch in batches])
        quantizer = net[1].input_quantizer
        assert quantizer.step.item() == pytest.approx(step, rel=1e-5)
        assert quantizer.low.item() == lowest
        assert net.training
    assert isinstance(quantizer.step, nn.Parameter)
    with pytest.raises(CodeqError, match=r"1.input_quantizer: the activations are not finite"):
        calibrate(net, [torch.full((1, 1, 10, 50), torch.nan)])
    with pytest.raises(CodeqError, match=r"1.input_quantizer saw no values"):
        calibrate(net, [])


def test_ranges_are_those_of_evaluation_mode():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)).train()
    images = 1 + 3 * torch.randn(50, 3)
    attach_activation_quantizers(net, images, 8, "minmax")
    calibrate(net, [images])
    width = (images.max() - images.min()).item() / np.sqrt(1 + 1e-5)  # the mean is 0 and the variance 1
    assert net[2].input_quantizer.step.item() == pytest.approx(width / 255, rel=1e-4)
    assert not net[0].running_mean.any()


def test_quantizers_that_are_off_are_calibrated_and_stay_off():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    images = torch.randn(9, 3)
    attach_activation_quantizers(net, images, 8, "minmax")
    net[0].input_quantizer.enabled = False
    calibrate(net, [images])
    assert [layer.input_quantizer.enabled for layer in net] == [False, True]
    assert net[0].input_quantizer.step.item() == pytest.approx((images.max() - images.min()).item() / 255)


def test_a_learned_step_below_zero_counts_by_its_magnitude():
    quantizer, x = ActivationQuantizer(bits=3), torch.linspace(0, 4, 9)
    expected = quantizer(x)
    quantizer.step.data.neg_()
    assert torch.equal(quantizer(x), expected)
    assert expected.unique().numel() == 5


def test_ranges_are_those_of_the_images_where_a_model_overwrites_its_input():
    torch.manual_seed(0)
    net, images = Doubling(48), [torch.randn(6, 3, 4, 4)]
    widest = 2 * images[0].abs().max().item()
    attach_activation_quantizers(net, images[0], 8, "minmax", symmetric=True)  # calibrates on the same images
    for _ in range(2):
        calibrate(net, images)
        assert net.first.input_quantizer.step.item() == pytest.approx(widest / 127, rel=1e-5)


class Block(nn.Module):
    """A residual block whose convolution and shortcut read the same tensor."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 8, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.conv2(F.relu(self.bn(self.conv1(x)))) + self.shortcut(x))
        return self.fc(x.mean((2, 3)))


def block(**options) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net, x = Block(), torch.rand(4, 2, 5, 5)
    with torch.no_grad():
        net.conv1.weight[2] = 0  # a dead filter that BatchNorm makes a constant
        net.bn.bias[2] = 0.4
        net.conv2.weight[0] = 0
    attach_weight_quantizers(net, ["stem"], "deadzone", {"fixed_bit_val": 4, "learnable_bit": False})
    names = attach_activation_quantizers(net.eval(), x, 6, exclude_layers=["fc"], **options)
    assert names == ["conv1", "conv2", "shortcut"]
    return net, x


def test_layers_of_one_input_share_a_quantizer_and_costs_are_counted_by_hand():
    net, x = block()
    assert net.conv1.input_quantizer is net.shortcut.input_quantizer
    assert net.conv1.input_quantizer is not net.conv2.input_quantizer
    levels = (net.conv1.input_quantizer(F.relu(net.stem(x))) / net.conv1.input_quantizer.step).unique()
    assert 2 < len(levels) <= 64
    comparison = QuantizationComparison((2, 5, 5))
    comparison.set_baseline(net)
    dense = {"stem": 2 * 4 * 9 * 25, "conv1": 4 * 6 * 9 * 25, "conv2": 6 * 8 * 9 * 25, "shortcut": 4 * 8 * 25, "fc": 24}
    assert comparison.baseline.total_bops == sum(dense.values()) * 32 * 32
    live = dense | {"conv1": 4 * 5 * 9 * 25, "conv2": 5 * 7 * 9 * 25}
    bits = {"stem": 32 * 32, "conv1": 4 * 6, "conv2": 4 * 6, "shortcut": 4 * 6, "fc": 4 * 32}
    stats = comparison.calculate_stats(net)
    assert {layer.name: layer.bops for layer in stats.layers} == {name: live[name] * bits[name] for name in live}
    assert [layer.activation_bits for layer in stats.layers] == [32, 6, 6, 6, 32]
    unstructured = comparison.calculate_unstructured_stats(net).layers
    assert [layer.bops for layer in unstructured] == [layer.macs * bits[layer.name] for layer in unstructured]
    expected = sum(live[name] * bits[name] for name in live)
    assert exact_stats(net, (2, 5, 5)).total_bops == expected
    table = ledger(net, (2, 5, 5))
    assert table.loc[("BOPs", "structured", "all"), "value"] == expected
    assert table.loc[("BOPs", "exact", "all"), "value"] == expected
    toggle_activation_quantization(net, enabled=False)
    assert [layer.activation_bits for layer in comparison.calculate_stats(net).layers] == [32] * 5
    plain = Block().eval()
    plain.load_state_dict(net.state_dict(), strict=False)


@each("between", [nn.Identity(), nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.3), nn.Identity())])
def test_layers_that_read_one_tensor_through_modules_without_an_effect_share_a_quantizer(between):
    class Passing(Block):
        def __init__(self):
            super().__init__()
            self.drop = between

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.fc((F.relu(self.conv2(F.relu(self.conv1(self.drop(x))))) + self.shortcut(x)).mean((2, 3)))

    net = Passing().eval()
    attach_activation_quantizers(net, torch.rand(4, 2, 5, 5))
    assert net.conv1.input_quantizer is net.shortcut.input_quantizer
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    load_weights(net, state, "step-1.pt")
    state["conv1.input_quantizer.step"] = 2 * state["conv1.input_quantizer.step"]  # of a run before they were shared
    with pytest.raises(
        CodeqError, match=r"conv1\.input_quantizer\.step and shortcut\.input_quantizer\.step are one tensor"
    ):
        load_weights(net, state, "step-1.pt")


@pytest.mark.parametrize("options", [{}, {"method": "minmax", "symmetric": True}])
def test_a_compacted_network_takes_its_activation_quantizers_along(options):
    net, x = block(**options)
    for keep in (False, True):
        small = compact(net, x, keep_quantizers=keep).model
        torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)
        kept = [module for module in small.modules() if isinstance(module, ActivationQuantizer)]
        assert len(kept) == 2  # the shared one is still one
        assert exact_stats(small, (2, 5, 5)).total_bops == exact_stats(net, (2, 5, 5)).total_bops or not keep
    assert torch.equal(compact(small, x, keep_quantizers=True).model(x), small(x))
    for model in (net, small):
        F.cross_entropy(model(x), torch.tensor([0, 1, 2, 0])).backward()
    if not options:
        torch.testing.assert_close(kept[0].step.grad, net.conv1.input_quantizer.step.grad, rtol=1e-3, atol=1e-6)


@each("method", ["lsq", "minmax"])
def test_a_compacted_network_in_bfloat16_has_the_same_steps(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).bfloat16()
    x = torch.rand(8, 3, 4, 4).bfloat16()
    attach_activation_quantizers(net, x, method=method)
    attach_weight_quantizers(net, [], "deadzone", {})
    report = compact(net, x, keep_quantizers=True)
    again = build_compacted(describe(report.model), report.model.state_dict(), net)
    again.load_state_dict(report.model.state_dict())
    steps = [q.step for _, q in named_activation_quantizers(net)]
    for small in (report.model, again):
        assert {p.dtype for p in small.parameters() if p.ndim} == {torch.bfloat16}
        assert [q.step for _, q in named_activation_quantizers(small)] == steps
        assert {q.step.dtype for _, q in named_activation_quantizers(small)} == {torch.float32}
        torch.testing.assert_close(small(x), net.eval()(x), rtol=2e-2, atol=1e-2)


def test_an_example_that_is_no_tensor_is_refused():
    with pytest.raises(CodeqError, match=r"example=\(3, 32, 32\): must be a tensor"):
        attach_activation_quantizers(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 32, 32))


def test_a_network_that_fails_on_the_example_is_named_and_left_unchanged():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(CodeqError, match=r"^Sequential fails on inputs of int64 \[3, 1, 2, 2\]: RuntimeError: mat1"):
        attach_activation_quantizers(net, torch.ones(3, 1, 2, 2, dtype=torch.long))
    assert not list(named_activation_quantizers(net))


def test_deep_copies_state_dicts_and_refusals():
    net, x = block()
    replica = copy.deepcopy(net)
    with torch.no_grad():
        replica.conv1.input_quantizer.step.mul_(4)
    assert not torch.equal(replica(x), net(x))
    replica.load_state_dict(net.state_dict())
    assert torch.equal(replica(x), net(x))
    assert [name for name, _ in named_activation_quantizers(net)] == ["conv1", "conv2", "shortcut"]
    with pytest.raises(CodeqError, match="'conv1' already has a quantizer"):
        attach_activation_quantizers(net, x)
    with pytest.raises(CodeqError, match="bits=1: must be an integer from 2 to 16"):
        attach_activation_quantizers(Block(), x, bits=1)
    with pytest.raises(CodeqError, match="method='lsqq': must be 'lsq' or 'minmax' or 'percentile'"):
        attach_activation_quantizers(Block(), x, method="lsqq")

    class Functional(Block):
        def forward(self, x):
            return F.linear(F.relu(self.stem(x)).mean((2, 3)), self.fc.weight[:, :4])

    class Unreached(Block):
        def forward(self, x):
            return F.conv2d(self.stem(x), self.conv1.weight)

    for cls, name in ((Functional, "conv1"), (Unreached, "conv1")):
        model = cls()
        with pytest.raises(CodeqError, match=f"layer '{name}' is .*its input cannot be quantized; add '{name}'"):
            attach_activation_quantizers(model, x)
        assert not list(named_activation_quantizers(model))


def test_layers_called_by_keyword_are_quantized_alike():
    class Named(nn.Module):
        def __init__(self, by_keyword):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc, self.by_keyword = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), by_keyword

        def forward(self, x):
            if not self.by_keyword:
                return self.fc(self.conv(x).mean((2, 3)))
            return self.fc(input=self.conv(input=x).mean((2, 3)))

    by_position, by_keyword = Named(False).eval(), Named(True).eval()
    x = torch.rand(4, 3, 6, 6)
    for net in (by_position, by_keyword):
        assert attach_activation_quantizers(net, x, bits=3) == ["conv", "fc"]
    assert torch.equal(by_keyword(x), by_position(x))
    assert exact_stats(by_keyword, (3, 6, 6)).total_bops == exact_stats(by_position, (3, 6, 6)).total_bops
    torch.testing.assert_close(compact(by_keyword, x).model(x), by_position(x))


def test_quantizers_attached_in_inference_mode_train():
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(5, 4)
    with torch.inference_mode():
        attach_weight_quantizers(net, [], "deadzone", {"scale": "learned"})
        attach_activation_quantizers(net, x)
        restored = nn.Sequential(nn.Linear(4, 2)).requires_grad_(False)
        restore_activation_quantizers(restored, (4,), 8, "lsq")
    assert not any(tensor.is_inference() for tensor in (*net.parameters(), *net.buffers()))
    net(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
