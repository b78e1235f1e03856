"""The CoDeQ dead-zone quantizer (arXiv 2512.12981): pure functions, and thin modules that own the parameters.

Symbols follow the paper: ``w`` weights, ``b`` bits, ``d`` dead-zone width, ``s`` step, ``R`` absmax, and
``Q = 2^(b-1) - 1``.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from codeq.errors import CodeqError
from codeq.registry import Registry

MIN_BITS = 2
MAX_BITS = 16  # beyond it neighbouring levels are no longer distinct in float32
QUANTILE = 0.99
STEP_EPSILON = 1e-8

AbsmaxOver = Literal["all", "nonzero"]
Granularity = Literal["layer", "channel"]
Scale = Literal["absmax", "learned"]


def _check_choice(name: str, value: object, choices: Any) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise CodeqError(f"{name}={value!r}: must be {' or '.join(map(repr, allowed))}")


class _RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004  (autograd's signature)
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        return grads[0]


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest integer (halves to even), with the gradient of the identity (straight-through).

    Examples
    --------
    >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
    >>> round_ste(x).sum().backward()
    >>> round_ste(x).tolist(), x.grad.tolist()
    ([0.0, 2.0], [1.0, 1.0])
    """
    return _RoundSTE.apply(x)


def absmax(w: Tensor, over: AbsmaxOver = "all", granularity: Granularity = "layer") -> Tensor:
    """The robust magnitude `R`: the 0.99 quantile of ``|w|``, linearly interpolated (paper §6.1). Carries no gradient.

    Parameters
    ----------
    w : Tensor
        Weights of any shape.
    over : {"all", "nonzero"}
        All weights (the paper's), or only those that are not exactly zero. When a recipe sets most latent weights to
        zero, the quantile over all of them collapses towards 0 and takes every level with it.
    granularity : {"layer", "channel"}
        One `R` for all weights (the paper's), or one for each index of the first dimension: an output channel of a
        conv or linear layer.

    Returns
    -------
    Tensor
        ``[]``, or ``[c_out, 1, …]`` with as many dimensions as `w`, in the unit of the weights.

    Raises
    ------
    CodeqError
        For another `over` or `granularity`, and for an empty tensor.

    Examples
    --------
    >>> absmax(torch.arange(101.0)).item()
    99.0
    >>> absmax(torch.tensor([0.0, 0.0, 0.0, 2.0]), over="nonzero").item()
    2.0
    >>> absmax(torch.tensor([[1.0, -1.0], [3.0, 3.0]]), granularity="channel").tolist()
    [[1.0], [3.0]]
    """
    _check_choice("absmax_over", over, AbsmaxOver)
    _check_choice("granularity", granularity, Granularity)
    if not w.numel():
        raise CodeqError("a layer without weights has no absmax")
    kept = () if granularity == "layer" else (len(w), *(1,) * (w.dim() - 1))
    magnitude = w.detach().abs().reshape(*kept, -1)
    size = magnitude.shape[-1]
    if over == "nonzero":
        # Sorting keeps the count of zeros on the device; a boolean mask would wait for a GPU, and so would an index.
        ordered = magnitude.sort().values
        zeros = (magnitude == 0).sum(-1, keepdim=True)
        place = zeros + QUANTILE * (size - zeros - 1).clamp(min=0).double()
        place = place.clamp(max=size - 1)
        below = place.floor().long()
        above = (below + 1).clamp(max=size - 1)
        weight = (place - below).to(magnitude.dtype)
        return torch.lerp(ordered.gather(-1, below), ordered.gather(-1, above), weight).squeeze(-1)
    position = QUANTILE * (size - 1)
    low = int(position)
    # Only the top hundredth is ordered: an order of magnitude faster than `torch.quantile`, and without its size limit.
    top = magnitude.topk(size - low).values
    return torch.lerp(top[..., -1], top[..., max(size - low - 2, 0)], position - low)


def positive_levels(bits: Tensor | float) -> Tensor | float:
    """`Q = 2^(b-1) - 1`, the number of levels on each side of zero.

    Examples
    --------
    >>> positive_levels(4)
    7
    """
    return 2 ** (bits - 1) - 1


def _constant_levels(bits: Tensor | float) -> Tensor | float:
    return positive_levels(bits.detach() if isinstance(bits, Tensor) else bits)


def dead_zone_width(logit: Tensor, absmax: Tensor) -> Tensor:
    """`d = 2 R (1 - tanh|θ_dz|)`, paper eq. (15): θ = 0 zeroes everything up to `R`, a large θ almost nothing.

    Examples
    --------
    >>> dead_zone_width(torch.tensor(0.0), torch.tensor(0.5)).item()
    1.0
    """
    return 2 * absmax * (1 - torch.tanh(logit.abs()))


