"""Memory format of a model's weights."""

from __future__ import annotations

import torch
from torch import nn


def to_channels_last(model: nn.Module) -> nn.Module:
    """Bring parameters and buffers of four axes into the channels-last format, in place, and return `model`.

    ``model.to(memory_format=torch.channels_last)`` does the same, but fails for models with tensors of five axes, such
    as the weights of three-dimensional convolutions.

    Examples
    --------
    >>> model = to_channels_last(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3)))
    >>> [layer.weight.is_contiguous() for layer in model]
    [False, True]
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model
