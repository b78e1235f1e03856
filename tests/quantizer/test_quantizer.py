"""The dead-zone quantizer against an independent oracle (`reference.py`), and its properties on arbitrary weights."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import reference
import torch
from cases import each
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.quantizer import (
    QUANTIZERS,
    DeadZoneLDZCompander,
    DeadZoneQuantizer,
    UniformSymmetric,
    absmax,
    dead_zone_quantize,
    dead_zone_width,
    learned_bits,
    pruning_aware_step,
    uniform_quantize,
)
from codeq.quantizer.attach import attach_weight_quantizers
from codeq.quantizer.layers import latent_weight

BITS = [2, 3, 4, 5, 6, 7, 8]
DTYPES = [torch.float32, torch.float64]
THETAS = [-3.0, -0.4, 0.0, 0.05, 0.7, 3.0, 8.0]  # θ_dz: 0 prunes everything up to R, 8 almost nothing

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
# Errors allowed in ŵ, in the unit of the largest level (R, for all but the tiniest weights). About ten operations lie
# between w and ŵ, each wrong by half an ulp at most; in float64 the oracle's own errors are as large.
TOLERANCE = {torch.float32: 4 * EPS[torch.float32], torch.float64: 1e-12}
# The same for the gradients of the logits, in the unit that `_gradient_unit` defines.
GRADIENT_TOLERANCE = {torch.float32: 8 * EPS[torch.float32], torch.float64: 1e-12}


def _normal(*shape: int, scale: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape) * scale


def _with_exact_zeros() -> np.ndarray:
    w = _normal(8, 4, 3, 3, seed=1)
    w[np.random.default_rng(2).random(w.shape) < 0.4] = 0.0
    return w


WEIGHTS = {
    "normal": _normal(16, 3, 3, 3),
    "heavy_tails": np.random.default_rng(3).standard_t(2, size=(20, 30)),
    "exact_zeros": _with_exact_zeros(),
    "tiny": _normal(10, 20, scale=1e-6, seed=4),
    "huge": _normal(10, 20, scale=1e15, seed=5),
    "constant": np.full((7, 5), -0.25),
    "single": np.array([0.37]),
    "all_zero": np.zeros((4, 6)),
}
# At θ_dz = 0 a constant layer lies exactly on the edge of its dead-zone: a test of its own, below.
CASES = [(name, theta) for name in WEIGHTS for theta in THETAS if not (theta == 0.0 and name in {"constant", "single"})]


def _tensor(name: str, dtype: torch.dtype) -> Tensor:
    return torch.tensor(WEIGHTS[name], dtype=dtype)


def _quantizer(dtype: torch.dtype, **kwargs: float) -> DeadZoneQuantizer:
    return DeadZoneQuantizer(**kwargs).to(dtype)


def _oracle_arguments(quantizer: DeadZoneQuantizer) -> dict[str, float]:
    # the oracle gets the logits as they are after rounding to float32
    return {"theta_dz": quantizer.logit_dz.item(), "theta_bit": quantizer.logit_bit.item()}


def _largest_level(w: np.ndarray, bits: int) -> float:
    return reference.absmax(w) + (2.0 ** (bits - 1) - 1.5) * 1e-8


def _check_forward(quantizer: DeadZoneQuantizer, w: Tensor, bits: int, **oracle: int) -> None:
    x, arguments = w.double().numpy(), _oracle_arguments(quantizer) | oracle
    decided = ~reference.undecided(x, eps=EPS[w.dtype], **arguments)
    assert decided.mean() > 0.9
    actual = quantizer(w).detach()
    assert actual.dtype == w.dtype
    assert actual.shape == w.shape
    error = np.abs(actual.double().numpy() - reference.forward(x, **arguments))[decided]
    assert error.max() <= TOLERANCE[w.dtype] * _largest_level(x, bits)


def _check_gradients(quantizer: DeadZoneQuantizer, w: Tensor, **oracle: int) -> None:
    x, arguments = w.double().numpy(), _oracle_arguments(quantizer) | oracle
    # Weights on a rounding boundary get no upstream gradient, instead of a loose tolerance for all.
    decided = ~reference.undecided(x, eps=EPS[w.dtype], **arguments)
    upstream = torch.tensor(_normal(*w.shape, scale=1.0, seed=9) * decided).to(w.dtype)
    leaf = w.clone().requires_grad_()
    quantizer(leaf).backward(upstream)
    up = upstream.double().numpy()
    _, grad_dz, grad_bit = reference.gradients(x, upstream=up, **arguments)
    assert torch.equal(leaf.grad, upstream)
    _check_logit("dz", quantizer.logit_dz, grad_dz, x, up, arguments)
    _check_logit("bit", quantizer.logit_bit, grad_bit, x, up, arguments)


def _check_logit(which: str, logit: Tensor, expected: float, x: np.ndarray, up: np.ndarray, arguments: dict) -> None:
    if not logit.requires_grad:
        assert logit.grad is None
        return
    actual = float(logit.grad)
    unit = _gradient_unit(which, x, up, **arguments)
    assert abs(actual - expected) <= GRADIENT_TOLERANCE[logit.dtype] * unit


def _gradient_unit(which: str, x: np.ndarray, up: np.ndarray, **arguments: float) -> float:
    """One ulp of a gradient sum: R for each weight inside the range, plus what clipped weights add.

    Two cancellations raise the relative error of the latter: 1 - tanh² for large θ, and R - d/2 for a small θ_dz.
    """
    surrogate = reference.Surrogate(x, **arguments)
    dz, bit, h = arguments["theta_dz"], arguments["theta_bit"], 1e-30
    step = (dz + 1j * h, bit + 0j) if which == "dz" else (dz + 0j, bit + 1j * h)
    terms = np.abs(surrogate(x + 0j, *step).imag / h)
    slope = 1 - math.tanh(dz if which == "dz" else bit) ** 2
    amplified = terms / (slope * (math.tanh(abs(dz)) or 1.0))
    return float(np.sum(np.abs(up) * (amplified + _largest_level(x, 8))))


# --------------------------------------------------------------------------------------------------- against the oracle


@each("dtype", DTYPES)
@each(("name", "theta"), CASES)
def test_fixed_bits_match_the_oracle_forward_and_backward(name: str, theta: float, dtype: torch.dtype) -> None:
    w = _tensor(name, dtype)
    for bits in BITS:
        quantizer = _quantizer(dtype, fixed_bit_val=bits, learnable_bit=False, init_deadzone_logit=theta)
        _check_forward(quantizer, w, bits, fixed_bits=bits)
        _check_gradients(quantizer, w, fixed_bits=bits)


@each("dtype", DTYPES)
@each(("name", "theta"), CASES)
def test_learned_bits_match_the_oracle_forward_and_backward(name: str, theta: float, dtype: torch.dtype) -> None:
    w = _tensor(name, dtype)
    for bits in BITS:
        theta_bit = math.atanh((bits - 2 + 0.2) / 6) if bits < 8 else -3.0
        quantizer = _quantizer(dtype, init_bit_logit=theta_bit, init_deadzone_logit=theta)
        assert quantizer.get_bitwidth() == bits
        _check_forward(quantizer, w, bits)
        _check_gradients(quantizer, w)


@each("max_bits", [2, 3, 6, 12, 16])
def test_another_max_bits_matches_the_oracle(max_bits: int) -> None:
    quantizer = _quantizer(torch.float64, max_bits=max_bits, init_bit_logit=0.9, init_deadzone_logit=1.3)
    w = _tensor("normal", torch.float64)
    _check_forward(quantizer, w, max_bits, max_bits=max_bits)
    _check_gradients(quantizer, w, max_bits=max_bits)


@each("dtype", DTYPES)
@each("bits", BITS)
@each("name", [name for name in WEIGHTS if name != "all_zero"])
def test_uniform_matches_the_oracle_with_gradient_one(name: str, bits: int, dtype: torch.dtype) -> None:
    w = _tensor(name, dtype).requires_grad_()
    x = w.detach().double().numpy()
    r = reference.absmax(x)
    actual = UniformSymmetric(bitwidth=bits)(w)
    error = np.abs(actual.detach().double().numpy() - reference.uniform(x, r, bits))
    u = np.abs(x) * reference.levels(bits) / r
    decided = np.abs(u % 1 - 0.5) > 16 * EPS[dtype] * np.maximum(u, 1)
    assert decided.mean() > 0.9
    assert (error <= TOLERANCE[dtype] * r)[decided].all()
    actual.sum().backward()
    assert torch.equal(w.grad, torch.ones_like(w))


def test_the_oracle_of_the_gradient_agrees_with_real_central_differences() -> None:
    w, dz, bit, h = WEIGHTS["heavy_tails"], 0.7, -0.8, 1e-6
    f = reference.Surrogate(w, dz, bit)
    _, grad_dz, grad_bit = reference.gradients(w, dz, bit, np.ones_like(w))
    np.testing.assert_allclose(f(w, dz, bit), reference.forward(w, dz, bit), rtol=0, atol=1e-12 * f.r)
    assert grad_dz == pytest.approx(np.sum(f(w, dz + h, bit) - f(w, dz - h, bit)) / (2 * h), rel=1e-7)
    assert grad_bit == pytest.approx(np.sum(f(w, dz, bit + h) - f(w, dz, bit - h)) / (2 * h), rel=1e-7)


def test_a_layer_worked_out_by_hand() -> None:
    # R = 1 (the 101 values end in 1, 1), b = 3 so Q = 3, θ_dz with d = 0.5: s = 0.75 / 2.5 = 0.3, levels 0.4, 0.7, 1.0
    w = torch.cat([torch.tensor([-1.0, -0.56, -0.54, -0.26, -0.24, 0.0, 0.24, 0.26, 0.84, 0.86, 1.0]), torch.ones(90)])
    quantizer = DeadZoneQuantizer(fixed_bit_val=3, learnable_bit=False, init_deadzone_logit=math.atanh(0.75))
    expected = [-1.0, -0.7, -0.4, -0.4, 0.0, 0.0, 0.0, 0.4, 0.7, 1.0, 1.0]
    assert quantizer(w)[:11].tolist() == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------------------- edges, by hand


@each("dtype", DTYPES)
@each("theta", THETAS)
def test_an_all_zero_layer_stays_exactly_zero_with_finite_gradients(theta: float, dtype: torch.dtype) -> None:
    quantizer = _quantizer(dtype, init_deadzone_logit=theta, init_bit_logit=0.6)
    w = torch.zeros(4, 6, dtype=dtype, requires_grad=True)
    quantized = quantizer(w)
    assert torch.equal(quantized, torch.zeros_like(w))
    quantized.sum().backward()
    assert torch.equal(w.grad, torch.ones_like(w))
    assert quantizer.logit_dz.grad == 0
    assert quantizer.logit_bit.grad == 0


@each("alone", ["step", "dead_zone"])
def test_step_and_dead_zone_have_gradients_without_each_other(alone) -> None:
    w, upstream = _tensor("normal", torch.float64), torch.tensor(_normal(16, 3, 3, 3, seed=9))
    gradients = []
    for names in ((alone,), ("step", "dead_zone")):
        grid = {"step": torch.tensor(0.03).double(), "dead_zone": torch.tensor(0.1).double()}
        for name in names:
            grid[name].requires_grad_()
        dead_zone_quantize(w, **grid, bits=4).backward(upstream)
        gradients.append(grid[alone].grad)
    torch.testing.assert_close(*gradients)


def test_uniform_levels_scale_with_the_weights_down_to_the_smallest() -> None:
    w = _tensor("normal", torch.float32)
    assert torch.equal(UniformSymmetric()(w * 2.0**-100), UniformSymmetric()(w) * 2.0**-100)


def test_an_all_zero_layer_stays_exactly_zero_under_the_uniform_quantizer() -> None:
    w = torch.zeros(4, 6, requires_grad=True)
    quantized = UniformSymmetric(bitwidth=4)(w)
    quantized.sum().backward()
    assert torch.equal(quantized, torch.zeros_like(w))
    assert torch.equal(w.grad, torch.ones_like(w))


@each("dtype", DTYPES)
@each("scale", [1e-6, 1.0, 1e15])
@each("shape", [(1,), (7, 5), (64, 3)])
def test_a_full_dead_zone_zeroes_a_constant_layer_exactly(
    shape: tuple[int, ...], scale: float, dtype: torch.dtype
) -> None:
    quantizer = _quantizer(dtype, init_deadzone_logit=0.0)
    w = torch.full(shape, -0.37 * scale, dtype=dtype)
    assert torch.equal(quantizer(w), torch.zeros_like(w))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_full_dead_zone_keeps_only_the_largest_hundredth(dtype: torch.dtype) -> None:
    w = torch.randn(1001, generator=torch.Generator().manual_seed(0), dtype=dtype)
    quantized = _quantizer(dtype, init_deadzone_logit=0.0)(w)
    assert torch.equal(quantized != 0, w.abs() > absmax(w))
    assert int((quantized != 0).sum()) == 10


@each("theta", THETAS)
@each("bits", BITS)
def test_the_step_has_the_papers_epsilon(bits: int, theta: float) -> None:
    quantizer = _quantizer(torch.float64, fixed_bit_val=bits, learnable_bit=False, init_deadzone_logit=theta)
    r = 1e-6
    step, dead_zone, _ = quantizer.step_and_dead_zone(torch.full((3,), r, dtype=torch.float64))
    d = reference.deadzone_width(quantizer.logit_dz.item(), r)
    assert dead_zone.item() == pytest.approx(d, rel=1e-9)
    assert step.item() == pytest.approx((r - d / 2) / (2 ** (bits - 1) - 1.5) + 1e-8, rel=1e-9)
    assert step.item() >= 1e-8


@pytest.mark.parametrize("make", [DeadZoneQuantizer, UniformSymmetric])
def test_the_gradient_of_an_exact_zero_weight_is_one(make: type[nn.Module]) -> None:
    w = torch.tensor([0.0, -0.0, 0.3, -0.2], requires_grad=True)
    make()(w).sum().backward()
    assert w.grad.tolist() == [1.0, 1.0, 1.0, 1.0]


@each("theta", [0.0, 0.05, 0.7, 3.0])
def test_the_absmax_passes_no_gradient_to_the_weights(theta: float) -> None:
    # The largest weights define R: were R differentiated, theirs would differ from the upstream gradient.
    w = _tensor("heavy_tails", torch.float32).requires_grad_()
    quantizer = DeadZoneQuantizer(init_deadzone_logit=theta)
    upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    quantizer(w).backward(upstream)
    assert torch.equal(w.grad, upstream)
    assert not absmax(w).requires_grad
    assert not absmax(w, over="nonzero").requires_grad


def test_the_sign_of_a_logit_flips_only_its_gradient() -> None:
    w, signs = _tensor("normal", torch.float64), [1.0, -1.0]
    layers = [_quantizer(torch.float64, init_deadzone_logit=0.8 * k, init_bit_logit=0.5 * k) for k in signs]
    outputs = [layer(w) for layer in layers]
    for output in outputs:
        output.sum().backward()
    assert torch.equal(*outputs)
    assert layers[0].logit_dz.grad == -layers[1].logit_dz.grad != 0
    assert layers[0].logit_bit.grad == -layers[1].logit_bit.grad != 0


# ------------------------------------------------------------------------------------------------ absmax and the widths


@each("dtype", DTYPES)
@each("size", [1, 2, 3, 10, 99, 100, 101, 102, 201, 1000, 4321])
def test_absmax_is_the_099_quantile_of_the_magnitudes(size: int, dtype: torch.dtype) -> None:
    w = torch.tensor(_normal(size, seed=size), dtype=dtype)
    expected = reference.absmax(w.double().numpy())
    assert absmax(w).shape == ()
    assert absmax(w).dtype == dtype
    assert absmax(w).item() == pytest.approx(expected, rel=2 * EPS[dtype] + 1e-15 * size)


@each("dtype", DTYPES)
@each("zeros", [0, 1, 50, 500, 995, 998, 999, 1000])
def test_absmax_over_nonzero_leaves_exact_zeros_out(zeros: int, dtype: torch.dtype) -> None:
    w = _normal(1000, seed=zeros)
    w[np.random.default_rng(zeros).permutation(1000)[:zeros]] = 0.0
    w = torch.tensor(w, dtype=dtype).reshape(10, 100)
    expected = reference.absmax(w.double().numpy(), over="nonzero")
    assert absmax(w, over="nonzero").item() == pytest.approx(expected, rel=2 * EPS[dtype] + 1e-12)


@each("scale", [1e-6, 1.0, 1e15])
@each("granularity", ["layer", "channel"])
def test_the_position_among_many_nonzero_weights_is_exact_in_float32(granularity: str, scale: float) -> None:
    # 0.99 (n - 1) = 198,005.94 for n = 200,007: 0.94 of the way from 1 to 1000. In float32 that is 0.9375 of it.
    w = torch.zeros(250_000)
    w[:198_006], w[198_006:200_007] = 1.0, -1000.0
    r = absmax(scale * w.roll(17_000).view(1, -1), "nonzero", granularity)
    assert r.item() == pytest.approx(scale * (1 + 0.94 * 999), rel=4 * EPS[torch.float32])


def test_the_quantizer_uses_the_absmax_that_it_was_given() -> None:
    w = torch.zeros(1000, dtype=torch.float64)
    w[:5] = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0])  # 99.5 % zeros: R over all of them is 0
    assert absmax(w) == 0
    everything = _quantizer(torch.float64, init_deadzone_logit=2.0)(w)
    nonzero = DeadZoneQuantizer(init_deadzone_logit=2.0, absmax_over="nonzero").double()
    assert everything.abs().max() < 1e-5
    x = w.numpy()
    expected = reference.forward(x, 2.0, 3.0, over="nonzero")
    np.testing.assert_allclose(nonzero(w).detach().numpy(), expected, rtol=0, atol=1e-12)


def test_absmax_has_no_size_limit() -> None:
    # torch.quantile refuses more than 2^24 values. Position 0.99 (n - 1) = 16,830,000 of the ordered ones holds 1.5.
    size, top = 17_000_001, 170_000
    w = torch.ones(size)
    w[1 : 2 * top : 2] = -2.0
    w[-5] = 1.5
    assert absmax(w).item() == pytest.approx(1.5, rel=1e-6)


@each("theta", THETAS)
@each("r", [0.0, 1e-6, 0.3, 1e15])
def test_the_dead_zone_width_follows_its_equation(r: float, theta: float) -> None:
    width = dead_zone_width(torch.tensor(theta, dtype=torch.float64), torch.tensor(r, dtype=torch.float64))
    assert width.item() == pytest.approx(reference.deadzone_width(theta, r), rel=1e-9, abs=0)


@each("max_bits", [2, 4, 8, 16])
@each("theta", [-9.0, -1.0, -0.3, 0.0, 0.17, 0.62, 1.4, 3.0, 20.0])
def test_the_learned_bits_follow_their_equation(theta: float, max_bits: int) -> None:
    bits = learned_bits(torch.tensor(theta), max_bits)
    assert bits.item() == reference.bitwidth(theta, max_bits)
    assert 2 <= bits.item() <= max_bits


@each("bits", BITS)
def test_a_step_equal_to_the_dead_zone_gives_back_the_uniform_step(bits: int) -> None:
    # (12) and (13): d = s is solved by s = R / Q, but for the paper's 1e-8
    r = torch.tensor(0.7, dtype=torch.float64)
    uniform_step = r / (2 ** (bits - 1) - 1)
    step = pruning_aware_step(r, uniform_step, bits)
    assert step.item() == pytest.approx(uniform_step.item() + 1e-8, rel=1e-12)


# --------------------------------------------------------------------------------------------------- shapes and layouts


def _layouts() -> dict[str, Tensor]:
    base = torch.tensor(_normal(6, 4, 8, 10, seed=6), dtype=torch.float32)
    return {
        "transposed": base[0, 0].t(),
        "strided": base[::2, :, 1::3],
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "permuted": base.permute(3, 1, 0, 2),
        "expanded": base[0, 0, 0].expand(5, 10),
        "flipped": base.flip(0),
    }


@each("name", list(_layouts()))
@each("make", [DeadZoneQuantizer, UniformSymmetric])
def test_the_memory_layout_does_not_matter(make: type[nn.Module], name: str) -> None:
    w = _layouts()[name]
    assert torch.equal(make()(w), make()(w.contiguous().clone()))


@each("shape", [(), (1,), (5,), (3, 4), (2, 3, 5), (4, 3, 3, 3), (2, 2, 2, 2, 2)])
@each("make", [DeadZoneQuantizer, UniformSymmetric])
def test_the_shape_and_the_gradient_survive_any_rank(make: type[nn.Module], shape: tuple[int, ...]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2), requires_grad=True)
    quantized = make()(w)
    assert quantized.shape == w.shape
    quantized.sum().backward()
    assert torch.equal(w.grad, torch.ones(shape))


def test_step_and_dead_zone_may_differ_by_channel() -> None:
    w = torch.tensor(_normal(3, 20), requires_grad=True)
    step = torch.tensor([[0.02], [0.03], [0.05]], dtype=torch.float64, requires_grad=True)
    dead_zone = torch.tensor([[0.0], [0.05], [0.1]], dtype=torch.float64, requires_grad=True)
    together = dead_zone_quantize(w, step, dead_zone, 4)
    together.sum().backward()
    assert step.grad.shape == dead_zone.grad.shape == (3, 1)
    for i in range(3):
        one_step, one_zone = (x[i, 0].detach().requires_grad_() for x in (step, dead_zone))
        row = dead_zone_quantize(w[i], one_step, one_zone, 4)
        row.sum().backward()
        assert torch.equal(row, together[i])
        assert step.grad[i, 0].item() == pytest.approx(one_step.grad.item(), rel=1e-12)
        assert dead_zone.grad[i, 0].item() == pytest.approx(one_zone.grad.item(), rel=1e-12)


# --------------------------------------------------------------------------------------------------- the public surface


def test_the_logits_are_named_zero_dimensional_parameters() -> None:
    parameters = dict(DeadZoneQuantizer().named_parameters())
    assert set(parameters) == {"logit_dz", "logit_bit"}
    assert all(p.shape == () and p.requires_grad and p.item() == 3.0 for p in parameters.values())


@each("learnable_bit", [True, False])
@each("learnable_deadzone", [True, False])
def test_frozen_logits_get_no_gradient(learnable_bit: bool, learnable_deadzone: bool) -> None:
    quantizer = DeadZoneQuantizer(
        init_bit_logit=0.5, init_deadzone_logit=0.7, learnable_bit=learnable_bit, learnable_deadzone=learnable_deadzone
    )
    quantizer(_tensor("normal", torch.float32).requires_grad_()).sum().backward()
    for logit, learnable in ((quantizer.logit_bit, learnable_bit), (quantizer.logit_dz, learnable_deadzone)):
        assert logit.requires_grad is learnable
        assert (logit.grad is not None) is learnable
        assert logit.grad is None or logit.grad != 0


@each("bits", BITS)
def test_get_bitwidth_is_the_fixed_value_unless_learnable(bits: int) -> None:
    fixed = DeadZoneQuantizer(fixed_bit_val=bits, learnable_bit=False)
    learned = DeadZoneQuantizer(fixed_bit_val=bits, max_bits=7, init_bit_logit=20.0)
    for quantizer, expected in ((fixed, bits), (learned, 7), (UniformSymmetric(bitwidth=bits), bits)):
        width = quantizer.get_bitwidth()
        assert width.shape == ()
        assert width.dtype == torch.long
        assert not width.requires_grad
        assert width.item() == expected


def test_the_bit_width_in_force_counts_the_levels() -> None:
    w = torch.linspace(-1, 1, 5001)
    for theta in (0.0, 0.3, 0.6, 3.0):
        quantizer = DeadZoneQuantizer(init_bit_logit=theta)
        levels = len(quantizer(w).unique())
        assert levels == 2 ** quantizer.get_bitwidth().item() - 1


def test_the_defaults_are_the_contracts() -> None:
    spelled_out = DeadZoneQuantizer(
        fixed_bit_val=4, max_bits=8, init_bit_logit=3.0, init_deadzone_logit=3.0, learnable_bit=True,
        learnable_deadzone=True,
    )  # fmt: skip
    w = _tensor("normal", torch.float32)
    assert torch.equal(DeadZoneQuantizer()(w), spelled_out(w))
    assert torch.equal(UniformSymmetric()(w), UniformSymmetric(bitwidth=8)(w))


def test_the_compander_alias_is_the_same_class() -> None:
    assert DeadZoneLDZCompander is DeadZoneQuantizer


def test_a_state_dict_restores_the_quantizer() -> None:
    w = _tensor("normal", torch.float32)
    source, target = DeadZoneQuantizer(init_bit_logit=0.4, init_deadzone_logit=0.9), DeadZoneQuantizer()
    assert not torch.equal(source(w), target(w))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(w), target(w))


BAD_BITS = [-3, 0, 1, 17, 64, 4.0, 2.5, "4", None, True, float("nan")]


@each("bits", BAD_BITS)
@each(
    ("make", "argument"),
    [(DeadZoneQuantizer, "fixed_bit_val"), (DeadZoneQuantizer, "max_bits"), (UniformSymmetric, "bitwidth")],
)
def test_an_illegal_bit_width_is_an_error_that_names_it(make: type[nn.Module], argument: str, bits: object) -> None:
    with pytest.raises(CodeqError, match=f"{argument}=.*2 to 16"):
        make(**{argument: bits})


def test_an_unknown_absmax_is_an_error_that_lists_the_choices() -> None:
    with pytest.raises(CodeqError, match=r"absmax_over='non-zero'.*'all' or 'nonzero'"):
        DeadZoneQuantizer(absmax_over="non-zero")


@pytest.fixture
def registry() -> Iterator[dict[str, type[nn.Module]]]:
    before = dict(QUANTIZERS)
    yield QUANTIZERS
    QUANTIZERS.clear()
    QUANTIZERS.update(before)


def test_the_registry_holds_the_two_built_in_quantizers() -> None:
    assert QUANTIZERS["deadzone"] is DeadZoneQuantizer
    assert QUANTIZERS["uniform"] is UniformSymmetric


def test_a_quantizer_registers_by_decorator_or_by_assignment(registry: dict[str, type[nn.Module]]) -> None:
    @registry.register("ternary")
    class Ternary(nn.Module):
        pass

    registry["identity"] = nn.Identity
    assert isinstance(Ternary, type)
    assert registry["ternary"] is Ternary
    assert registry["identity"] is nn.Identity


def test_a_misspelt_quantizer_gets_a_suggestion() -> None:
    with pytest.raises(CodeqError, match=r"'dead_zone' is unknown.*'deadzone'.*Allowed: deadzone, uniform"):
        QUANTIZERS["dead_zone"]


# -------------------------------------------------------------------------------------- properties on arbitrary weights

PROPERTY = settings(max_examples=50, deadline=None, derandomize=True)


@st.composite
def _weights(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e15]))
    values = draw(st.lists(st.floats(-1, 1, width=32, allow_subnormal=False), min_size=1, max_size=40))
    return torch.tensor(values, dtype=dtype) * scale


@st.composite
def _grids(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    """Weights, step, dead-zone and bits as the quantizer would choose them, and any other dead-zone up to 2 R."""
    w, bits = draw(_weights()), draw(st.sampled_from(BITS))
    r = absmax(w)
    dead_zone = 2 * r * draw(st.floats(0, 1))
    return w, pruning_aware_step(r, dead_zone, bits), dead_zone, bits


def _levels(step: Tensor, dead_zone: Tensor, bits: int) -> Tensor:
    """The positive levels s q + δ, computed in the type of the weights."""
    q = torch.arange(1, 2 ** (bits - 1), dtype=step.dtype)
    return step * q + (dead_zone / 2 - step / 2)


@PROPERTY
@given(_grids())
def test_the_output_lies_on_the_grid(case: tuple[Tensor, Tensor, Tensor, int]) -> None:
    w, step, dead_zone, bits = case
    quantized, levels = dead_zone_quantize(w, step, dead_zone, bits), _levels(step, dead_zone, bits)
    assert torch.isin(quantized.abs(), torch.cat([levels.new_zeros(1), levels])).all()
    assert (quantized * w.sign() >= 0).all()


@PROPERTY
@given(_grids())
def test_the_output_stays_within_the_largest_level(case: tuple[Tensor, Tensor, Tensor, int]) -> None:
    w, step, dead_zone, bits = case
    assert (dead_zone_quantize(w, step, dead_zone, bits).abs() <= _levels(step, dead_zone, bits)[-1]).all()


@PROPERTY
@given(_grids())
def test_the_dead_zone_is_zero_to_the_last_bit(case: tuple[Tensor, Tensor, Tensor, int]) -> None:
    w, step, dead_zone, bits = case
    edge = dead_zone / 2
    inside = torch.stack([edge, -edge, edge.nextafter(torch.zeros_like(edge)), edge * 0.999, edge * 0])
    w = torch.cat([w, inside])
    quantized = dead_zone_quantize(w, step, dead_zone, bits)
    assert (quantized[w.abs() <= edge] == 0).all()


@PROPERTY
@given(_grids())
def test_the_first_level_starts_right_outside_the_dead_zone(case: tuple[Tensor, Tensor, Tensor, int]) -> None:
    w, step, dead_zone, bits = case
    assume(step > 64 * torch.finfo(w.dtype).eps * dead_zone)  # else rounding hides the step
    outside = dead_zone / 2 + step * 0.05
    quantized = dead_zone_quantize(torch.stack([outside, -outside]), step, dead_zone, bits)
    first = _levels(step, dead_zone, bits)[0]
    assert torch.equal(quantized, torch.stack([first, -first]))


@PROPERTY
@given(_grids())
def test_the_quantizer_is_odd(case: tuple[Tensor, Tensor, Tensor, int]) -> None:
    w, *grid = case
    assert torch.equal(dead_zone_quantize(-w, *grid), -dead_zone_quantize(w, *grid))


@PROPERTY
@given(_weights(), st.sampled_from(THETAS), st.sampled_from(BITS))
def test_the_module_is_odd(w: Tensor, theta: float, bits: int) -> None:
    quantizer = DeadZoneQuantizer(fixed_bit_val=bits, learnable_bit=False, init_deadzone_logit=theta)
    assert torch.equal(quantizer(-w), -quantizer(w))


@PROPERTY
@given(_grids())
def test_the_quantizer_is_monotone(case: tuple[Tensor, Tensor, Tensor, int]) -> None:
    w, *grid = case
    assert (dead_zone_quantize(w.sort().values, *grid).diff() >= 0).all()


@PROPERTY
@given(_weights(), st.sampled_from(BITS))
def test_a_dead_zone_as_wide_as_the_step_is_exactly_the_uniform_quantizer(w: Tensor, bits: int) -> None:
    q_max = 2 ** (bits - 1) - 1
    step = absmax(w) / q_max + 1e-8
    expected = step * (w / step).round().clamp(-q_max, q_max)
    assert torch.equal(dead_zone_quantize(w, step, step, bits), expected)
    assert torch.equal(uniform_quantize(w, step, bits), expected)


@PROPERTY
@given(_grids(), st.integers(0, 2**31))
def test_the_gradient_of_the_weights_is_the_upstream_gradient(
    case: tuple[Tensor, Tensor, Tensor, int], seed: int
) -> None:
    w, *grid = case
    w = torch.cat([w, w.new_zeros(2)]).requires_grad_()
    upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed), dtype=w.dtype)
    dead_zone_quantize(w, *grid).backward(upstream)
    assert torch.equal(w.grad, upstream)


@PROPERTY
@given(_grids())
def test_levels_are_fixed_points_where_the_type_resolves_them(case: tuple[Tensor, Tensor, Tensor, int]) -> None:
    w, step, dead_zone, bits = case
    levels = _levels(step, dead_zone, bits)
    assume(step > 16 * torch.finfo(w.dtype).eps * levels[-1])
    grid = torch.cat([-levels, levels.new_zeros(1), levels])
    assert torch.equal(dead_zone_quantize(grid, step, dead_zone, bits), grid)


@PROPERTY
@given(_grids())
def test_every_weight_in_range_moves_by_half_a_step_at_most(case: tuple[Tensor, Tensor, Tensor, int]) -> None:
    w, step, dead_zone, bits = case
    w, step, dead_zone = w.double(), step.double(), dead_zone.double()
    top = _levels(step, dead_zone, bits)[-1]
    error = (dead_zone_quantize(w, step, dead_zone, bits) - w).abs()
    alive = (w.abs() > dead_zone / 2 * (1 + 1e-12)) & (w.abs() <= top)
    assert (error[alive] <= step / 2 + 1e-12 * top).all()


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("theta", [0.0, 2.0])
@pytest.mark.parametrize("grid", ["paper", "affine"])
def test_weights_of_float16_are_never_nan(granularity, theta, grid):
    layer = nn.Sequential(nn.Linear(8, 4))
    attach_weight_quantizers(layer, [], "deadzone", {"granularity": granularity, "grid": grid})
    layer.half()
    with torch.no_grad():
        latent_weight(layer[0])[0 if granularity == "channel" else slice(None)] = 0
        layer[0].parametrizations.weight[0].quantizer.logit_dz.fill_(theta)
    assert layer[0].weight.isfinite().all()
    assert not layer[0].weight[0].any()


@pytest.mark.parametrize("quantizer", [DeadZoneQuantizer(max_bits=8), UniformSymmetric(bitwidth=8)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_have_the_levels_of_float32(quantizer, dtype):
    w = (0.003 * torch.randn(300, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert torch.equal(quantizer(w), quantizer(w.float()).to(dtype))
