import copy
import itertools
import math
import random
from contextlib import nullcontext

import numpy as np
import pytest
import reference
import torch
from cases import each, few
from emulated_device import DEVICE, Emulation
from torch import nn
from torch.nn.utils import parametrize

from codeq.quantizer import DeadZoneQuantizer, quantile
from codeq.quantizer.attach import (
    attach_weight_quantizers,
    named_quantizers,
    quantizer_parameters_detached,
    toggle_quantization,
)
from codeq.quantizer.fused import _constant, fused_quantization
from codeq.quantizer.fused_members import as_member
from codeq.quantizer.layers import latent_weight, named_layers

OPTIONS = [
    {},
    {"granularity": "channel"},
    {"scale": "learned"},
    {"scale": "learned", "granularity": "channel"},
    {"absmax_over": "nonzero"},
    {"learnable_bit": False, "fixed_bit_val": 3},
    {"learnable_deadzone": False},
    {"grid": "affine"},
    {"scale": "held", "granularity": "channel"},
    {"grid": "affine", "scale": "learned", "granularity": "channel"},
]
LOGITS = [(3.0, 3.0), (0.6, 0.4), (-0.1, -0.7), (0.0, 0.0)]


def network(memory_format=torch.contiguous_format, dtype=torch.float32) -> nn.Module:
    """Convolutions of every kind, one of them dead but for a filter, and layers of few weights."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ConvTranspose2d(8, 4, 3),
        nn.Flatten(2),
        nn.Conv1d(4, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
        nn.Linear(5, 1),
    )
    with torch.no_grad():
        model[1].weight[1:] = 0
        model[0].weight[0, 0, 0, 0] = 0
    return model.to(dtype=dtype, memory_format=memory_format)


def gradients(model, context, x) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with context:
        model(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_as_separate(model, x):
    twin = copy.deepcopy(model)
    with fused_quantization(model):
        fused = {name: layer.weight.detach().clone() for name, layer in named_layers(model)}
    for name, layer in named_layers(twin):
        torch.testing.assert_close(fused[name], layer.weight.detach(), rtol=1e-6, atol=0)
        assert fused[name].stride() == latent_weight(layer).stride()
    found, expected = gradients(model, fused_quantization(model), x), gradients(twin, parametrize.cached(), x)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        size = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=2e-5 * size)


def weights_and_gradients(model, context):
    """Weights in use, and gradients of all parameters where those of the weights are given; on the CPU."""
    model.zero_grad()
    with context:
        weights = {name: layer.weight for name, layer in named_layers(model)}
        upstream = [torch.linspace(-1, 1, weight.numel()).to(weight).view_as(weight) for weight in weights.values()]
        torch.autograd.backward(list(weights.values()), upstream)
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return [{name: tensor.detach().cpu() for name, tensor in found.items()} for found in (weights, grads)]


def assert_same_for_given_gradients(model):
    """Each layer counts for itself, so that number formats, devices and shapes need not fit those of the next one."""
    separate, fused = (weights_and_gradients(model, context) for context in (nullcontext(), fused_quantization(model)))
    for found, expected in zip(fused, separate, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # The parameters of quantizers are float32 beside float64 weights.
            rounding = 8 * max(torch.finfo(value.dtype).eps, torch.finfo(torch.float32).eps)
            torch.testing.assert_close(found[name], value, rtol=rounding, atol=1e-6)
    return fused


@pytest.mark.parametrize("memory_format", few([torch.channels_last, torch.contiguous_format]))
@each(("options", "logits"), [*itertools.product(OPTIONS, LOGITS)])
def test_values_and_gradients_are_those_of_the_separate_quantizers(options, logits, memory_format):
    model = network(memory_format)
    dz, bit = logits
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": dz, "init_bit_logit": bit, **options})
    if options.get("scale") == "learned":
        with torch.no_grad():
            for _, quantizer in named_quantizers(model):
                quantizer.learned_absmax.mul_(-0.7)  # R = |ρ|, and weights beyond it
    assert_same_as_separate(model, torch.randn(2, 3, 8, 8))


def test_dense_weights_of_both_memory_formats_are_fused_and_slices_are_not():
    last, first = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Conv2d(3, 4, 3)
    sliced = nn.Linear(3, 4)
    sliced.weight = nn.Parameter(torch.randn(4, 6)[:, ::2])
    for layer, fused in ((last, True), (first, True), (sliced, False)):
        attach_weight_quantizers(nn.Sequential(layer), [], "deadzone", {})
        assert (as_member(layer) is not None) == fused


def test_uniform_levels_of_the_smallest_weights_are_those_of_the_separate_quantizer():
    layer = nn.Linear(6, 5)
    layer.weight.data *= 2.0**-100
    attach_weight_quantizers(nn.Sequential(layer), [], "uniform", {})
    separate = layer.weight
    with fused_quantization(layer):
        assert torch.equal(layer.weight, separate)


def test_a_learned_scale_of_zero_has_the_gradient_of_the_separate_quantizer():
    model = nn.Sequential(nn.Linear(6, 5))
    attach_weight_quantizers(model, [], "deadzone", {"scale": "learned"})
    dict(named_quantizers(model))["0"].learned_absmax.data.zero_()
    assert_same_as_separate(model, torch.randn(2, 6))


def test_layers_with_different_options_are_fused_together():
    model = network(torch.channels_last)
    for (_, layer), options in zip(named_layers(model), OPTIONS, strict=False):
        logits = {"init_deadzone_logit": 0.6, "init_bit_logit": 0.4}
        attach_weight_quantizers(nn.Sequential(layer), [], "deadzone", {**logits, **options})
    assert_same_as_separate(model, torch.randn(2, 3, 8, 8))


@each("bitwidth", range(2, 9))
def test_uniform_quantizers_are_fused_too(bitwidth):
    model = network(torch.channels_last)
    attach_weight_quantizers(model, [], "uniform", {"bitwidth": bitwidth})
    assert_same_as_separate(model, torch.randn(2, 3, 8, 8))


@each("dtype", [torch.float64, torch.bfloat16, torch.float16])
@each("converted", ["before", "after"])
@each("options", [{}, {"granularity": "channel", "scale": "learned"}, {"grid": "affine"}])
def test_other_number_formats(dtype, converted, options):
    model = network(dtype=dtype)
    if converted == "after":
        model.float()
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.6, **options})
    if converted == "after":
        model.to(dtype)
    assert_same_for_given_gradients(model)


@each("options", OPTIONS)
def test_layers_of_several_number_formats_are_quantized_in_their_own(options):
    model = network()
    for (_, layer), dtype in zip(named_layers(model), itertools.cycle([torch.float32, torch.bfloat16, torch.float64])):
        layer.to(dtype)
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.6, **options})
    assert_same_for_given_gradients(model)


@each("options", [{}, {"scale": "learned", "granularity": "channel"}, {"grid": "affine", "learnable_bit": False}])
def test_layers_on_several_devices_are_quantized_on_their_own(options):
    model = network()
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.6, "init_bit_logit": 0.4, **options})
    on_cpu, _ = weights_and_gradients(model, fused_quantization(model))
    with Emulation():
        for name in ("1", "6"):
            model.get_submodule(name).to(DEVICE)
        assert_same_for_given_gradients(model)
        moved, _ = weights_and_gradients(model, fused_quantization(model))
    for name, weight in on_cpu.items():
        torch.testing.assert_close(moved[name], weight)


@each(("name", "options"), [*(("deadzone", options) for options in OPTIONS), ("uniform", {"bitwidth": 4})])
def test_a_layer_without_a_weight_that_lives_stays_zero_beside_live_ones(name, options):
    model = network()
    with torch.no_grad():
        model[2].weight.zero_()
        model[7].weight.zero_()
    attach_weight_quantizers(model, [], name, options)
    weights, grads = assert_same_for_given_gradients(model)
    assert [layer for layer, weight in weights.items() if not weight.any()] == ["2", "7"]
    for layer in ("2", "7"):
        assert grads[f"{layer}.parametrizations.weight.original"].any()  # so that it can grow again
        thetas = [grads.get(f"{layer}.parametrizations.weight.0.quantizer.logit_{theta}") for theta in ("dz", "bit")]
        assert not any(theta.any() for theta in thetas if theta is not None)


def random_network(seed):
    """Layers of random shapes, number formats and shares of exact zeros, each with a random quantizer."""
    rng = random.Random(seed)
    model = nn.Sequential()
    for _ in range(rng.randint(2, 7)):
        sizes, width = (rng.randint(1, 6), rng.randint(1, 8)), rng.randint(1, 3)
        convolution = rng.choice([nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d])
        layer = rng.choice([nn.Linear(*sizes), convolution(*sizes, width)])
        layer.to(rng.choice([torch.float32, torch.float64]))
        with torch.no_grad():
            layer.weight.mul_(torch.rand_like(layer.weight) >= rng.choice([0.0, 0.5, 0.995, 1.0]))
        options = {
            "init_deadzone_logit": rng.uniform(-1.5, 1.5), "init_bit_logit": rng.uniform(-1.5, 1.5),
            "learnable_bit": rng.random() < 0.7, "fixed_bit_val": rng.randint(2, 8), "max_bits": rng.randint(2, 8),
            "granularity": rng.choice(["layer", "channel"]), "scale": rng.choice(["absmax", "learned", "held"]),
            "grid": rng.choice(["paper", "affine"]), "absmax_over": rng.choice(["all", "nonzero"]),
        }  # fmt: skip
        quantizer = ("uniform", {"bitwidth": rng.randint(2, 8)}) if rng.random() < 0.2 else ("deadzone", options)
        model.append(layer)
        attach_weight_quantizers(nn.Sequential(layer), [], *quantizer)
    return model


@each("seed", range(20))
def test_random_networks(seed):
    torch.manual_seed(seed)
    assert_same_for_given_gradients(random_network(seed))


@each("theta", [0.6640625, 1.546875])  # whose bits are another number if they are computed in bfloat16
def test_half_precision_parameters_give_the_same_bits(theta):
    model = nn.Sequential(nn.Linear(40, 30))
    attach_weight_quantizers(model, [], "deadzone", {"init_bit_logit": theta})
    model.bfloat16()
    with torch.no_grad():
        separate = model[0].weight.clone()
        with fused_quantization(model):
            assert torch.equal(model[0].weight, separate)


@each("scale", ["held", "absmax"])
def test_stored_scales_in_half_precision_give_the_same_steps(scale):
    model = nn.Sequential(nn.Linear(40, 30))
    attach_weight_quantizers(model, [], "uniform", {"bitwidth": 16, "scale": scale})
    model.half()
    separate = model[0].weight.detach().clone()
    with fused_quantization(model):
        torch.testing.assert_close(model[0].weight.detach(), separate)


@each("options", OPTIONS[:4])
@each("bits", range(2, 9))
def test_the_oracle_agrees(bits, options):
    # Numbers of float32, in which logits begin.
    thetas = (0.75, float(np.float32(math.atanh((bits - 2 + 0.2) / 6) if bits < 8 else 3.0)))
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 7)).double()
    logits = {"init_deadzone_logit": thetas[0], "init_bit_logit": thetas[1]}
    attach_weight_quantizers(model, [], "deadzone", logits | options)
    model.double()
    learned = options.get("scale") == "learned"
    if learned:
        with torch.no_grad():
            for _, quantizer in named_quantizers(model):
                quantizer.learned_absmax.mul_(-0.7)  # R = |ρ|, and weights beyond it
    upstream = [torch.randn_like(latent_weight(layer)) for _, layer in named_layers(model)]
    with fused_quantization(model):
        weights = [layer.weight for _, layer in named_layers(model)]
        torch.autograd.backward(weights, upstream)
    for (_, layer), weight, up in zip(named_layers(model), weights, upstream, strict=True):
        w, quantizer = latent_weight(layer), layer.parametrizations.weight[0].quantizer
        segments = (len(w) if "granularity" in options else 1, -1)
        parts, ups = w.detach().numpy().reshape(segments), up.numpy().reshape(segments)
        scales = [reference.absmax(part) for part in parts]
        if learned:
            scales = quantizer.learned_absmax.detach().abs().flatten().tolist()
        cases = [*zip(parts, scales, ups, strict=True)]
        # The oracle's arithmetic is float64 throughout, and so is the network's: only sums differ in their order.
        values = [reference.forward(part, *thetas, r=r) for part, r, _ in cases]
        np.testing.assert_allclose(weight.detach().numpy().reshape(segments), values, rtol=1e-6, atol=1e-12)
        by_theta = np.sum([reference.gradients(part, *thetas, upstream=up, r=r)[1:] for part, r, up in cases], axis=0)
        found = [float(quantizer.logit_dz.grad), float(quantizer.logit_bit.grad)]
        assert found == pytest.approx(by_theta.tolist(), rel=1e-5)
        inside = [np.abs(part) <= r for part, r, _ in cases] if learned else np.ones_like(parts)
        np.testing.assert_array_equal(w.grad.numpy().reshape(segments), ups * inside)
        if learned:
            by_scale = [-reference.learned_scale_gradient(part, *thetas, r, up) for part, r, up in cases]  # ρ < 0
            assert quantizer.learned_absmax.grad.flatten().tolist() == pytest.approx(by_scale, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("select", [quantile.joint_absmax, quantile._aligned])
def test_the_quantiles_are_numpys(select):
    sizes = [1, 2, 3, 99, 100, 101, 102, 5000]
    magnitudes = [torch.randn(n).abs() for n in sizes] + [torch.zeros(50), torch.ones(7)]
    expected = [np.quantile(m.numpy().astype(np.float64), 0.99) for m in magnitudes]
    np.testing.assert_allclose(select(magnitudes).numpy(), expected, rtol=1e-6)


class Foreign(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, w):
        self.calls += 1
        return w.round()


def test_a_foreign_quantizer_is_called_once_and_the_others_are_fused():
    model = network()
    attach_weight_quantizers(model, ["0", "1", "2", "4"], Foreign, {})
    for name in ("0", "1"):
        layer = model.get_submodule(name)
        other = nn.Sequential(layer)
        attach_weight_quantizers(other, [], "deadzone", {"init_deadzone_logit": 0.5})
    assert_same_as_separate(model, torch.randn(2, 3, 8, 8))
    quantizer = dict(named_quantizers(model))["7"]
    before = quantizer.calls
    with fused_quantization(model):
        first, second = model[7].weight, model[7].weight
    assert quantizer.calls == before + 1
    assert first is second


def test_hooks_of_a_quantizer_see_their_calls():
    model = nn.Sequential(nn.Linear(4, 3))
    attach_weight_quantizers(model, [], "deadzone", {})
    seen = []
    quantizer = dict(named_quantizers(model))["0"]
    hook = quantizer.register_forward_hook(lambda *_: seen.append("forward"))
    with fused_quantization(model):
        model(torch.ones(1, 4))
    hook.remove()
    quantizer.register_full_backward_hook(lambda *_: seen.append("backward"))
    with fused_quantization(model):
        model(torch.ones(1, 4)).sum().backward()
    assert seen == ["forward", "backward"]


class Halved(DeadZoneQuantizer):
    def forward(self, w):
        return super().forward(w) / 2


def test_a_subclass_is_not_taken_for_its_base():
    model = nn.Sequential(nn.Linear(4, 3))
    attach_weight_quantizers(model, [], Halved, {})
    expected = model[0].weight.detach().clone()
    with fused_quantization(model):
        assert torch.equal(model[0].weight, expected)


def test_a_replaced_forward_is_used():
    model = nn.Sequential(nn.Linear(4, 3))
    attach_weight_quantizers(model, [], "deadzone", {})
    quantizer = dict(named_quantizers(model))["0"]
    original = quantizer.forward
    quantizer.forward = lambda w: original(w) / 2
    expected = model[0].weight.detach().clone()
    with fused_quantization(model):
        assert torch.equal(model[0].weight, expected)


def test_switched_off_quantizers_stay_off():
    model = network()
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.1})
    toggle_quantization(model, enabled=False)
    with fused_quantization(model):
        assert torch.equal(model[0].weight, latent_weight(model[0]))


def test_detached_quantizer_parameters_get_no_gradient():
    model = network()
    attach_weight_quantizers(model, [], "deadzone", {})
    with quantizer_parameters_detached(model), fused_quantization(model):
        model(torch.randn(2, 3, 8, 8)).sum().backward()
    quantizer = dict(named_quantizers(model))["0"]
    assert quantizer.logit_dz.grad is None
    assert latent_weight(model[0]).grad is not None


@each("context", [fused_quantization, lambda _: parametrize.cached()])
def test_switches_act_inside_the_context_too(context):
    model = network()
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.1})
    quantizer = dict(named_quantizers(model))["0"]
    with context(model):
        quantized = model[0].weight
        with quantizer_parameters_detached(model):
            model[0].weight.sum().backward()
        assert quantizer.logit_dz.grad is None
        model[0].weight.sum().backward()
        assert quantizer.logit_dz.grad is not None
        toggle_quantization(model, enabled=False)
        assert torch.equal(model[0].weight, latent_weight(model[0]))
        toggle_quantization(model, enabled=True)
        assert torch.equal(model[0].weight, quantized)


def test_the_backward_pass_keeps_nothing_as_large_as_the_weights_but_the_weights():
    model = network()
    attach_weight_quantizers(model, [], "deadzone", {})
    latent = {latent_weight(layer).data_ptr() for _, layer in named_layers(model)}
    kept = []

    def keep(tensor):
        kept.append((tensor.data_ptr(), tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), fused_quantization(model):
        weights = [layer.weight for _, layer in named_layers(model)]
        torch.cat([weight.flatten() for weight in weights]).sum().backward()
    held = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in weights}
    assert sum(held.values()) == sum(weight.nbytes for weight in weights)
    assert latent <= {address for address, _ in kept}
    segments = len(latent)
    assert max(size for address, size in kept if address not in latent) <= segments


def test_weights_that_change_before_the_backward_pass_are_refused():
    model = network()
    attach_weight_quantizers(model, [], "deadzone", {})
    with fused_quantization(model):
        loss = model(torch.randn(2, 3, 8, 8)).sum()
    with torch.no_grad():
        latent_weight(model[0]).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_remains_after_the_context_even_after_an_error():
    model = network()
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.5})
    with pytest.raises(RuntimeError, match="inside"), fused_quantization(model):
        raise RuntimeError("inside")
    with torch.no_grad():
        before = model[0].weight.clone()
        latent_weight(model[0]).mul_(2)
        torch.testing.assert_close(model[0].weight, 2 * before)  # the scale follows the weights


@each("context", [nullcontext, torch.no_grad])
def test_copies_made_inside_the_context_quantize_their_own_weights(context):
    model = network()
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.5})
    with context(), fused_quantization(model):
        twin = copy.deepcopy(model)
    with torch.no_grad():
        latent_weight(twin[0]).zero_()
    assert not twin[0].weight.any()


def test_the_context_of_a_teacher_keeps_no_weights_of_the_student():
    teacher, student = network(), network()
    for model in (teacher, student):
        attach_weight_quantizers(model, [], "deadzone", {})
    with torch.no_grad(), fused_quantization(teacher):
        kept = teacher[0].weight
        with fused_quantization(student):
            assert student[0].weight.any()
        latent_weight(student[0]).zero_()
        with fused_quantization(student):
            assert not student[0].weight.any()
        assert teacher[0].weight is kept


def test_a_model_without_quantizers_is_left_alone():
    model = network()
    with fused_quantization(model):
        assert model[0].weight is latent_weight(model[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", OPTIONS)
def test_a_gpu_quantizes_in_the_same_way_and_nothing_waits_for_it(options):
    model = network(torch.channels_last)
    attach_weight_quantizers(model, [], "deadzone", {"init_deadzone_logit": 0.6, **options})
    model, x = model.cuda(), torch.randn(2, 3, 8, 8, device="cuda")
    assert_same_as_separate(model, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(model, fused_quantization(model), x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each("options", [{}, {"scale": "learned"}])
def test_a_backward_pass_inside_autocast_sums_in_float32(monkeypatch, options):
    model = network()
    attach_weight_quantizers(model, [], "deadzone", options)
    seen: list[torch.dtype] = []

    def mv(slope, grad, product=torch.mv):
        # Autocast casts the operands on CUDA and MPS, not on the CPU.
        kind = torch.bfloat16 if torch.is_autocast_enabled(slope.device.type) else slope.dtype
        seen.append(kind)
        return product(slope.to(kind), grad.to(kind)).to(slope.dtype)

    def step(mode):
        model.zero_grad()
        with fused_quantization(model):
            loss = sum(layer.weight.square().sum() for _, layer in named_layers(model))
            with mode:  # autocast has its effect on the backward pass of linear layers as well: none is called
                loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    expected = step(nullcontext())
    monkeypatch.setattr(torch, "mv", mv)
    found = step(torch.autocast("cpu", torch.bfloat16))
    assert set(seen) == {torch.float32}
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@each(
    ("name", "options"),
    [("uniform", {"bitwidth": 5}), ("deadzone", {"max_bits": 5}), ("deadzone", {"scale": "learned"})],
)
def test_a_training_follows_an_evaluation_in_inference_mode(name, options):
    _constant.cache_clear()
    quantile._alignment.cache_clear()
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(2, 4)
    attach_weight_quantizers(model, [], name, options)
    for _, quantizer in named_quantizers(model):
        quantizer.reset_scale()
    with torch.inference_mode():
        index, _, fractions = quantile._alignment((12, 6), torch.float32, torch.device("cpu"))  # for GPUs
        with fused_quantization(model):
            expected = model(x)
    assert not index.is_inference()
    assert not fractions.is_inference()
    with fused_quantization(model):
        output = model(x)
        output.sum().backward()
    assert torch.equal(output, expected)
    assert all(parameter.grad is not None for parameter in model.parameters())
