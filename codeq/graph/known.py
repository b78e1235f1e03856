"""Operations that both `codeq.graph` and `codeq.flow` follow, by what each element of the result is computed from.

`codeq.graph` knows no values: it distinguishes operations that map 0 to 0, so that a channel of zeros stays one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

PADDING_MODULES = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)  # those with zeros are subclasses

# In evaluation mode the result is the input.
UNCHANGED_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
UNCHANGED_FUNCTIONS = {torch.clone, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout}
UNCHANGED_METHODS = {"clone", "contiguous"}

# Each element of the result is computed from the same element of the input alone, and 0 stays 0.
ZERO_KEEPING_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh,
    nn.Softsign, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink,
)  # fmt: skip
DETACH = {torch.detach, "detach"}  # the result is the input, but gradients stop
ZERO_KEEPING_FUNCTIONS = DETACH | {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh, F.softsign,
    F.hardshrink, F.softshrink, F.tanhshrink, torch.relu, torch.tanh, torch.abs, torch.neg, torch.sqrt, torch.square,
    torch.sin, torch.erf, torch.round, torch.sign, torch.expm1, torch.log1p,
    "relu", "tanh", "abs", "neg", "sqrt", "square", "sin", "erf", "round", "sign", "expm1", "log1p",
}  # fmt: skip

# The same, but they do not map 0 to 0.
SHIFTING_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid)
SHIFTING_FUNCTIONS = {
    F.sigmoid, F.hardsigmoid, F.softplus, F.logsigmoid, torch.sigmoid, torch.exp, torch.cos, "sigmoid", "exp", "cos",
}  # fmt: skip

# Each channel (dimension 1) of the result is computed from the same channel of the input.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# They pool or enlarge the last two dimensions, which are those of images only in `[N, C, H, W]`.
SPATIAL_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, nn.Upsample,
)  # fmt: skip
SPATIAL_FUNCTIONS = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.lp_pool2d, F.interpolate,
    torch.max_pool2d,
}  # fmt: skip

# Each element of the result is computed from elements along the dimensions that an argument names; zeros give 0.
NORMS = {torch.norm, torch.linalg.norm, torch.linalg.vector_norm, "norm"}
SCANS = {torch.cumsum, torch.cumprod, "cumsum", "cumprod"}  # the result has the shape of the input
REDUCTIONS = NORMS | {
    torch.mean, torch.sum, torch.amax, torch.amin, torch.nanmean, torch.nansum, torch.prod, torch.std, torch.var,
    "mean", "sum", "amax", "amin", "nanmean", "nansum", "prod", "std", "var",
}  # fmt: skip
# Dimensions that `torch.cat` would be called with, for tensors with all of the dimensions of the result.
STACKS: dict[object, int] = {torch.hstack: 1, torch.column_stack: 1, torch.dstack: 2}


def dimensions_of(target: object) -> int:
    """Return the position of the argument that names the dimensions of a reduction or scan."""
    return 2 if target in NORMS else 1
