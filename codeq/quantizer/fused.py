"""Fused quantization: the weights of all layers of a model quantized together in a handful of operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from codeq.common.modes import without_autocast
from codeq.quantizer.functions import (
    constant_levels,
    dead_zone_grid,
    dead_zone_share,
    learned_bits,
    positive_levels,
    widen,
)
from codeq.quantizer.fused_members import Member, as_member, in_memory_order, joined_weights, kind, pieces
from codeq.quantizer.layers import Precomputed, cached_weights, distinct_layers
from codeq.quantizer.modules import UniformSymmetric
from codeq.quantizer.quantile import joint_absmax


@contextmanager
def fused_quantization(model: nn.Module) -> Iterator[None]:
    """Quantize the weights of `model` once, all layers together, for every use of ``layer.weight`` inside the context.

    It replaces `torch.nn.utils.parametrize.cached`: values and gradients (of the latent weights, ``θ_dz``, ``θ_bit``
    and a learned scale) equal those of the separate quantizers to float rounding. Layers with a quantizer of another
    class, with further parametrizations, or with hooks on their quantizer or a replaced forward of it are quantized one
    by one, also once. As with `cached`, leave the context before the weights change (``optimizer.step()``); inside that
    of another model, such as a teacher, a model that trains needs one of its own for each step. There are no second
    derivatives, and a layer that a step does not use gets gradients of zero instead of `None`.

    Parameters that `torch.func.functional_call` substitutes are quantized for themselves, except where a layer is
    quantized one by one, whose first weights stay for all uses. Transforms such as `torch.func.grad` can be used inside
    the context, but must not enter it: their tensors have no memory that could be joined.

    Parameters
    ----------
    model : Module
        With attached quantizers, or without any.

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> from codeq.quantizer.layers import latent_weight
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {})
    >>> with fused_quantization(net):
    ...     net(torch.ones(1, 4)).sum().backward()
    >>> latent_weight(net[0]).grad.shape
    torch.Size([3, 4])
    """
    members = sorted((m for _, layer in distinct_layers(model) if (m := as_member(layer))), key=kind)
    try:
        for _, group in groupby(members, kind):
            fused = list(group)
            for member, quantized in zip(fused, _quantize(fused), strict=True):
                sources = member.quantization.tensors(member.w)
                member.quantization.precomputed = Precomputed(sources, quantized)
        # The cache of PyTorch would return them for other parameters, too.
        separate = sum(isinstance(module, parametrize.ParametrizationList) for module in model.modules())
        with cached_weights(model, caching=separate > len(members)):
            yield
    finally:
        for member in members:
            member.quantization.precomputed = None


@lru_cache
@torch.inference_mode(False)  # a training could not use its tensors
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor that is on the device already from the second step on; a copy would make a GPU wait."""
    return torch.tensor(values, dtype=dtype, device="cpu").to(device)


def _quantize(members: Sequence[Member]) -> tuple[Tensor, ...]:
    """Return ``ŵ`` of every member."""
    flat = joined_weights(members)
    magnitude = flat.abs()
    step, dead_zone, levels, share = _grid(members, _scales(members, magnitude))
    weights = [member.w for member in members]
    scales = [member.parameter("learned_absmax") for member in members if member.learns_scale]
    return _FusedDeadZone.apply(members, flat, magnitude, levels, share, step, dead_zone, *weights, *scales)


@torch.no_grad()
def _scales(members: Sequence[Member], magnitude: Tensor) -> Tensor:
    """Return `R` of every segment, `[segments]`."""
    parts = zip(members, pieces(members, magnitude), strict=True)
    default = [piece for member, piece in parts if member.has_default_scale]
    if len(default) == len(members):
        return joint_absmax(default)
    quantiles = iter(joint_absmax(default).split(1) if default else ())
    scales = [next(quantiles) if m.has_default_scale else m.quantizer.magnitude(m.w).reshape(-1) for m in members]
    return widen(torch.cat(scales))


