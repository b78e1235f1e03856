"""Layers in functional form: `F.linear(x, self.fc.weight)` computes the layer `fc` without calling its module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
FUNCTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.linear: (nn.Linear, ("input", "weight", "bias")),
    F.conv1d: (nn.Conv1d, CONVOLUTION),
    F.conv2d: (nn.Conv2d, CONVOLUTION),
    F.conv3d: (nn.Conv3d, CONVOLUTION),
    F.conv_transpose1d: (nn.ConvTranspose1d, TRANSPOSED),
    F.conv_transpose2d: (nn.ConvTranspose2d, TRANSPOSED),
    F.conv_transpose3d: (nn.ConvTranspose3d, TRANSPOSED),
}


def layer_of_call(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Mapping[Tensor, str]
) -> tuple[str, nn.Module] | None:
    """Return the name of the weight that a function is called with, and a layer that computes the same.

    Parameters
    ----------
    function : callable
        One of `FUNCTIONS`.
    args, kwargs : tuple, dict
        Its arguments.
    names : mapping of Tensor to str
        Names of the parameters and buffers of the model.

    Returns
    -------
    tuple or None
        `None` if the weight or bias is computed instead of a parameter or buffer.

    Examples
    --------
    >>> import torch
    >>> weight = nn.Parameter(torch.zeros(4, 3))
    >>> layer_of_call(F.linear, (torch.zeros(1, 3), weight), {}, {weight: "fc.weight"})
    ('fc.weight', Linear(in_features=3, out_features=4, bias=False))
    """
    kind, order = FUNCTIONS[function]
    given = dict(zip(order, args, strict=False)) | dict(kwargs)
    weight, bias = given.pop("weight"), given.pop("bias", None)
    given.pop("input", None)
    if weight not in names or (bias is not None and bias not in names):
        return None
    if kind is nn.Linear:
        c_out, c_in = weight.shape
    else:
        groups = int(given.get("groups", 1))
        c_out, c_in = weight.shape[0], weight.shape[1] * groups
        if order is TRANSPOSED:
            c_in, c_out = weight.shape[0], weight.shape[1] * groups
        given["kernel_size"] = tuple(weight.shape[2:])
    layer: Any = kind(c_in, c_out, bias=False, device="meta", **given)
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)
    return names[weight], layer.eval()