def learned_bits(logit: Tensor, max_bits: int) -> Tensor:
    """`b = round(tanh|θ_bit| (b_max - b_min) + b_min)` with `b_min = 2`, paper eq. (18), straight-through rounding.

    Examples
    --------
    >>> learned_bits(torch.tensor([0.0, 3.0]), max_bits=8).tolist()
    [2.0, 8.0]
    """
    return round_ste(torch.tanh(logit.abs()) * (max_bits - MIN_BITS) + MIN_BITS)


def pruning_aware_step(absmax: Tensor, dead_zone: Tensor, bits: Tensor | float) -> Tensor:
    """`s = (R - d/2) / (Q - 1/2) + 1e-8`, paper eq. (12): the levels outside the dead-zone share what it leaves of `R`.

    Examples
    --------
    >>> round(pruning_aware_step(torch.tensor(1.0), torch.tensor(0.5), bits=3).item(), 4)
    0.3
    """
    return (absmax - dead_zone / 2) / (positive_levels(bits) - 0.5) + STEP_EPSILON


class _DeadZoneQuantize(torch.autograd.Function):
    """Eq. (10) in one node: its derivative is three lines (paper §5.1), and autograd's version thirty kernels."""

    @staticmethod
    def forward(w: Tensor, step: Tensor, dead_zone: Tensor, levels: Any) -> tuple[Tensor, Tensor, Tensor]:
        magnitude, sign = w.abs(), w.sign()
        shift = dead_zone / 2 - step / 2
        u = sign * (magnitude - shift).relu() / step
        q = u.round().clamp(-levels, levels)
        # The division may round a weight on the dead-zone's edge outwards; eq. (11) holds to the last bit.
        q = q * (magnitude > dead_zone / 2)
        return step * q + shift * q.sign(), q, u

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        w, step, dead_zone, _ = inputs
        _, q, u = output
        ctx.mark_non_differentiable(q, u)
        ctx.save_for_backward(w, q, u)
        ctx.shapes = step.shape, dead_zone.shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        grad = grads[0]
        w, q, u = ctx.saved_tensors
        grad_step = grad_dead_zone = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # shift δ = (d - s) / 2 carries half of its gradient to d and minus half to s.
            half_shift = grad * (q.sign() - w.sign()) / 2
            grad_dead_zone = half_shift.sum_to_size(ctx.shapes[1])
            grad_step = (grad * (q - u) - half_shift).sum_to_size(ctx.shapes[0])
        return grad, grad_step, grad_dead_zone, None


