"""Dead-zone quantization as pure functions of tensors, with the straight-through gradients of paper §5.1."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from codeq.common.checks import check_choice

Grid = Literal["paper", "affine"]

MIN_BITS = 2
STEP_EPSILON = 1e-8
MAX_OFFSET = 2**15  # with up to 2^15 levels above it, the integers of an affine grid stay distinct in float32


def widen(values: Tensor) -> Tensor:
    """Return half-precision values as float32, others as they are.

    A sum of squares in bfloat16 keeps two digits, and float16 holds neither small steps nor the epsilon of eq. (12).

    Examples
    --------
    >>> widen(torch.ones(1, dtype=torch.bfloat16)).dtype, widen(torch.ones(1, dtype=torch.double)).dtype
    (torch.float32, torch.float64)
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Return `value`, which has no gradient, with that of `x`; ``x - x`` is 0 to the last bit."""
    return x - x.detach() + value


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest integer (halves to even), with the gradient of the identity (straight-through).

    Examples
    --------
    >>> x = torch.tensor([0.4, 1.6], requires_grad=True)
    >>> round_ste(x).sum().backward()
    >>> round_ste(x).tolist(), x.grad.tolist()
    ([0.0, 2.0], [1.0, 1.0])
    """
    return _straight_through(x, x.detach().round())


def positive_levels(bits: Tensor | float) -> Tensor | float:
    """Return `Q = 2^(b-1) - 1`, the number of levels on each side of zero.

    Examples
    --------
    >>> positive_levels(4)
    7
    """
    return 2 ** (bits - 1) - 1


def constant_levels(bits: Tensor | float) -> Tensor | float:
    """Return `Q` without a gradient, because the clip passes none to the bits."""
    return positive_levels(bits.detach() if isinstance(bits, Tensor) else bits)


def dead_zone_width(logit: Tensor, absmax: Tensor) -> Tensor:
    """Return `d = 2 R (1 - tanh|θ_dz|)`, paper eq. (15): θ = 0 zeroes all weights up to `R`, a large θ almost none.

    Examples
    --------
    >>> dead_zone_width(torch.tensor(0.0), torch.tensor(0.5)).item()
    1.0
    """
    return 2 * absmax * dead_zone_share(logit)


def learned_bits(logit: Tensor, max_bits: int | Tensor) -> Tensor:
    """Return `b = round(tanh|θ_bit| (b_max - b_min) + b_min)`, `b_min = 2`, paper eq. (18), rounded straight-through.

    Examples
    --------
    >>> learned_bits(torch.tensor([0.0, 3.0]), max_bits=8).tolist()
    [2.0, 8.0]
    """
    return round_ste(torch.tanh(widen(logit).abs()) * (max_bits - MIN_BITS) + MIN_BITS)


def pruning_aware_step(absmax: Tensor, dead_zone: Tensor, bits: Tensor | float) -> Tensor:
    """Return `s = (R - d/2) / (Q - 1/2) + 1e-8`, paper eq. (12): `Q` levels between the dead-zone and `R`.

    Examples
    --------
    >>> round(pruning_aware_step(torch.tensor(1.0), torch.tensor(0.5), bits=3).item(), 4)
    0.3
    """
    return (absmax - dead_zone / 2) / (positive_levels(bits) - 0.5) + STEP_EPSILON


def dead_zone_share(logit: Tensor) -> Tensor:
    """Return ``d / (2 R) = 1 - tanh|θ_dz|``, the dead-zone of paper eq. (15) as a fraction of its largest.

    Examples
    --------
    >>> dead_zone_share(torch.tensor([0.0, 0.5])).tolist()
    [1.0, 0.53...]
    """
    return 1 - torch.tanh(widen(logit).abs())


def affine_offset(share: Tensor, bits: Tensor | float) -> Tensor:
    """Return the integer `m` whose grid ``s (m + k)``, ``k = 1 … Q``, has a dead-zone next to the wanted ``d / (2 R)``.

    The paper's grid has ``d / s = 2 share (Q - 1/2) / (1 - share)`` by eq. (12); `m` is the integer nearest to
    ``(d / s - 1) / 2``, at least 0, where the dead-zone is one step wide (the uniform quantizer).

    Examples
    --------
    >>> affine_offset(torch.tensor([0.1, 0.25, 0.5, 1.0]), bits=4).tolist()
    [0.0, 2.0, 6.0, 32768.0]
    """
    share, levels = share.detach(), constant_levels(bits)
    return ((share * levels - 0.5) / (1 - share)).round().clamp(0, MAX_OFFSET)


