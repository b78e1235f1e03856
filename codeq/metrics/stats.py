"""Cost of one layer and of a network under one accounting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from codeq.metrics.nulls import NullChannels
from codeq.quantizer.layers import FLOAT_BITS


def kernel_size(shape: Sequence[int]) -> tuple[int, int]:
    """Return the `kernel_size` of `LayerStats`, given the shape of the weight `[c_out, c_in / groups, ...]`.

    Examples
    --------
    >>> [kernel_size(shape) for shape in ((8, 4), (8, 4, 3), (8, 4, 3, 5))]
    [(1, 1), (3, 1), (3, 5)]
    """
    size = tuple(shape[2:])
    return (size[0], size[1]) if len(size) == 2 else (prod(size), 1)


@dataclass(frozen=True)
class LayerStats:
    """Cost of one layer under one accounting.

    Parameters
    ----------
    name : str
        Full dotted name.
    macs, bops : int
        Of one input.
    bitwidth : int
        Bits of the weights; 32 if they are float.
    pruning_ratio : float
        Structured: null output channels / output channels. Unstructured: zero weights / weights.
    null_out, null_in : NullChannels
        By the ``"exact"`` accounting in `exact_stats`, else by ``"weights"``.
    spatial, kernel_size : tuple of int
        Output and kernel height and width; `(1, 1)` for a linear layer, whose `spatial` on tokens `[N, tokens, C]` is
        `(tokens, 1)`; `(positions, 1)` and `(elements, 1)` for convolutions in one or three dimensions. `spatial` is
        `(input positions, 1)` for transposed convolutions, `(positions, 1)` for all calls of a layer in one row.
    activation_bits : int
        Bits of the inputs.
    """

    name: str
    macs: int
    bops: int
    bitwidth: int
    pruning_ratio: float
    null_out: NullChannels
    null_in: NullChannels
    spatial: tuple[int, int]
    kernel_size: tuple[int, int]
    activation_bits: int = FLOAT_BITS


@dataclass(frozen=True)
class ModelStats:
    """Cost of a network under one accounting: its layers in order of execution, and their sums.

    Parameters
    ----------
    layers : list of LayerStats
        One for each layer that the forward pass calls.
    notes : tuple of str
        What the figures leave out or assume, one sentence each; empty for a network that codeq follows completely.
    """

    layers: list[LayerStats]
    total_macs: int = field(init=False)
    total_bops: int = field(init=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "total_macs", sum(layer.macs for layer in self.layers))
        object.__setattr__(self, "total_bops", sum(layer.bops for layer in self.layers))
