"""Layers in functional form: `F.linear(x, self.fc.weight)` computes the layer `fc` without calling its module.

Modules that call the function of their PyTorch class with their own parameters are in this form, too: convolutions that
pad their input themselves, BatchNorms with an activation function in one module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # by dimensions of the input
SLOPES = ("input", "weight")
TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
FUNCTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.linear: (nn.Linear, ("input", "weight", "bias")),
    F.conv1d: (nn.Conv1d, CONVOLUTION),
    F.conv2d: (nn.Conv2d, CONVOLUTION),
    F.conv3d: (nn.Conv3d, CONVOLUTION),
    F.conv_transpose1d: (nn.ConvTranspose1d, TRANSPOSED),
    F.conv_transpose2d: (nn.ConvTranspose2d, TRANSPOSED),
    F.conv_transpose3d: (nn.ConvTranspose3d, TRANSPOSED),
    F.prelu: (nn.PReLU, SLOPES),
    Tensor.prelu: (nn.PReLU, SLOPES),
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
        `None` if the weight is computed instead of a parameter or buffer, or is a vector, other than the slopes of a
        PReLU. The layer has no bias if the bias is computed, see `split_bias`.

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
    if weight not in names or (weight.ndim < 2 and kind is not nn.PReLU):  # a vector is the weight of a single output
        return None
    if kind is nn.PReLU:
        layer: Any = nn.PReLU(weight.numel(), device="meta")
    elif kind is nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    else:
        groups = int(given.get("groups", 1))
        c_out, c_in = weight.shape[0], weight.shape[1] * groups
        if order is TRANSPOSED:
            c_in, c_out = weight.shape[0], weight.shape[1] * groups
        layer = kind(c_in, c_out, tuple(weight.shape[2:]), bias=False, device="meta", **given)
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    if bias is not None and bias in names:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)
    return names[weight], layer.eval()


def split_bias(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Mapping[Tensor, str]
) -> tuple[tuple[Any, ...], Mapping[str, Any], Tensor | None]:
    """Return the arguments of one of `FUNCTIONS` without a computed bias, and that bias if there is one.

    Parameters
    ----------
    args, kwargs : tuple, mapping
        Arguments of the function.
    names : mapping of Tensor to str
        Names of the parameters and buffers of the model; a bias among them stays.

    Examples
    --------
    >>> import torch
    >>> split_bias((1, 2, torch.ones(1), 3), {"groups": 4}, {})
    ((1, 2, None, 3), {'groups': 4}, tensor([1.]))
    """
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    if bias is None or bias in names:
        return args, kwargs, None
    if len(args) > 2:
        return (*args[:2], None, *args[3:]), kwargs, bias
    return args, {**kwargs, "bias": None}, bias


def add_bias(result: Tensor, bias: Tensor, layer: nn.Module) -> Tensor:
    """Add a bias to the result of a layer without one.

    Examples
    --------
    >>> import torch
    >>> add_bias(torch.zeros(1, 3, 4, 4), torch.ones(3), nn.Conv2d(2, 3, 1)).shape
    torch.Size([1, 3, 4, 4])
    """
    space = [1] * (cast(Tensor, layer.weight).ndim - 2)
    return result + (bias.view(-1, *space) if space else bias)


def batch_norm_of_call(
    args: Sequence[Any], kwargs: Mapping[str, Any], names: Mapping[Tensor, str], modules: Mapping[str, nn.Module]
) -> tuple[str, nn.Module] | None:
    """Return the BatchNorm whose tensors `F.batch_norm` is called with, and a plain one that computes the same.

    Parameters
    ----------
    args, kwargs : sequence, mapping
        Arguments of `F.batch_norm`.
    names : mapping of Tensor to str
        Names of the parameters and buffers of the model.
    modules : mapping of str to Module
        Modules of the model.

    Returns
    -------
    tuple or None
        `None` if it normalizes by the statistics of the batch, or if the tensors are not those of one BatchNorm.

    Examples
    --------
    >>> import torch
    >>> norm = nn.BatchNorm2d(2)
    >>> names = {tensor: name for name, tensor in [*norm.named_parameters("bn"), *norm.named_buffers("bn")]}
    >>> given = torch.zeros(1, 2, 3, 3), norm.running_mean, norm.running_var, norm.weight, norm.bias
    >>> batch_norm_of_call(given, {}, names, {"bn": norm})
    ('bn', BatchNorm2d(2, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True))
    """
    given = {"weight": None, "bias": None, "eps": 1e-5} | dict(zip(NORM, args, strict=False)) | dict(kwargs)
    owner = names.get(given["running_mean"], "").rpartition(".")[0]
    module = modules.get(owner)
    kind = NORMS.get(given["input"].ndim)
    if kind is None or given.get("training"):
        return None
    if not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
        return None
    tensors = ("running_mean", "running_var", "weight", "bias")
    if any(given[name] is not getattr(module, name) for name in tensors):
        return None
    norm: Any = kind(module.num_features, given["eps"], module.momentum, affine=False)
    norm.affine = module.affine
    for name in tensors:
        setattr(norm, name, given[name])
    return owner, norm.eval()
