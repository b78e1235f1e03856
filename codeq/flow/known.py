"""Operations that channel flow follows, grouped by the elements that each element of the result depends on.

Every other operation is *opaque*: its whole result counts as computed from all of its inputs. LayerNorm, softmax and
the products of attention are opaque because they mix channels, unknown operations because they might.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

from codeq.graph.overwriting import read_view, write_view

# The result is the input.
UNCHANGED_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
UNCHANGED_METHODS = {"clone", "contiguous", "detach"}

# The result's elements are elements of the inputs, moved, or constants.
STRUCTURAL_MODULES = (
    nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad2d, nn.ConstantPad2d,
    nn.ReflectionPad2d, nn.ReplicationPad2d, nn.UpsamplingNearest2d,
)  # fmt: skip
STRUCTURAL_FUNCTIONS = {
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.movedim, torch.squeeze, torch.unsqueeze,
    torch.cat, torch.stack, torch.hstack, torch.vstack, torch.dstack, torch.column_stack, torch.chunk, torch.split,
    torch.tensor_split, torch.unbind, torch.narrow, torch.select, torch.flip, torch.roll, torch.clone, torch.tile,
    torch.repeat_interleave, torch.broadcast_to, torch.index_select, operator.getitem, F.pad, F.pixel_shuffle,
    F.pixel_unshuffle, F.channel_shuffle, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
    "flatten", "reshape", "reshape_as", "view", "view_as", "permute", "transpose", "movedim", "squeeze", "unsqueeze",
    "chunk", "split", "tensor_split", "unbind", "narrow", "select", "flip", "roll", "expand", "expand_as", "repeat",
    "repeat_interleave", "tile", "broadcast_to", "unfold", "unflatten", "index_select", read_view, write_view,
}  # fmt: skip
STRUCTURAL_ATTRIBUTES = {"T", "mT", "data"}
STRUCTURAL_OVERWRITES = {"__setitem__", "copy_", "fill_", "zero_", "masked_fill_", "index_copy_", "index_fill_"}

# Each element of the result is computed from the same elements of the inputs, which are broadcast.
ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Threshold, nn.Hardshrink,
    nn.Softshrink, nn.Tanhshrink,
)  # fmt: skip
MULTIPLICATIONS = {torch.mul, "mul"}
ELEMENTWISE_FUNCTIONS = MULTIPLICATIONS | {
    operator.sub, operator.truediv, operator.pow, torch.add, torch.sub, torch.div, torch.neg, torch.pow, torch.abs,
    torch.sqrt, torch.rsqrt, torch.exp, torch.log, torch.square, torch.clamp, torch.maximum, torch.minimum, torch.where,
    torch.sigmoid, torch.tanh, torch.relu, torch.erf, torch.sin, torch.cos, torch.log1p, torch.log2, torch.log10,
    torch.exp2, torch.expm1, torch.reciprocal, torch.round, torch.floor, torch.ceil, torch.trunc, torch.frac,
    torch.sign, torch.lerp, torch.addcmul, torch.addcdiv, torch.fmax, torch.fmin, torch.atan, torch.sinh, torch.cosh,
    torch.nan_to_num, torch.fmod, torch.remainder, torch.rsub,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.sigmoid, F.tanh, F.softplus, F.softsign, F.logsigmoid,
    F.threshold, F.hardshrink, F.softshrink, F.tanhshrink,
    "add", "sub", "div", "neg", "pow", "abs", "sqrt", "rsqrt", "exp", "log", "square", "clamp", "sigmoid", "tanh",
    "relu", "erf", "masked_fill", "where", "maximum", "minimum", "sin", "cos", "log1p", "log2", "log10", "exp2",
    "expm1", "reciprocal", "round", "floor", "ceil", "trunc", "frac", "sign", "lerp", "addcmul", "addcdiv", "fmax",
    "fmin", "atan", "sinh", "cosh", "nan_to_num", "fmod", "remainder",
}  # fmt: skip

# Each channel (dimension 1 of `[N, C, H, W]`) of the result is computed from the same channel of the input.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
WITH_CHANNELS = (*BATCH_NORMS, nn.PReLU)  # they hold one value for each channel
SPATIAL_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.Upsample,
    nn.UpsamplingBilinear2d,
)  # fmt: skip
SPATIAL_FUNCTIONS = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.lp_pool2d, F.interpolate,
    torch.max_pool2d,
    torch._C._nn.avg_pool2d, torch._C._nn.adaptive_avg_pool2d,
}  # fmt: skip

# Their second argument is the dimensions.
REDUCTIONS = {
    torch.mean, torch.sum, torch.amax, torch.amin, torch.nanmean, torch.nansum, torch.logsumexp, torch.prod, torch.std,
    torch.var, "mean", "sum", "amax", "amin", "nanmean", "nansum", "logsumexp", "prod", "std", "var",
}  # fmt: skip
