"""The quantizer's options beyond the paper, a scale for each channel and a learned one, against the NumPy oracle."""

import copy
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import reference
import torch
from cases import each, few
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codeq.common.errors import CodeqError
from codeq.models import MODELS
from codeq.quantizer import DeadZoneQuantizer, absmax
from codeq.quantizer.attach import attach_weight_quantizers, named_quantizers, split_param_groups
from codeq.quantizer.layers import latent_weight

BITS = [2, 4, 8]
DTYPES = [torch.float32, torch.float64]
GRANULARITIES, SCALES, OVER = ["layer", "channel"], ["absmax", "learned"], ["all", "nonzero"]
OPTIONS = [
    {"granularity": g, "scale": s, "absmax_over": o} for g, s, o in itertools.product(GRANULARITIES, SCALES, OVER)
]
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
TOLERANCE = {torch.float32: 8 * EPS[torch.float32], torch.float64: 1e-12}  # in ŵ; four times it in the gradients' sums
THETA_DZ = 0.7  # a dead-zone of 0.4 R on either side


def _filters(*shape: int) -> np.ndarray:
    """Filters of scales from 0.01 to 1; a fifth of the weights, one whole filter among them, is exactly zero."""
    random = np.random.default_rng(math.prod(shape))
    w = random.standard_t(4, size=shape) * np.logspace(-2, 0, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    w[random.random(shape) < 0.2] = 0.0
    w[2:3] = 0.0
    return w


WEIGHTS = {
    "conv": _filters(6, 5, 3, 3),
    "pointwise": _filters(5, 40, 1, 1),
    "depthwise": _filters(7, 1, 3, 3),
    "linear": _filters(10, 30),
    "one_channel": _filters(1, 8, 3, 3),
    "all_zero": np.zeros((4, 3, 3, 3)),
}


def _channels(w: np.ndarray, granularity: str) -> list[np.ndarray]:
    """Return the groups that share a scale: the whole tensor, or each filter."""
    return [w] if granularity == "layer" else list(w)


def _quantizer(dtype: torch.dtype, bits: int, learnable_bit: bool = False, **options: object) -> DeadZoneQuantizer:
    options |= {"fixed_bit_val": bits, "learnable_bit": learnable_bit}
    theta_bit = math.atanh((bits - 2 + 0.2) / 6) if bits < 8 else 3.0
    return DeadZoneQuantizer(init_bit_logit=theta_bit, init_deadzone_logit=THETA_DZ, **options).to(dtype)


@dataclass
class Expected:
    """Results of the oracle for weights that share one scale, and the size that an ulp of each sum refers to."""

    quantized: np.ndarray
    decided: np.ndarray
    upstream: np.ndarray
    largest_level: np.ndarray
    dz: float
    bit: float
    logit_unit: float
    scale: float
    scale_unit: float


def _expect(quantizer: DeadZoneQuantizer, w: np.ndarray, r: float, eps: float, upstream: np.ndarray) -> Expected:
    """The oracle's answer. Weights on a rounding boundary get no upstream gradient, instead of a loose tolerance."""
    fixed = None if quantizer.learnable_bit else quantizer.fixed_bit_val
    arguments = {"theta_dz": quantizer.logit_dz.item(), "theta_bit": quantizer.logit_bit.item(), "r": r}
    arguments["fixed_bits"] = fixed
    decided = ~reference.undecided(w, eps=eps, **arguments)
    upstream = upstream * decided
    _, dz, bit = reference.gradients(w, upstream=upstream, **arguments)
    largest_level = np.full_like(w, r + 128 * 1e-8)
    return Expected(
        reference.forward(w, **arguments), decided, upstream, largest_level, dz, bit,
        logit_unit=float(np.sum(np.abs(upstream) * (largest_level + 2 * np.abs(w)))),
        scale=reference.learned_scale_gradient(w, upstream=upstream, **arguments),
        scale_unit=float(np.sum(np.abs(upstream))) / math.sqrt(w.size),
    )  # fmt: skip


def _check(quantizer: DeadZoneQuantizer, w: np.ndarray, dtype: torch.dtype, scales: list[float]) -> None:
    """Compare ŵ and every gradient with the oracle's for the given `R` of each channel."""
    leaf = torch.tensor(w, dtype=dtype, requires_grad=True)
    x = leaf.detach().double().numpy()
    random = np.random.default_rng(7).normal(size=w.shape)
    channels, upstreams = (_channels(array, quantizer.granularity) for array in (x, random))
    cases = zip(channels, scales, upstreams, strict=True)
    parts = [_expect(quantizer, channel, r, EPS[dtype], upstream) for channel, r, upstream in cases]

    def whole(name: str) -> np.ndarray:
        return np.stack([getattr(part, name) for part in parts]).reshape(w.shape)

    quantized, decided = quantizer(leaf), whole("decided")
    assert decided.mean() > 0.9
    assert quantized.dtype == dtype
    assert quantized.shape == leaf.shape
    error = np.abs(quantized.detach().double().numpy() - whole("quantized")) / whole("largest_level")
    assert error[decided].max() <= TOLERANCE[dtype]

    upstream = torch.tensor(whole("upstream"), dtype=dtype)
    quantized.backward(upstream)
    reached = upstream
    if quantizer.scale == "learned":  # eq. (5) of LSQ
        limits = np.repeat(scales, [part.quantized.size for part in parts]).reshape(w.shape)
        reached = upstream * torch.tensor(np.abs(x) <= limits)
    assert torch.equal(leaf.grad, reached)
    allowed = 4 * TOLERANCE[dtype] * sum(part.logit_unit for part in parts)
    assert abs(quantizer.logit_dz.grad.item() - sum(part.dz for part in parts)) <= allowed
    if quantizer.learnable_bit:
        assert abs(quantizer.logit_bit.grad.item() - sum(part.bit for part in parts)) <= allowed
    else:
        assert quantizer.logit_bit.grad is None
    if quantizer.scale == "learned":
        for gradient, part in zip(quantizer.learned_absmax.grad.flatten().tolist(), parts, strict=True):
            assert abs(gradient - part.scale) <= 4 * TOLERANCE[dtype] * part.scale_unit


def _quantiles(w: np.ndarray, granularity: str, over: str, dtype: torch.dtype) -> list[float]:
    stored = torch.tensor(w, dtype=dtype).double().numpy()
    return [reference.absmax(channel, over=over) for channel in _channels(stored, granularity)]


# --------------------------------------------------------------------------------------------------- against the oracle


@each("learnable_bit", [False, True])
@each("dtype", DTYPES)
@each("options", OPTIONS)
@each("name", WEIGHTS)
def test_every_option_matches_the_oracle_forward_and_backward(
    name: str, options: dict[str, str], dtype: torch.dtype, learnable_bit: bool
) -> None:
    w = WEIGHTS[name]
    scales = _quantiles(w, options["granularity"], options["absmax_over"], dtype)
    for bits in BITS:
        _check(_quantizer(dtype, bits, learnable_bit, **options), w, dtype, scales)


@each("dtype", DTYPES)
@each("factor", [0.3, -0.8, 1.7])
@each("granularity", GRANULARITIES)
@each("name", ["conv", "linear", "one_channel"])
def test_a_learned_scale_anywhere_matches_the_oracle(
    name: str, granularity: str, factor: float, dtype: torch.dtype
) -> None:
    # After training R is no quantile any more: many weights are clipped, or none. Its sign does not matter.
    w = WEIGHTS[name]
    for bits in BITS:
        quantizer = _quantizer(dtype, bits, granularity=granularity, scale="learned")
        quantizer(torch.tensor(w, dtype=dtype))
        with torch.no_grad():
            quantizer.learned_absmax.mul_(abs(factor))
        scales = quantizer.learned_absmax.detach().double().flatten().tolist()
        if factor < 0:
            with torch.no_grad():
                quantizer.learned_absmax.neg_()
            quantizer.learned_absmax.register_hook(torch.neg)  # ∂|ρ|/∂ρ = -1
        _check(quantizer, w, dtype, scales)


def test_the_gradient_of_a_learned_scale_by_hand() -> None:
    # R = 1, b = 2 so Q = 1, d = 0.5: s = 0.75 / 0.5 = 1.5 and δ = -0.5; ∂s/∂R = 1.5, ∂δ/∂R = -0.5.
    options = {"fixed_bit_val": 2, "learnable_bit": False, "scale": "learned"}
    quantizer = DeadZoneQuantizer(init_deadzone_logit=math.atanh(0.75), **options).double()
    quantizer(torch.ones(1, dtype=torch.float64))
    w = torch.tensor([3.0, -3.0, 0.7, 0.1, -0.1, 0.0], dtype=torch.float64)
    slopes = [1.0, -1.0]  # clipped: the level is R itself
    slopes += [(1 - (0.7 + 0.5) / 1.5) * 1.5]  # (q - u) ∂s/∂R
    slopes += [-(0.1 + 0.5) / 1.5 * 1.5 + 0.5, (0.1 + 0.5) / 1.5 * 1.5 - 0.5]  # -u ∂s/∂R - sign(w) ∂δ/∂R
    slopes += [0.0]
    for weight, slope in zip(w, slopes, strict=True):
        quantizer.learned_absmax.grad = None
        quantizer(weight.expand(9)).sum().backward()
        assert quantizer.learned_absmax.grad.item() == pytest.approx(9 * slope / math.sqrt(9 * 1), abs=1e-6)


def test_inside_the_clip_the_oracles_slope_agrees_with_real_differences() -> None:
    w, r, h = WEIGHTS["linear"], 0.9, 1e-6
    f = reference.Surrogate(w, THETA_DZ, 0.5, r=r)
    slopes = reference.learned_scale_slopes(w, THETA_DZ, 0.5, r)
    differences = (f(w, THETA_DZ, 0.5, r + h) - f(w, THETA_DZ, 0.5, r - h)) / (2 * h)
    inside = np.abs(w) <= r
    assert 0.02 < 1 - inside.mean() < 0.5
    np.testing.assert_allclose(slopes[inside], differences[inside], atol=1e-8)
    np.testing.assert_allclose(slopes[~inside], np.sign(w[~inside]), atol=1e-12)


# -------------------------------------------------------------------------------------------------------- a scale each


@each("dtype", DTYPES)
@each("over", OVER)
@each("name", WEIGHTS)
def test_absmax_of_channels_is_that_of_each_filter(name: str, over: str, dtype: torch.dtype) -> None:
    w = torch.tensor(WEIGHTS[name], dtype=dtype)
    r = absmax(w, over, "channel")
    assert r.shape == (len(w), *(1,) * (w.dim() - 1))
    assert r.flatten().tolist() == pytest.approx(_quantiles(WEIGHTS[name], "channel", over, dtype), rel=4 * EPS[dtype])
    assert torch.equal(r.flatten(), torch.stack([absmax(filter_, over) for filter_ in w]))


def test_the_memory_layout_of_the_weights_does_not_matter() -> None:
    w = torch.tensor(WEIGHTS["conv"])
    quantizer = DeadZoneQuantizer(granularity="channel")
    assert torch.equal(quantizer(w.to(memory_format=torch.channels_last)), quantizer(w))


@each("scale", SCALES)
@each("over", OVER)
def test_one_channel_is_one_layer(scale: str, over: str) -> None:
    w = torch.tensor(WEIGHTS["one_channel"], dtype=torch.float32)
    results = []
    for granularity in GRANULARITIES:
        quantizer = DeadZoneQuantizer(granularity=granularity, scale=scale, absmax_over=over)
        leaf = w.clone().requires_grad_()
        quantized = quantizer(leaf)
        quantized.square().sum().backward()
        gradients = [parameter.grad.flatten() for parameter in quantizer.parameters()]
        results.append([quantized, leaf.grad, *gradients])
    for layer, channel in zip(*results, strict=True):
        torch.testing.assert_close(channel.reshape(layer.shape), layer, rtol=1e-6, atol=0)


def test_a_channel_scale_follows_the_channel_alone() -> None:
    w = torch.tensor(WEIGHTS["linear"])
    quantizer = DeadZoneQuantizer(granularity="channel", init_deadzone_logit=1.0)
    before = quantizer(w)
    w[3] *= 100
    after = quantizer(w)
    assert torch.equal(after[:3], before[:3])
    assert torch.equal(after[4:], before[4:])
    assert not torch.equal(after[3], before[3])
    assert quantizer.get_bitwidth().shape == ()


@each("theta", [0.0, 0.7, 3.0])
@each("options", OPTIONS)
def test_a_channel_of_zeros_stays_zero_with_finite_gradients(options: dict[str, str], theta: float) -> None:
    w = torch.tensor(WEIGHTS["conv"], dtype=torch.float32, requires_grad=True)
    quantizer = DeadZoneQuantizer(init_deadzone_logit=theta, init_bit_logit=0.6, **options)
    quantized = quantizer(w)
    assert (w[2] == 0).all()
    assert torch.equal(quantized[2], torch.zeros_like(w[2]))
    quantized.sum().backward()
    assert torch.equal(w.grad[2], torch.ones_like(w[2]))
    for parameter in quantizer.parameters():
        assert parameter.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------ a learned scale


@each("granularity", GRANULARITIES)
@each("over", OVER)
@each("name", WEIGHTS)
def test_a_learned_scale_starts_as_the_absmax_with_the_papers_other_gradients(
    name: str, over: str, granularity: str
) -> None:
    w, results = torch.tensor(WEIGHTS[name], dtype=torch.float32), []
    for scale in SCALES:
        quantizer = DeadZoneQuantizer(init_deadzone_logit=0.7, absmax_over=over, granularity=granularity, scale=scale)
        leaf = w.clone().requires_grad_()
        for _ in range(2):  # the first forward creates the scale, the second finds it
            quantized = quantizer(leaf)
        quantized.square().sum().backward()
        within = leaf.detach().abs() <= quantizer.magnitude(w)
        results.append([quantized, leaf.grad * within, quantizer.logit_dz.grad, quantizer.logit_bit.grad])
    assert torch.equal(leaf.grad != 0, within & (quantized != 0))
    assert all(itertools.starmap(torch.equal, zip(*results, strict=True)))


def test_a_learned_scale_does_not_follow_the_weights() -> None:
    quantizer, w = DeadZoneQuantizer(scale="learned"), torch.linspace(-1, 1, 101)
    quantizer(w)
    assert quantizer(5 * w).max() == quantizer(w).max()
    assert quantizer.magnitude(5 * w) == absmax(w)


def test_a_target_outside_the_clip_pulls_the_scale_up_and_one_inside_down() -> None:
    # Straight-through on the clip has the opposite sign: the reason for LSQ's rule.
    for target, way in ((2.0, -1), (0.5, 1)):
        quantizer = DeadZoneQuantizer(scale="learned")
        quantizer(torch.ones(10))
        (quantizer(torch.full((10,), 1.5)) - target).square().sum().backward()
        assert quantizer.learned_absmax.grad.sign() == way


@each("granularity", GRANULARITIES)
def test_weights_beyond_a_learned_scale_are_not_driven_further_out(granularity: str) -> None:
    quantizer = DeadZoneQuantizer(fixed_bit_val=2, learnable_bit=False, scale="learned", granularity=granularity)
    w = torch.linspace(-1, 1, 100).view(2, 50).requires_grad_()
    quantizer(w)
    optimizer = torch.optim.SGD([w], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        (-quantizer(w).abs().sum()).backward()
        optimizer.step()
    assert w.detach().abs().max() < 1.2


def test_the_scale_of_a_channel_that_was_all_zero_comes_back_with_its_weights() -> None:
    quantizer = DeadZoneQuantizer(granularity="channel", scale="learned")
    quantizer(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    w = torch.tensor([[0.5, -0.5], [1.0, 1.0]], requires_grad=True)
    (quantizer(w) - w.detach()).square().sum().backward()
    assert quantizer.learned_absmax[0] == 0
    assert quantizer.learned_absmax.grad[0] < 0


def _attached(enabled: bool = True, **options: str) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    attach_weight_quantizers(model, [], "deadzone", options, enabled=enabled)
    return model


SHAPES = {"layer": [(), ()], "channel": [(4, 1, 1, 1), (2, 1)]}


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_attaching_gives_the_optimizer_the_scale_in_its_base_group(granularity: str) -> None:
    model = _attached(granularity=granularity, scale="learned")
    base, dz, bit = split_param_groups(model)
    scales = [quantizer.learned_absmax for _, quantizer in named_quantizers(model)]
    assert [tuple(scale.shape) for scale in scales] == SHAPES[granularity]
    for (name, _), scale in zip(named_quantizers(model), scales, strict=True):
        assert torch.equal(scale, absmax(latent_weight(model.get_submodule(name)), granularity=granularity))
        assert any(parameter is scale for parameter in base)
    assert (len(base), len(dz), len(bit)) == (6, 2, 2)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_attached_switched_off_the_scale_is_still_the_parameter_the_optimizer_holds(granularity: str) -> None:
    model = _attached(enabled=False, granularity=granularity, scale="learned")
    optimizer = torch.optim.AdamW(split_param_groups(model)[0], lr=0.01)
    for _, layer in model.named_modules():
        if hasattr(layer, "enabled"):
            layer.enabled = True
    model(torch.randn(8, 3, 3, 3)).square().sum().backward()
    before = [quantizer.learned_absmax.clone() for _, quantizer in named_quantizers(model)]
    optimizer.step()
    for (_, quantizer), old, shape in zip(named_quantizers(model), before, SHAPES[granularity], strict=True):
        assert quantizer.learned_absmax.shape == old.shape == shape
        assert not torch.equal(quantizer.learned_absmax, old)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_learned_scale_survives_saving_loading_and_copying(granularity: str, enabled: bool, tmp_path) -> None:
    model, x = _attached(granularity=granularity, scale="learned"), torch.randn(5, 3, 3, 3)
    with torch.no_grad():
        for _, quantizer in named_quantizers(model):
            quantizer.learned_absmax.mul_(0.37)  # where no weights would put it
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = _attached(enabled=enabled, granularity=granularity, scale="learned")
    loaded.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    copied = copy.deepcopy(model)
    for other in (loaded, copied):
        for _, layer in other.named_modules():
            if hasattr(layer, "enabled"):
                layer.enabled = True
        assert torch.equal(other(x), model(x))
        assert other.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        for _, quantizer in named_quantizers(copied):
            quantizer.learned_absmax.zero_()
    assert torch.equal(loaded(x), model(x))
    assert not torch.equal(copied(x), model(x))


def test_the_default_has_no_parameter_more() -> None:
    assert list(DeadZoneQuantizer().state_dict()) == ["logit_dz", "logit_bit"]


# ----------------------------------------------------------------------------------------------------------- all of it


@pytest.mark.parametrize("learnable_bit", few([True, False]))
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
def test_two_training_steps_of_a_resnet_have_finite_gradients(options: dict[str, str], learnable_bit: bool) -> None:
    model = MODELS["resnet20"](num_classes=10)
    attach_weight_quantizers(model, [], "deadzone", {"learnable_bit": learnable_bit, **options})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) is parameter.requires_grad, name
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
        optimizer.step()
    learned = [name for name in start if name.endswith("learned_absmax")]
    assert len(learned) == (20 if options["scale"] == "learned" else 0)
    for name in learned:
        assert not torch.equal(start[name], model.get_parameter(name)), name
    assert all(quantizer.get_bitwidth().shape == () for _, quantizer in named_quantizers(model))


class _OnDevice(TorchDispatchMode):
    """Fails on what a GPU would make the host wait for, and on float64, which Apple's does not have."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = str(function), kwargs or {}
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"))
        if "index" in name:
            masks = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
            assert all(mask.dtype not in (torch.bool, torch.uint8) for mask in masks[1:]), "boolean indexing"
        result = function(*args, **kwargs)
        made = [part for part in tree_leaves(result) if isinstance(part, Tensor)]
        assert all(tensor.dtype not in (torch.float64, torch.complex128) for tensor in made), name
        return result


@each("options", OPTIONS)
@each("learnable_bit", [True, False])
def test_no_option_makes_a_gpu_wait_or_needs_float64(options: dict[str, str], learnable_bit: bool) -> None:
    quantizer = DeadZoneQuantizer(learnable_bit=learnable_bit, **options)
    w = torch.randn(4, 3, 3, 3, requires_grad=True)
    with _OnDevice():
        for _ in range(2):
            quantizer(w).sum().backward()
        quantizer.get_bitwidth()


def test_attached_quantizers_do_not_make_a_gpu_wait_or_need_float64() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(54, 2))
    attach_weight_quantizers(model, ["3"], "deadzone", {"granularity": "channel", "absmax_over": "nonzero"})
    attach_weight_quantizers(model[3], [], "uniform", {"bitwidth": 3})
    with _OnDevice():
        model(torch.randn(2, 3, 3, 3)).square().sum().backward()


@each(
    ("options", "message"),
    [
        ({"granularity": "filter"}, r"granularity='filter': must be 'layer' or 'channel'"),
        ({"granularity": None}, r"granularity=None: must be 'layer' or 'channel'"),
        ({"scale": "lsq"}, r"scale='lsq': must be 'absmax' or 'learned'"),
        ({"scale": True}, r"scale=True: must be 'absmax' or 'learned'"),
        ({"absmax_over": []}, r"absmax_over=\[\]: must be 'all' or 'nonzero'"),
    ],
)
def test_an_unknown_option_is_an_error_that_lists_the_choices(options: dict[str, object], message: str) -> None:
    with pytest.raises(CodeqError, match=message):
        DeadZoneQuantizer(**options)


def test_absmax_checks_its_granularity() -> None:
    with pytest.raises(CodeqError, match=r"granularity='row': must be 'layer' or 'channel'"):
        absmax(Tensor([1.0]), granularity="row")


@each("scale", ["learned", "held"])
def test_a_scale_without_values_takes_its_shape_from_a_state_dict(scale):
    source, target = (DeadZoneQuantizer(granularity="channel", scale=scale) for _ in range(2))
    source(torch.randn(3, 2, 1, 1))
    target.load_state_dict(source.state_dict())
    assert target.stored_scale.shape == (3, 1, 1, 1)
    assert torch.equal(target.stored_scale, source.stored_scale)


@each("scale", ["absmax", "learned", "held"])
def test_a_scale_that_is_set_shares_no_memory_with_its_source(scale):
    quantizer, value = DeadZoneQuantizer(scale=scale), torch.tensor(0.5)
    quantizer.set_scale(value)
    value.fill_(7.0)
    assert quantizer.stored_scale.item() == 0.5
