"""Steps: results of channel flow for the calls of a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx, nn

from codeq.flow.values import FIXED, Value


@dataclass(eq=False)
class Step:
    """One call that returns tensors.

    Parameters
    ----------
    node : fx.Node
        The call.
    args, kwargs : tuple, dict
        Its arguments, with a `Value` for every tensor.
    result : Value, or nested tuples and lists of them
        Its return value.
    """

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@dataclass(eq=False)
class Input(Step):
    """The input of the network."""


@dataclass(eq=False)
class Moved(Step):
    """Movement of elements: slicing, padding, concatenation, reshaping, channel shuffle.

    Parameters
    ----------
    sources : list of Value
        Tensors that the elements come from.
    origins : list of array of int
        For each tensor of the result, in its shape: index of each element into the flattened, concatenated sources, or
        -1 for a constant.
    """

    sources: list[Value]
    origins: list[np.ndarray]


@dataclass(eq=False)
class Elementwise(Step):
    """Operation that broadcasts its operands and combines them element by element."""


@dataclass(eq=False)
class PerChannel(Step):
    """Operation on each channel (dimension 1) separately: BatchNorm, pooling, means over other dimensions."""


@dataclass(eq=False)
class Reduced(Step):
    """Mean or another statistic over several dimensions, dimension 1 among them."""


@dataclass(eq=False)
class Attention(Step):
    """Scaled dot-product attention, which has no weights and runs on whole queries, keys and values."""


@dataclass(eq=False)
class Opaque(Step):
    """Operation whose whole result counts as computed from all of its inputs.

    Parameters
    ----------
    call : str
        Name and place: ``softmax in blocks.0.attn``, ``norm (LayerNorm)``.
    """

    call: str


@dataclass(eq=False)
class Output(Step):
    """The result of the network."""


@dataclass(eq=False)
class LayerCall(Step):
    """Call of a conv or linear layer, with the state of its channels.

    Parameters
    ----------
    name : str
        Full dotted name of the layer.
    layer : Module
        The layer, with plain float64 weights.
    nonzero : array of bool
        `[c_out, c_in / groups]`, kernels that have a non-zero weight or are counted as non-zero.
    live_in : array of bool
        `[c_in]`, input channels that depend on the network's input.
    positions : int
        Number of uses of each weight for one input: positions of the output, of the input for a transposed convolution.
    carried : array of bool
        `[c_in]`, fixed channels that the layer reads as if they were live (``borders="live"``).
    opaque : bool
        Whether the call is kept unchanged, with all channels counted, if the result of the network depends on it.
    kept_in, kept_out : array of bool
        `[c_in]` and `[c_out]`, channels that the compacted network keeps: in `kept_out` those that depend on the input
        and that the result of the network depends on, in `kept_in` those that they are computed from.
    """

    name: str
    layer: nn.Module
    nonzero: np.ndarray
    live_in: np.ndarray
    positions: int
    carried: np.ndarray
    opaque: bool = False
    kept_in: np.ndarray = field(init=False)
    kept_out: np.ndarray = field(init=False)

    @property
    def groups(self) -> int:
        """Groups of a grouped convolution, else 1."""
        return int(getattr(self.layer, "groups", 1))

    @property
    def live_out(self) -> np.ndarray:
        """`[c_out]`, output channels that depend on the network's input: all of an opaque call."""
        if self.opaque:  # its result may lie in memory in another way
            return np.ones(len(self.nonzero), dtype=bool)
        return self.channel_units(self.result) != FIXED

    def channel_units(self, value: Value) -> np.ndarray:
        """Return the unit of every channel of the result."""
        units = value.units if isinstance(self.layer, nn.Linear) else np.moveaxis(value.units, 0, -1)
        return units.reshape(-1, units.shape[-1])[0]

    def resolve(self, needed: np.ndarray) -> None:
        """Set `kept_in` and `kept_out`, given for every unit whether it is needed."""
        if self.opaque:
            alive = bool(self.nonzero.size and needed[self.result.units].any())
            self.kept_in, self.kept_out = np.full(len(self.live_in), alive), np.full(len(self.nonzero), alive)
            return
        self.kept_out = needed[self.channel_units(self.result)]
        per_group = self.nonzero.reshape(self.groups, -1, self.nonzero.shape[1])
        kept_rows = self.kept_out.reshape(self.groups, -1, 1)
        read = (per_group & kept_rows).any(axis=1).ravel()
        self.kept_in = read & (self.live_in | self.carried)

    def group_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of input and of output channels that each group keeps, both `[groups]`."""
        return (
            self.kept_in.reshape(self.groups, -1).sum(axis=1),
            self.kept_out.reshape(self.groups, -1).sum(axis=1),
        )

    @property
    def macs(self) -> int:
        """Multiplications by the weights of kept channels, for one input."""
        kernel = int(np.prod(getattr(self.layer, "kernel_size", 1)))
        inputs, outputs = self.group_sizes()
        return int(inputs @ outputs) * kernel * self.positions
