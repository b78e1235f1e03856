"""Operations that channel flow follows, grouped by the elements that each element of the result depends on.

Every other operation is *opaque*: its whole result counts as computed from all of its inputs. LayerNorm, softmax and
the products of attention are opaque because they mix channels, unknown operations because they might.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from codeq.graph import known
from codeq.graph.overwriting import read_view, write_view

# The result's elements are elements of the inputs, moved, or constants.
STRUCTURAL_MODULES = (
    nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d,
    nn.ZeroPad3d, *known.PADDING_MODULES, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.UpsamplingNearest2d,
)  # fmt: skip
STRUCTURAL_FUNCTIONS = known.UNCHANGED_FUNCTIONS | {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.movedim, torch.squeeze, torch.unsqueeze,
    torch.cat, torch.stack, torch.hstack, torch.vstack, torch.dstack, torch.column_stack, torch.chunk, torch.split,
    torch.tensor_split, torch.unbind, torch.narrow, torch.select, torch.flip, torch.roll, torch.tile,
    torch.repeat_interleave, torch.broadcast_to, torch.index_select, operator.getitem, F.pad, F.pixel_shuffle,
    F.pixel_unshuffle, F.channel_shuffle,
    "flatten", "reshape", "reshape_as", "view", "view_as", "permute", "transpose", "movedim", "squeeze", "unsqueeze",
    "chunk", "split", "tensor_split", "unbind", "narrow", "select", "flip", "roll", "expand", "expand_as", "repeat",
    "repeat_interleave", "tile", "broadcast_to", "unfold", "unflatten", "index_select", read_view, write_view,
}  # fmt: skip
STRUCTURAL_ATTRIBUTES = {"T", "mT"}
STRUCTURAL_OVERWRITES = {"__setitem__", "copy_", "fill_", "zero_", "masked_fill_", "index_copy_", "index_fill_"}

# Each element of the result is computed from the same elements of the inputs, which are broadcast.
ELEMENTWISE_MODULES = (*known.ZERO_KEEPING_MODULES, *known.SHIFTING_MODULES, nn.Hardtanh, nn.Threshold)
MULTIPLICATIONS = {torch.mul, "mul"}
ELEMENTWISE_FUNCTIONS = MULTIPLICATIONS | known.ZERO_KEEPING_FUNCTIONS | known.SHIFTING_FUNCTIONS | {
    operator.sub, operator.truediv, operator.pow, torch.add, torch.sub, torch.div, torch.pow, torch.rsqrt, torch.log,
    torch.clamp, torch.maximum, torch.minimum, torch.where, torch.log2, torch.log10, torch.exp2, torch.reciprocal,
    torch.floor, torch.ceil, torch.trunc, torch.frac, torch.lerp, torch.addcmul, torch.addcdiv, torch.fmax, torch.fmin,
    torch.atan, torch.sinh, torch.cosh, torch.nan_to_num, torch.fmod, torch.remainder, torch.rsub, F.hardtanh,
    F.threshold,
    "add", "sub", "div", "pow", "rsqrt", "log", "clamp", "masked_fill", "where", "maximum", "minimum", "log2", "log10",
    "exp2", "reciprocal", "floor", "ceil", "trunc", "frac", "lerp", "addcmul", "addcdiv", "fmax", "fmin", "atan",
    "sinh", "cosh", "nan_to_num", "fmod", "remainder",
}  # fmt: skip

# Each channel (dimension 1 of `[N, C, H, W]`) of the result is computed from the same channel of the input.
WITH_CHANNELS = (*known.BATCH_NORMS, nn.PReLU)  # they hold one value for each channel
SPATIAL_MODULES = (*known.SPATIAL_MODULES, nn.UpsamplingBilinear2d)
SPATIAL_FUNCTIONS = known.SPATIAL_FUNCTIONS | {torch._C._nn.avg_pool2d, torch._C._nn.adaptive_avg_pool2d}

# Each element of the result is computed from elements along the dimensions that an argument names.
REDUCTIONS = known.REDUCTIONS | known.SCANS | {torch.logsumexp, "logsumexp"}
