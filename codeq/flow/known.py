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
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.swapaxes, torch.movedim, torch.squeeze,
    torch.unsqueeze, torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, torch.unbind, torch.narrow,
    torch.select, torch.flip, torch.roll, torch.clone, torch.index_select, operator.getitem, F.pad, F.pixel_shuffle,
    F.pixel_unshuffle, F.channel_shuffle, F.dropout, F.dropout2d,
    "flatten", "reshape", "view", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze", "chunk",
    "split", "unbind", "narrow", "select", "flip", "roll", "expand", "expand_as", "repeat",
    "unflatten", "index_select", read_view, write_view,
}  # fmt: skip
STRUCTURAL_ATTRIBUTES = {"T", "mT", "data"}
STRUCTURAL_OVERWRITES = {"__setitem__", "copy_", "fill_", "zero_", "masked_fill_", "index_copy_", "index_fill_"}

# Each element of the result is computed from the same elements of the inputs, which are broadcast.
ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip
MULTIPLICATIONS = {torch.mul, torch.multiply, "mul", "multiply"}
ELEMENTWISE_FUNCTIONS = MULTIPLICATIONS | {
    operator.sub, operator.truediv, operator.pow, torch.add, torch.sub, torch.div, torch.neg, torch.pow, torch.abs,
    torch.sqrt, torch.rsqrt, torch.exp, torch.log, torch.square, torch.clamp, torch.maximum, torch.minimum, torch.where,
    torch.sigmoid, torch.tanh, torch.relu, torch.erf, torch.sin, torch.cos,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.sigmoid, F.tanh, F.softplus, F.softsign, F.logsigmoid,
    "add", "sub", "div", "neg", "pow", "abs", "sqrt", "rsqrt", "exp", "log", "square", "clamp", "sigmoid", "tanh",
    "relu", "erf", "masked_fill", "where", "maximum", "minimum",
}  # fmt: skip

# Each channel (dimension 1 of `[N, C, H, W]`) of the result is computed from the same channel of the input.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d)
POOL_FUNCTIONS = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d,
    torch._C._nn.avg_pool2d, torch._C._nn.adaptive_avg_pool2d,
}  # fmt: skip

# The result depends on the shape of the input alone.
FILLED = {"new_zeros", "new_ones", torch.zeros_like, torch.ones_like}

REDUCTIONS = {torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"}
