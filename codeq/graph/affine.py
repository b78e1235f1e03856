"""Parameters of a layer or a BatchNorm that belong to its channels."""

from __future__ import annotations

from torch import nn


def weight_and_bias(module: nn.Module) -> list[nn.Parameter]:
    """Return the weight and the bias that are parameters of a module, without any others that a subclass adds.

    Examples
    --------
    >>> conv = nn.Conv2d(3, 4, 1)
    >>> conv.slope = nn.Parameter(conv.bias[:1])
    >>> [tuple(parameter.shape) for parameter in weight_and_bias(conv)]
    [(4, 3, 1, 1), (4,)]
    """
    found = (getattr(module, name, None) for name in ("weight", "bias"))
    return [parameter for parameter in found if isinstance(parameter, nn.Parameter)]