def _grid(members: Sequence[Member], absmax: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return step, dead-zone width, levels `Q` and the share ``d / 2R`` of every segment, each `[segments]`."""
    quantizers = [member.quantizer for member in members]
    place = {"dtype": absmax.dtype, "device": absmax.device}

    def constant(values: Sequence[float]) -> Tensor:
        return _constant(tuple(values), **place)

    def per_segment(values: Tensor) -> Tensor:
        counts = tuple(member.segments for member in members)
        if max(counts) == 1:
            return values
        return values.repeat_interleave(_constant(counts, torch.long, absmax.device), output_size=len(absmax))

    if isinstance(quantizers[0], UniformSymmetric):
        levels = per_segment(constant([float(positive_levels(q.bitwidth)) for q in quantizers]))
        step = (absmax / levels).clamp(min=torch.finfo(absmax.dtype).tiny)
        return step, step, levels, torch.zeros_like(step)
    learnable = [q.learnable_bit for q in quantizers]
    bits = constant([q.fixed_bit_val for q in quantizers])
    if any(learnable):
        logits = torch.stack([member.parameter("logit_bit") for member in members])
        learned = learned_bits(logits, constant([q.max_bits for q in quantizers]))
        bits = learned if all(learnable) else torch.where(constant(learnable).bool(), learned, bits)
    bits = per_segment(bits)
    theta = per_segment(torch.stack([member.parameter("logit_dz") for member in members]))
    step, dead_zone, share = dead_zone_grid(absmax, dead_zone_share(theta), bits, quantizers[0].grid)
    return step, dead_zone, cast(Tensor, constant_levels(bits)), share.detach()


class _FusedDeadZone(torch.autograd.Function):
    """Paper eq. (10) for all members, with the straight-through gradients of `dead_zone_quantize`.

    With ``u`` and ``q`` as there, ``∂ŵ/∂w = 1`` (0 beyond a learned scale), ``∂ŵ/∂d = (sign(q) - sign(w)) / 2`` and
    ``∂ŵ/∂s = q - u - ∂ŵ/∂d``. The backward pass computes them anew from the latent weights: kept from the forward pass
    they would take twice the memory of the weights during the whole step, beside the activations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        members: Sequence[Member],
        flat: Tensor,
        magnitude: Tensor,
        levels: Tensor,
        share: Tensor,
        step: Tensor,
        dead_zone: Tensor,
        *tensors: Tensor,  # weights, then learned scales
    ) -> tuple[Tensor, ...]:
        q, _, (shift, spacing) = _codes(members, magnitude, levels, step, dead_zone)
        quantized = (spacing * q).addcmul_(shift, q.clamp_max_(1)).mul_(torch.sign(flat, out=q)).to(members[0].w.dtype)
        ctx.members = members
        ctx.save_for_backward(levels, share, step, dead_zone, *tensors)
        return tuple(
            piece.as_strided(member.w.shape, member.w.stride())
            for piece, member in zip(pieces(members, quantized), members, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        members: Sequence[Member] = ctx.members
        if not any(ctx.needs_input_grad[5:7]) and not any(member.learns_scale for member in members):
            return (None,) * 7 + grads
        levels, share, step, dead_zone, *_ = ctx.saved_tensors  # which raises if the weights have changed since
        flat = joined_weights(members)
        magnitude, sign = flat.abs(), flat.sign()
        q, u, slopes = _codes(members, magnitude, levels, step, dead_zone)
        by_dead_zone, by_step = slopes  # ∂ŵ/∂d, and ∂ŵ/∂d + ∂ŵ/∂s, in place of what is no longer needed
        torch.clamp(q, max=1, out=by_dead_zone).sub_(1).mul_(sign).div_(2)
        torch.sub(q, u, out=by_step).mul_(sign)
        along = [_like(grad, member.w) for grad, member in zip(grads, members, strict=True)]
        grad_dead_zone, grad_step = _segment_sums(members, along, pieces(members, slopes))
        grad_step -= grad_dead_zone
        learned = [k for k, member in enumerate(members) if member.learns_scale]
        scale_slopes = _scale_slopes(members, by_step, by_dead_zone, sign, magnitude, levels, share) if learned else []
        grad_scales = [
            _segment_sums([members[k]], [along[k]], [slope[None]]).view_as(members[k].quantizer.learned_absmax)
            for k, slope in zip(learned, scale_slopes, strict=True)
        ]
        grads = tuple(_within_clip(grad, member) for grad, member in zip(grads, members, strict=True))
        return (None,) * 5 + (grad_step, grad_dead_zone, *grads, *grad_scales)


def _within_clip(grad: Tensor, member: Member) -> Tensor:
    """Return the gradient of a weight: none beyond a learned scale, see `learned_absmax_quantize`."""
    if not member.learns_scale:
        return grad
    return grad.masked_fill(member.w.detach().abs() > member.quantizer.learned_absmax.detach().abs(), 0)


def _codes(
    members: Sequence[Member], magnitude: Tensor, levels: Tensor, step: Tensor, dead_zone: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``|q|`` and ``|u|`` of every weight, each `[n]`, and its shift ``δ`` and step, `[2, n]`."""
    by_segment = torch.stack([dead_zone / 2 - step / 2, step, levels, dead_zone / 2])
    counts = [member.segments for member in members]
    sizes = [member.size // member.segments for member in members]
    by_weight = by_segment.new_empty(4, len(magnitude))
    for piece, part, size in zip(pieces(members, by_weight), by_segment.split(counts, dim=1), sizes, strict=True):
        if part.shape[1] == 1:
            piece.copy_(part)
        else:
            piece.view(4, -1, size).copy_(part.unsqueeze(2))
    shift, spacing, largest, edge = by_weight
    u = (magnitude - shift).relu_().div_(spacing)
    q = u.round()
    torch.minimum(q, largest, out=q)
    q *= edge.lt_(magnitude)  # as a float: a product with a tensor of bool takes ten times as long on a CPU
    return q, u, by_weight[:2]


def _like(grad: Tensor, w: Tensor) -> Tensor:
    """Return a gradient as a vector in the memory order of its weights."""
    if grad.stride() != w.stride():
        grad = torch.empty_strided(w.shape, w.stride(), dtype=grad.dtype, device=grad.device).copy_(grad)
    return widen(in_memory_order(grad))


def _segment_sums(members: Sequence[Member], grads: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """Return ``Σ grad · slope`` of every segment for each row of the slopes, `[rows, segments]`."""
    with without_autocast(grads[0].device):  # which a backward pass inherits, and on a GPU casts the operands of `mv`
        return torch.cat(
            [
                torch.mv(slope, grad).unsqueeze(1)
                if m.segments == 1
                else (grad * slope).unflatten(1, (m.segments, -1)).sum(2)
                for m, grad, slope in zip(members, grads, slopes, strict=True)
            ],
            dim=1,
        )


def _scale_slopes(
    members: Sequence[Member],
    by_step: Tensor,
    by_dead_zone: Tensor,
    sign: Tensor,
    magnitude: Tensor,
    levels: Tensor,
    share: Tensor,
) -> list[Tensor]:
    """Return ``∂ŵ/∂ρ`` of every member with a learned scale ``R = |ρ|``, as `learned_absmax_quantize` defines it."""
    segments = [member.segments for member in members]
    parts = zip(
        members, *(pieces(members, flat) for flat in (by_step, by_dead_zone, sign, magnitude)),
        levels.split(segments), share.split(segments), strict=True,
    )  # fmt: skip
    slopes = []
    for member, q_minus_u, half_sign, signs, magnitudes, level, width in parts:
        if member.learns_scale:
            rho = member.quantizer.learned_absmax.detach().view(-1, 1)
            step_slope = (1 - width) / (level - 0.5)
            rows = (member.segments, -1)
            inside = q_minus_u.view(rows) * step_slope[:, None]
            inside += half_sign.view(rows) * (2 * width - step_slope)[:, None]
            slope = torch.where(magnitudes.view(rows) > rho.abs(), signs.view(rows), inside)
            gradient_scale = (member.size // member.segments * level[:, None]) ** -0.5
            slopes.append((slope * gradient_scale * (1 - 2 * (rho < 0).to(rho.dtype))).flatten())
    return slopes