def dead_zone_grid(
    absmax: Tensor, share: Tensor, bits: Tensor | float, grid: Grid = "paper"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the step `s`, the dead-zone width `d` and ``d / (2 R)`` of a dead-zone quantizer.

    On the affine grid `d` is ``(2m + 1) s`` for an integer `m` (see `affine_offset`), hence ``δ = m s``, and the levels
    are ``s (m + k)``: an integer times a scale. The largest level is still `R`, so ``s = R / (Q + m)``, which is eq.
    (12) for this `d`. The gradient of `d` passes straight through to the wanted width of eq. (15), that of `s` is that
    of eq. (12) at the `d` in force.

    Parameters
    ----------
    absmax : Tensor
        Scale `R`, ``[]`` or broadcastable to the weights. Of half precision, the results are float32.
    share : Tensor
        Wanted ``d / (2 R)``, ``[]`` or of the shape of `absmax`.
    bits : Tensor or int
        Bit-width `b`.
    grid : {"paper", "affine"}
        Whether `d` takes any value, or only odd multiples of `s`.

    Raises
    ------
    CodeqError
        For another `grid`.

    Examples
    --------
    >>> step, dead_zone, _ = dead_zone_grid(torch.tensor(0.9), torch.tensor(0.25), bits=4, grid="affine")
    >>> round(step.item(), 6), round(dead_zone.item(), 6)
    (0.1, 0.5)
    """
    absmax, share, bits = widen(absmax), widen(share), widen(bits) if isinstance(bits, Tensor) else bits
    dead_zone = 2 * absmax * share
    if grid == "paper":
        return pruning_aware_step(absmax, dead_zone, bits), dead_zone, share
    if grid != "affine":  # compiled programs need not follow the check
        check_choice("grid", grid, Grid)
    offset, levels = affine_offset(share, bits), constant_levels(bits)
    exact = (absmax.detach() + STEP_EPSILON) / (levels + offset)
    dead_zone = _straight_through(dead_zone, (2 * offset + 1) * exact)
    step = _straight_through(pruning_aware_step(absmax, dead_zone, bits), exact)
    return step, dead_zone, (offset + 0.5) / (levels + offset)


class _DeadZoneQuantize(torch.autograd.Function):
    """Eq. (10) with the gradients of paper §5.1 written out; autograd would launch some thirty kernels for them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, step: Tensor, dead_zone: Tensor, levels: Any) -> tuple[Tensor, Tensor, Tensor]:
        wide = widen(w)
        magnitude, sign = wide.abs(), wide.sign()
        shift = dead_zone / 2 - step / 2
        u = sign * (magnitude - shift).relu() / step
        q = u.round().clamp(-levels, levels)
        # The division may round a weight on the edge of the dead-zone outwards; eq. (11) must hold exactly.
        q = q * (magnitude > dead_zone / 2)
        return (step * q + shift * q.sign()).to(w.dtype), q, u

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
            # The shift δ = (d - s) / 2 passes half of its gradient to d and minus half to s.
            half_shift = grad * (q.sign() - w.sign()) / 2
            grad_dead_zone = half_shift.sum_to_size(ctx.shapes[1])
            grad_step = (grad * (q - u) - half_shift).sum_to_size(ctx.shapes[0])
        return grad, grad_step, grad_dead_zone, None


def dead_zone_quantize(w: Tensor, step: Tensor, dead_zone: Tensor, bits: Tensor | float) -> Tensor:
    """Quantize with a zero bin of width `d` and levels `s` apart, paper eq. (10) and (11).

    With ``δ = d/2 - s/2`` and ``u = sign(w) ReLU(|w| - δ) / s`` the result is ``s q + δ sign(q)``,
    ``q = clip(round(u), -Q, Q)``. Straight-through on round, ReLU and clip gives ``∂ŵ/∂w = 1`` (also at ``w = 0``, so
    that exact zeros can grow again), ``∂ŵ/∂δ = sign(q) - sign(w)`` and ``∂ŵ/∂s = q - u``; the clip passes nothing to
    `bits`, which acts through `step`.

    Parameters
    ----------
    w : Tensor
        Latent weights of any shape; those of half precision are quantized in float32.
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
    return dead_zone_codes(w, step, dead_zone, bits)[0]


def dead_zone_codes(w: Tensor, step: Tensor, dead_zone: Tensor, bits: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``ŵ`` as `dead_zone_quantize` does, with the integers ``q`` and the unrounded ``u`` behind it.

    Examples
    --------
    >>> w = torch.tensor([-1.0, -0.3, 0.1, 0.6])
    >>> dead_zone_codes(w, step=torch.tensor(0.3), dead_zone=torch.tensor(0.5), bits=3)[1].tolist()
    [-3.0, -1.0, 0.0, 2.0]
    """
    return _DeadZoneQuantize.apply(w, step, dead_zone, constant_levels(bits))


def uniform_quantize(w: Tensor, step: Tensor, bits: Tensor | float) -> Tensor:
    """Quantize uniformly and symmetrically (mid-tread): ``s · clip(round(w / s), -Q, Q)``, paper eq. (1) and (2).

    It is the dead-zone quantizer with `d = s` (eq. (13)), with the same straight-through gradient.

    Examples
    --------
    >>> uniform_quantize(torch.tensor([-1.0, 0.2, 0.9]), step=torch.tensor(0.5), bits=2).tolist()
    [-0.5, 0.0, 0.5]
    """
    return dead_zone_quantize(w, step, step, bits)
