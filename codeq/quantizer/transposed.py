"""The order of channels in weights: PyTorch stores those of transposed convolutions with the inputs first."""

from __future__ import annotations

from torch import Tensor, nn

TRANSPOSED_TYPES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def swap_channels(w: Tensor, transposed_groups: int | None) -> Tensor:
    """Bring the output channels of a transposed convolution's weights to the first dimension, or back again.

    PyTorch stores them as `[c_in, c_out / groups, …]`, those of other layers as `[c_out, c_in / groups, …]`. The same
    permutation leads both ways.

    Parameters
    ----------
    w : Tensor
        Weights, or anything of their shape.
    transposed_groups : int or None
        Groups of a transposed convolution; `None` for other layers, whose weights are returned as they are.

    Examples
    --------
    >>> layer = nn.ConvTranspose2d(6, 4, 3, groups=2)
    >>> layer.weight.shape, swap_channels(layer.weight, layer.groups).shape
    (torch.Size([6, 2, 3, 3]), torch.Size([4, 3, 3, 3]))
    """
    if transposed_groups is None:
        return w
    return w.unflatten(0, (transposed_groups, -1)).transpose(1, 2).flatten(0, 1)


def scale_channels(parameter: Tensor, factor: Tensor, transposed_groups: int | None) -> None:
    """Multiply each output channel of weights, or each element of a bias, by its factor, in place.

    Parameters
    ----------
    parameter : Tensor
        Weights as PyTorch stores them, or `[c_out]`.
    factor : Tensor
        `[c_out]`.
    transposed_groups : int or None
        See `swap_channels`.

    Examples
    --------
    >>> weight = Tensor([[1.0], [2.0]])
    >>> scale_channels(weight, Tensor([0.0, 3.0]), None)
    >>> weight.tolist()
    [[0.0], [6.0]]
    """
    rows = factor.view(-1, *[1] * (parameter.ndim - 1))
    if transposed_groups is not None:
        rows = swap_channels(rows.expand_as(swap_channels(parameter, transposed_groups)), transposed_groups)
    parameter.mul_(rows)


def transposed_groups(layer: nn.Module) -> int | None:
    """Return the groups of a transposed convolution, `None` for any other layer; see `swap_channels`."""
    return layer.groups if isinstance(layer, TRANSPOSED_TYPES) else None
