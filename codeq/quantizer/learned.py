"""Gradient of a learned scale, by the rule of LSQ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codeq.quantizer.functions import constant_levels, dead_zone_codes, widen


class _LearnedAbsmaxGradient(torch.autograd.Function):
    """Identity on ŵ with the gradient of a learned ``R = |ρ|`` by the rule of LSQ (arXiv 1902.08153, eq. (3)).

    Inside the clip, the rule is the chain through ``s(R)`` and ``d(R)`` of `dead_zone_quantize`. Outside it is not:
    straight-through there gives ``∂ŵ/∂s = q - u < 0`` for a positive weight, so a gradient that asks for a larger ŵ
    would make R smaller. LSQ takes the true derivative of the result, which is the largest level ``s Q + δ = R``, hence
    ``∂ŵ/∂R = sign(w)``. The gradients of θ_dz and θ_bit stay the paper's.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(quantized: Tensor, *_: Any) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        _, *tensors, levels = inputs
        tensor = isinstance(levels, Tensor)  # which `torch.func` follows only among the saved ones
        ctx.levels = None if tensor else levels
        ctx.save_for_backward(*tensors, levels if tensor else None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        *tensors, levels = ctx.saved_tensors
        rho, w, q, u, width = map(widen, tensors)
        levels = ctx.levels if levels is None else levels
        step_slope = (1 - width) / (levels - 0.5)
        inside = (q - u) * step_slope + (q.sign() - w.sign()) * (width - step_slope / 2)
        slope = torch.where(w.abs() > rho.abs(), w.sign(), inside)
        # LSQ's gradient scale 1 / sqrt(N Q) for N weights per scale: R must not move faster than the weights do.
        gradient_scale = (w.numel() // rho.numel() * levels) ** -0.5
        # The derivative of |ρ|, but 1 at 0: the R of a channel that was all zero can grow again.
        sign = 1 - 2 * (rho < 0).to(rho.dtype)
        return grad, (grad * slope).sum_to_size(rho.shape) * gradient_scale * sign, None, None, None, None, None


def learned_absmax_quantize(
    w: Tensor, step: Tensor, dead_zone: Tensor, bits: Tensor | float, rho: Tensor, share: Tensor
) -> Tensor:
    """Quantize like `dead_zone_quantize`, with a gradient for the learned scale ``R = |ρ|`` as well.

    A weight with ``|w| > R`` gets no gradient, by eq. (5) of LSQ: `R` does not follow the weights here, and
    straight-through on the clip would drive such weights away from it without an effect on ``ŵ``.

    Parameters
    ----------
    w, step, dead_zone, bits
        See `dead_zone_quantize`; `step` and `dead_zone` are computed from `R` and pass no gradient to it.
    rho : Tensor
        The parameter ``ρ``, ``[]`` or `[c_out, 1, …]`.
    share : Tensor
        ``d / (2 R)``, ``[]``; it does not depend on `R`.
    """
    reachable = torch.where(w.abs() > rho.abs(), w.detach(), w)
    quantized, q, u = dead_zone_codes(reachable, step, dead_zone, bits)
    return _LearnedAbsmaxGradient.apply(quantized, rho, w, q, u, share.detach(), constant_levels(bits))
