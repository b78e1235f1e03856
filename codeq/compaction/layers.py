"""Smaller conv and linear layers of a compacted network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from codeq.compaction.parts import Parts
from codeq.flow.layers import by_channel, uneven
from codeq.flow.steps import LayerCall
from codeq.flow.values import Value
from codeq.graph.layer_rules import layer_sizes
from codeq.quantizer.layers import named_layers
from codeq.quantizer.transposed import TRANSPOSED_TYPES


def fixed_part(call: LayerCall) -> Tensor:
    """Return what fixed inputs and the bias contribute to the kept outputs, `[kept, ...]`, without the batch."""
    x: Value = call.args[0]
    rest = torch.from_numpy(~call.kept_in)
    linear = isinstance(call.layer, nn.Linear)
    shape = [1] * x.data.ndim
    shape[-1 if linear else 0] = -1
    contribution = call.layer((x.data * rest.reshape(shape))[None])[0]
    kept = torch.from_numpy(np.flatnonzero(call.kept_out))
    return contribution.index_select(contribution.ndim - 1 if linear else 0, kept)


def smaller(call: LayerCall, absorb: bool) -> tuple[nn.Module, Tensor | None]:
    """Return the layer with only its kept channels, and the bias map to add to its result, if it needs one.

    With `absorb` a bias replaces the map of a convolution: its value in the middle, which is right except near the
    borders. The map of a linear layer has no borders: it differs from token to token (position embeddings), and stays.
    """
    fixed = fixed_part(call)
    place = 0
    if uneven(call.layer, fixed).any():
        if not absorb or isinstance(call.layer, nn.Linear):
            return of_kept_channels(call, None), fixed
        place = int(np.ravel_multi_index([size // 2 for size in fixed.shape[1:]], fixed.shape[1:]))
    rows = by_channel(call.layer, fixed.numpy())
    return of_kept_channels(call, torch.from_numpy(rows[:, place].copy()) if fixed.any() else None), None


def of_kept_channels(call: LayerCall, bias: Tensor | None) -> nn.Module:
    """Return the layer with only its kept channels and with another bias, `[kept outputs]`, or none."""
    if not isinstance(call.layer, nn.Linear):
        return _convolution(call, bias)
    weight = call.layer.weight[torch.from_numpy(call.kept_out)][:, torch.from_numpy(call.kept_in)]
    layer = same_kind(call.layer, weight.shape[1], weight.shape[0], 1, bias is not None)
    return _fill(layer, weight, bias)


def _convolution(call: LayerCall, bias: Tensor | None) -> nn.Module:
    """Return one convolution, or one for each size of the remaining groups."""
    inputs, outputs = call.group_sizes()
    kept_in = np.split(np.flatnonzero(call.kept_in), np.cumsum(inputs)[:-1])
    kept_out = np.split(np.flatnonzero(call.kept_out), np.cumsum(outputs)[:-1])
    sizes = sorted({size for size in zip(inputs.tolist(), outputs.tolist(), strict=True) if all(size)})
    members = [np.flatnonzero((inputs == i) & (outputs == o)) for i, o in sizes]
    number_in, number_out = np.cumsum(call.kept_in) - 1, np.cumsum(call.kept_out) - 1
    parts, takes, order = [], [], []
    for (n_in, n_out), groups in zip(sizes, members, strict=True):
        rows, columns = (np.concatenate([kept[g] for g in groups]) for kept in (kept_out, kept_in))
        part = same_kind(call.layer, n_in * len(groups), n_out * len(groups), len(groups), bias is not None)
        weight = _dense_weight(call, [kept_out[g] for g in groups], [kept_in[g] for g in groups])
        parts.append(_fill(part, weight, None if bias is None else bias[torch.from_numpy(number_out[rows])]))
        takes.append(torch.from_numpy(number_in[columns]))
        order.append(number_out[rows])
    if len(parts) == 1:
        return parts[0]
    return Parts(parts, takes, torch.from_numpy(np.argsort(np.concatenate(order))))


def output_channels(compacted: nn.Module, calls: Mapping[str, LayerCall]) -> dict[str, np.ndarray]:
    """Return for each conv and linear layer of a compacted network the original numbers of its output channels.

    Parameters
    ----------
    compacted : Module
        The network.
    calls : mapping of str to LayerCall
        Calls that its smaller layers are made from; all other layers are whole.
    """
    modules, found = dict(compacted.named_modules()), dict[str, np.ndarray]()
    for name, layer in named_layers(compacted):
        owner, _, number = name.rpartition(".parts.")
        split = modules.get(owner)
        if isinstance(split, Parts) and owner in calls:
            kept = np.flatnonzero(calls[owner].kept_out)[split.order.argsort().cpu().numpy()]
            ends = np.cumsum([layer_sizes(part)[1] for part in split.parts])
            found[name] = np.split(kept, ends[:-1])[int(number)]
        else:
            found[name] = np.flatnonzero(calls[name].kept_out) if name in calls else np.arange(layer_sizes(layer)[1])
    return found


def channel_count(module: Any) -> int:
    """Return the number of channels of a BatchNorm, or of slopes of a PReLU."""
    return int(module.num_parameters if isinstance(module, nn.PReLU) else module.num_features)


def of_channels(module: Any, count: int) -> nn.Module:
    """Return a BatchNorm or a PReLU with the settings of `module` and `count` channels."""
    settings = {key: getattr(module, key) for key in ("eps", "momentum", "affine") if hasattr(module, key)}
    other: Any = type(module)(count, **settings)
    if getattr(other, "bias", None) is not None and module.bias is None:  # an argument of newer versions of PyTorch
        other.bias = None
    return cast(nn.Module, other)


def same_kind(layer: Any, c_in: int, c_out: int, groups: int, bias: bool) -> nn.Module:
    """Return a layer of the PyTorch class of `layer` and with its settings, but of other sizes."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(c_in, c_out, bias=bias)
    extra = {"output_padding": layer.output_padding} if isinstance(layer, TRANSPOSED_TYPES) else {}
    kind = next(cls for cls in type(layer).__mro__ if cls.__module__.startswith("torch.nn.modules"))
    return kind(
        c_in, c_out, layer.kernel_size, stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
        groups=groups, bias=bias, padding_mode=layer.padding_mode, **extra,
    )  # fmt: skip


def _dense_weight(call: LayerCall, rows: list[np.ndarray], columns: list[np.ndarray]) -> Tensor:
    """Return the weights of some groups, each with its kept rows and columns (channels of the whole layer)."""
    weight = cast(Tensor, call.layer.weight)
    per_in, per_out = len(call.kept_in) // call.groups, len(call.kept_out) // call.groups
    blocks = []
    for out, read in zip(rows, columns, strict=True):
        if isinstance(call.layer, TRANSPOSED_TYPES):
            first, second = read, out % per_out
        else:
            first, second = out, read % per_in
        blocks.append(weight[torch.from_numpy(first)][:, torch.from_numpy(second)])
    return torch.cat(blocks)


def _fill(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer = layer.to(weight.dtype)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(weight.dtype).clone())
    return layer
