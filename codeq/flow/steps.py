"""What channel flow finds out about each call of a network, in order of execution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx, nn

from codeq.flow.values import FIXED, Value


@dataclass(eq=False)
class Step:
    """One call that makes tensors.

    Parameters
    ----------
    node : fx.Node
        The call.
    args, kwargs : tuple, dict
        Its arguments, with a `Value` for every tensor.
    result : Value, or nested tuples and lists of them
        What it returns.
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
    """Moves elements: slicing, padding, concatenation, reshaping, channel shuffle.

    Parameters
    ----------
    sources : list of Value
        Where elements come from.
    origins : list of array of int
        For each tensor of the result, of its shape: number of each element in the sources, one after the other, or -1
        for a constant.
    """

    sources: list[Value]
    origins: list[np.ndarray]


@dataclass(eq=False)
class Elementwise(Step):
    """Broadcasts its operands and combines them element by element."""


@dataclass(eq=False)
class PerChannel(Step):
    """Acts on each channel (dimension 1) by itself: BatchNorm, pooling, means over other dimensions."""


@dataclass(eq=False)
class Reduced(Step):
    """Takes a mean or another statistic over some dimensions, dimension 1 among them."""


@dataclass(eq=False)
class Attention(Step):
    """Scaled dot product attention, which has no weights: it runs on whole queries, keys and values."""


@dataclass(eq=False)
class Opaque(Step):
    """Computes all of its result from all of its inputs, as far as codeq knows.

    Parameters
    ----------
    call : str
        What and where: ``softmax in blocks.0.attn``, ``norm (LayerNorm)``.
    """

    call: str


@dataclass(eq=False)
class Leaving(Step):
    """The result of the network."""


@dataclass(eq=False)
class LayerCall(Step):
    """A conv or linear layer and its channels.

    Parameters
    ----------
    name : str
        Full dotted name of the layer.
    layer : Module
        With plain float64 weights.
    nonzero : array of bool
        `[c_out, c_in / groups]`, kernels with a non-zero weight, and those that are held.
    live_in : array of bool
        `[c_in]`, input channels that depend on the network's input.
    positions : int
        How often each weight is used for one input: the output's positions (a transposed convolution's input's).
    carried : array of bool
        `[c_in]`, fixed channels that are read as if they were live (``borders="live"``).
    opaque : bool
        Whether the call is kept as it is, all channels counted.
    kept_in, kept_out : array of bool
        `[c_in]` and `[c_out]`, what has to be computed with; `kept_out` are channels that depend on the input and that
        the network's result is computed from, `kept_in` those that they are computed from.
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
        """`[c_out]`, output channels that depend on the network's input."""
        return self.channel_units(self.result) != FIXED

    def channel_units(self, value: Value) -> np.ndarray:
        """Return the unit of every channel of the result."""
        units = value.units if isinstance(self.layer, nn.Linear) else np.moveaxis(value.units, 0, -1)
        return units.reshape(-1, units.shape[-1])[0]

    def resolve(self, needed: np.ndarray) -> None:
        """Set what is kept, given which units are needed."""
        if self.opaque:
            alive = bool(self.nonzero.size)
            self.kept_in, self.kept_out = np.full(len(self.live_in), alive), np.full(len(self.nonzero), alive)
            return
        self.kept_out = needed[self.channel_units(self.result)]
        per_group = self.nonzero.reshape(self.groups, -1, self.nonzero.shape[1])
        kept_rows = self.kept_out.reshape(self.groups, -1, 1)
        read = (per_group & kept_rows).any(axis=1).ravel()
        self.kept_in = read & (self.live_in | self.carried)

    def group_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return how many input and output channels each group keeps, both `[groups]`."""
        return (
            self.kept_in.reshape(self.groups, -1).sum(axis=1),
            self.kept_out.reshape(self.groups, -1).sum(axis=1),
        )

    @property
    def macs(self) -> int:
        """Multiplications by weights that are left, for one input."""
        kernel = int(np.prod(getattr(self.layer, "kernel_size", 1)))
        inputs, outputs = self.group_sizes()
        return int(inputs @ outputs) * kernel * self.positions