class _LearnedAbsmaxGradient(torch.autograd.Function):
    """The identity on ŵ that hands a learned ``R = |ρ|`` its gradient, by the rule of LSQ (arXiv 1902.08153, eq. (3)).

    A node of its own, because inside the clip the rule is what `_DeadZoneQuantize` and the chain through ``s(R)`` and
    ``d(R)`` give, but outside it is not. Straight-through there means ``∂ŵ/∂s = q - u < 0`` for a positive weight: a
    gradient that asks for a larger ŵ would make R smaller. LSQ takes the true derivative of what comes out, the
    largest level ``s Q + δ = R``, hence ``∂ŵ/∂R = sign(w)``. The gradients of w, θ_dz and θ_bit stay the paper's.
    """

    @staticmethod
    def forward(quantized: Tensor, *_: Any) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, *tensors, ctx.levels = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        rho, w, q, u, theta = ctx.saved_tensors
        width = 1 - torch.tanh(theta.abs())  # d/2 is this share of R
        step_slope = (1 - width) / (ctx.levels - 0.5)
        inside = (q - u) * step_slope + (q.sign() - w.sign()) * (width - step_slope / 2)
        slope = torch.where(w.abs() > rho.abs(), w.sign(), inside)
        # LSQ's gradient scale 1 / sqrt(N Q), N weights a scale: a sum over many must not outrun the weights' own steps.
        gradient_scale = (w.numel() // rho.numel() * ctx.levels) ** -0.5
        # The derivative of |ρ|, but 1 at 0: the R of a channel that was all zero can grow again.
        sign = 1 - 2 * (rho < 0).to(rho.dtype)
        return grad, (grad * slope).sum_to_size(rho.shape) * gradient_scale * sign, None, None, None, None, None


def dead_zone_quantize(w: Tensor, step: Tensor, dead_zone: Tensor, bits: Tensor | float) -> Tensor:
    """Quantize with a zero bin of width `d` and levels `s` apart, paper eq. (10) and (11).

    With ``δ = d/2 - s/2`` and ``u = sign(w) ReLU(|w| - δ) / s`` the result is ``s q + δ sign(q)``,
    ``q = clip(round(u), -Q, Q)``. Straight-through on round, ReLU and clip gives ``∂ŵ/∂w = 1`` (also at ``w = 0``, so
    that exact zeros can come back), ``∂ŵ/∂δ = sign(q) - sign(w)`` and ``∂ŵ/∂s = q - u``; the clip passes nothing to
    `bits`, which acts through `step`.

    Parameters
    ----------
    w : Tensor
        Latent weights of any shape.
    step : Tensor
        Step size `s`, ``[]`` or broadcastable to `w`.
    dead_zone : Tensor
        Dead-zone width `d`, ``[]`` or broadcastable to `w`; `d = s` is the uniform quantizer, eq. (13).
    bits : Tensor or int
        Bit-width `b` with ``Q = 2^(b-1) - 1``.

    Returns
    -------
    Tensor
        ``ŵ`` of the shape of `w`.

    Examples
    --------
    >>> w = torch.tensor([-1.0, -0.3, 0.1, 0.6])
    >>> dead_zone_quantize(w, step=torch.tensor(0.3), dead_zone=torch.tensor(0.5), bits=3).tolist()
    [-1.0, -0.4..., 0.0, 0.7...]
    """
    quantized, _, _ = _DeadZoneQuantize.apply(w, step, dead_zone, _constant_levels(bits))
    return quantized


def uniform_quantize(w: Tensor, step: Tensor, bits: Tensor | float) -> Tensor:
    """Mid-tread uniform symmetric quantization ``s · clip(round(w / s), -Q, Q)``, paper eq. (1) and (2).

    It is the dead-zone quantizer with `d = s` (eq. (13)), straight-through in the same way.

    Examples
    --------
    >>> uniform_quantize(torch.tensor([-1.0, 0.2, 0.9]), step=torch.tensor(0.5), bits=2).tolist()
    [-0.5, 0.0, 0.5]
    """
    return dead_zone_quantize(w, step, step, bits)


def _check_bits(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not MIN_BITS <= value <= MAX_BITS:
        raise CodeqError(f"{name}={value!r}: must be an integer from {MIN_BITS} to {MAX_BITS} (bits)")
    return value


class DeadZoneQuantizer(nn.Module):
    """The paper's quantizer: one learnable dead-zone and one learnable bit-width for a whole weight tensor.

    `granularity` and `scale` go beyond the paper, whose limits they lift; their defaults are the paper's.

    Parameters
    ----------
    fixed_bit_val : int
        Bit-width in force when `learnable_bit` is false.
    max_bits : int
        Largest bit-width that can be learned, `b_max` (the smallest is 2).
    init_bit_logit, init_deadzone_logit : float
        Start of ``θ_bit`` and ``θ_dz``; 3.0 is almost `max_bits` and almost no dead-zone.
    learnable_bit, learnable_deadzone : bool
        Whether ``logit_bit`` and ``logit_dz`` train; otherwise they are frozen.
    absmax_over : {"all", "nonzero"}
        What the 0.99 quantile `R` is taken over, see `absmax`.
    granularity : {"layer", "channel"}
        One `R`, and with it one `d` and `s`, for the whole tensor or for each output channel (its first dimension).
        ``θ_dz`` and ``θ_bit`` are shared by all channels, so a layer has one bit-width either way.
    scale : {"absmax", "learned"}
        `R` follows the weights, or is a parameter ``learned_absmax`` that starts there, trained as in LSQ (arXiv
        1902.08153). It is created empty and takes shape and value from the first weights it meets, which is when the
        quantizer is attached.

    Raises
    ------
    CodeqError
        For a bit-width outside 2 … 16 or an unknown `absmax_over`, `granularity` or `scale`.

    Examples
    --------
    >>> quantizer = DeadZoneQuantizer(max_bits=8)
    >>> w = torch.linspace(-1, 1, 101)
    >>> quantizer(w).shape, quantizer.get_bitwidth()
    (torch.Size([101]), tensor(8))
    >>> quantizer = DeadZoneQuantizer(granularity="channel", scale="learned")
    >>> quantizer(torch.tensor([[-1.0, 1.0], [2.0, 2.0]])).shape, quantizer.learned_absmax.tolist()
    (torch.Size([2, 2]), [[1.0], [2.0]])
    """

    def __init__(
        self,
        fixed_bit_val: int = 4,
        max_bits: int = 8,
        init_bit_logit: float = 3.0,
        init_deadzone_logit: float = 3.0,
        learnable_bit: bool = True,
        learnable_deadzone: bool = True,
        absmax_over: AbsmaxOver = "all",
        granularity: Granularity = "layer",
        scale: Scale = "absmax",
    ) -> None:
        super().__init__()
        _check_choice("absmax_over", absmax_over, AbsmaxOver)
        _check_choice("granularity", granularity, Granularity)
        _check_choice("scale", scale, Scale)
        self.fixed_bit_val = _check_bits("fixed_bit_val", fixed_bit_val)
        self.max_bits = _check_bits("max_bits", max_bits)
        self.learnable_bit = learnable_bit
        self.absmax_over = absmax_over
        self.granularity = granularity
        self.scale = scale
        self.logit_dz = nn.Parameter(torch.tensor(float(init_deadzone_logit)), requires_grad=learnable_deadzone)
        self.logit_bit = nn.Parameter(torch.tensor(float(init_bit_logit)), requires_grad=learnable_bit)
        if scale == "learned":
            # R = |ρ| rather than exp(ρ): R can start at 0, and weight decay shrinks it along with the weights.
            self.learned_absmax = nn.Parameter(torch.empty(0))

    def _bits(self) -> Tensor | int:
        return learned_bits(self.logit_bit, self.max_bits) if self.learnable_bit else self.fixed_bit_val

    def magnitude(self, w: Tensor) -> Tensor:
        """Return the `R` in force for `w`, ``[]`` or ``[c_out, 1, …]`` a channel, in the unit of `w`; no gradient."""
        if self.scale == "absmax":
            return absmax(w, self.absmax_over, self.granularity)
        if not self.learned_absmax.numel():
            # Through `.data` it remains the parameter that an optimizer may already hold.
            self.learned_absmax.data = absmax(w, self.absmax_over, self.granularity)
        return self.learned_absmax.detach().abs()

    def grid(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
        """Return step `s`, dead-zone width `d` (as `magnitude`, in the unit of `w`) and bit-width `b` for `w`."""
        r, bits = self.magnitude(w), self._bits()
        dead_zone = dead_zone_width(self.logit_dz, r)
        return pruning_aware_step(r, dead_zone, bits), dead_zone, bits

    def forward(self, w: Tensor) -> Tensor:
        """Return the quantized weights ``ŵ``, of the shape of `w`."""
        step, dead_zone, bits = self.grid(w)
        if self.scale == "absmax":
            return dead_zone_quantize(w, step, dead_zone, bits)
        levels = _constant_levels(bits)
        quantized, q, u = _DeadZoneQuantize.apply(w, step, dead_zone, levels)
        return _LearnedAbsmaxGradient.apply(quantized, self.learned_absmax, w, q, u, self.logit_dz, levels)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        stored = state_dict.get(f"{prefix}learned_absmax")
        if self.scale == "learned" and stored is not None and not self.learned_absmax.numel():
            self.learned_absmax.data = self.learned_absmax.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def get_bitwidth(self) -> Tensor:
        """Return the integer bit-width in force, ``[]``, in bits."""
        bits = self._bits()
        return bits.detach().long() if isinstance(bits, Tensor) else self.logit_bit.new_tensor(bits, dtype=torch.long)

    def extra_repr(self) -> str:
        """Say which rules of bit-width and scale are in force."""
        rule = f"max_bits={self.max_bits}" if self.learnable_bit else f"bits={self.fixed_bit_val}"
        options = f"granularity={self.granularity!r}, scale={self.scale!r}"
        return f"{rule}, absmax_over={self.absmax_over!r}, {options}"


DeadZoneLDZCompander = DeadZoneQuantizer


class UniformSymmetric(nn.Module):
    """Mid-tread uniform symmetric quantizer of fixed bit-width, paper eq. (1) and (2).

    Parameters
    ----------
    bitwidth : int
        Bits, 2 … 16.

    Examples
    --------
    >>> UniformSymmetric(bitwidth=2)(torch.tensor([-1.0, 0.2, 1.0])).tolist()
    [-1.0, 0.0, 1.0]
    """

    def __init__(self, bitwidth: int = 8) -> None:
        super().__init__()
        self.bitwidth = _check_bits("bitwidth", bitwidth)

    def forward(self, w: Tensor) -> Tensor:
        """Return the quantized weights ``ŵ``, of the shape of `w`."""
        step = absmax(w) / positive_levels(self.bitwidth)
        return uniform_quantize(w, step.clamp(min=torch.finfo(w.dtype).tiny), self.bitwidth)

    def get_bitwidth(self) -> Tensor:
        """Return the bit-width, ``[]``, in bits."""
        return torch.tensor(self.bitwidth)


QUANTIZERS: Registry[type[nn.Module]] = Registry("quantizer")
QUANTIZERS["deadzone"] = DeadZoneQuantizer
QUANTIZERS["uniform"] = UniformSymmetric
