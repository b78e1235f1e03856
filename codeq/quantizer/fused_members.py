"""Members of a fused group: the layers whose weights can be quantized together, and their one flat buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codeq.quantizer.functions import widen
from codeq.quantizer.layers import WeightQuantization, latent_weight, sole_quantization
from codeq.quantizer.modules import DeadZoneQuantizer, UniformSymmetric, computes_as


@dataclass(frozen=True, eq=False)
class Member:
    """One layer of a fused group; its weights fill `segments` equal parts of the flat buffer, one for each scale.

    What modules look up by name in every step is a field: hundreds of lookups would take as long as a fused operation.
    """

    quantization: WeightQuantization
    quantizer: Any
    w: nn.Parameter
    vector: Tensor  # the weights as a view `[n]`, in memory order
    size: int  # number of weights
    segments: int
    learns_scale: bool
    has_default_scale: bool  # whether `R` is the paper's: the quantile over all weights of the layer

    def parameter(self, name: str) -> Tensor:
        """Return a parameter of the quantizer, without gradients inside `quantizer_parameters_detached`."""
        parameter: Tensor = getattr(self.quantizer, name)
        return parameter.detach() if self.quantization.parameters_detached else parameter


def kind(member: Member) -> tuple[str, str, str, str]:
    """Return what the members of one group have in common: device, dtype, quantizer, and its grid."""
    quantizer = member.quantizer
    return str(member.w.device), str(member.w.dtype), type(quantizer).__name__, getattr(quantizer, "grid", "")


def as_member(layer: nn.Module) -> Member | None:
    """Return the layer as a member of a fused group, or `None` if it must be quantized separately."""
    quantization = sole_quantization(layer)
    if quantization is None:
        return None
    quantizer, w = quantization.quantizer, latent_weight(layer)
    # A subclass or a replaced forward may quantize differently, and a hook must see its call.
    hooked = quantizer._forward_hooks or quantizer._forward_pre_hooks
    hooked = hooked or quantizer._backward_hooks or quantizer._backward_pre_hooks
    cls = type(quantizer)
    if cls not in (DeadZoneQuantizer, UniformSymmetric) or not computes_as(quantizer, cls) or hooked:
        return None
    dense = w.is_contiguous() or (w.dim() == 4 and w.is_contiguous(memory_format=torch.channels_last))
    per_channel = quantizer.granularity == "channel"
    if not w.numel() or not dense or (per_channel and quantization.transposed_groups):
        return None
    default = quantizer.scale == "absmax" and not per_channel and quantizer.absmax_over == "all"
    vector, segments = in_memory_order(w), len(w) if per_channel else 1
    return Member(quantization, quantizer, w, vector, w.numel(), segments, quantizer.scale == "learned", default)


def in_memory_order(w: Tensor) -> Tensor:
    """Return a dense tensor as a vector, `[n]`, without a copy; output channels stay contiguous pieces."""
    return w.detach().as_strided((w.numel(),), (1,))


def joined_weights(members: Sequence[Member]) -> Tensor:
    """Return all weights as one vector, `[n]`, half-precision ones as float32."""
    return widen(torch.cat([member.vector for member in members]))


def pieces(members: Sequence[Member], flat: Tensor) -> Sequence[Tensor]:
    """Split values per weight, `[n]` or `[rows, n]`, into the members' parts."""
    return flat.split([member.size for member in members], dim=-1)
