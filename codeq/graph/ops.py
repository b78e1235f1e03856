"""A network as a list of channel operations, free of weights: what `codeq.graph.tracing` makes of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Op:
    """What one call does to channels.

    Parameters
    ----------
    name : str
        Of the traced node, unique.
    inputs : tuple of str
        Names of the operations whose results it takes.
    channels : int
        Size of its result along the dimension of the channels.
    """

    name: str
    inputs: tuple[str, ...]
    channels: int


class Source(Op):
    """The network's input."""


@dataclass(frozen=True, eq=False)
class Layer(Op):
    """A conv or linear layer: every output channel mixes input channels of its group.

    Parameters
    ----------
    layer : str
        Full dotted name of the module.
    groups : int
        Of a grouped convolution, else 1.
    spatial : tuple of int
        `(m_h, m_w)`, the output positions each weight is used at; for a linear layer `(1, 1)`, or `(tokens, 1)` on
        tokens `[N, tokens, C]`.
    """

    layer: str
    groups: int
    spatial: tuple[int, int]


@dataclass(frozen=True, eq=False)
class PerChannel(Op):
    """Acts on each channel by itself.

    Parameters
    ----------
    batchnorm : str or None
        Name of the BatchNorm module, if it is one; its shift counts as if it were 0.
    keeps_zero : bool
        Whether 0 stays 0, as a sigmoid does not.
    """

    batchnorm: str | None = None
    keeps_zero: bool = True


class Sum(Op):
    """Adds two tensors of the same channels: the residual connection."""


class Product(Op):
    """Multiplies two tensors channel by channel: a gate, as in squeeze-and-excite."""


class Concat(Op):
    """Puts the channels of its inputs one after the other."""


@dataclass(frozen=True, eq=False)
class Gather(Op):
    """Result channel `c` is input channel `index[c]`, or the constant 0 where `index[c]` is -1.

    Slicing, channel padding and flattening are of this kind.
    """

    index: np.ndarray


@dataclass(frozen=True, eq=False)
class Unknown(Op):
    """Something that the tracer does not know or that mixes channels; all that enter or leave stay live.

    `call` says what it is: ``call_module blocks.0.norm1``, ``call_function scaled_dot_product_attention``.
    """

    call: str


@dataclass(frozen=True, eq=False)
class FunctionalWeight(Unknown):
    """A linear or convolution function called with a parameter that belongs to no conv or linear layer.

    The packed projections of `torch.nn.MultiheadAttention` are of this kind. All channels stay live.

    Parameters
    ----------
    weight : str
        Full dotted name of the parameter, `[c_out, c_in / groups, ...]`.
    groups : int
        Groups of a grouped convolution, else 1.
    spatial : tuple of int
        See `Layer`.
    """

    weight: str
    groups: int
    spatial: tuple[int, int]


class Output(Op):
    """The network's result."""


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """A model as a list of channel operations in order of execution, free of weights.

    Parameters
    ----------
    ops : tuple of Op
        Each takes results of earlier ones only. A layer that is called twice is in it twice.
    problems : tuple of str
        Why figures made from the graph are incomplete or cannot be trusted: weights that are used but not counted, or
        a model that computes something else than was traced (all channels stay live then).
    uncounted : tuple of str
        Names of conv and linear layers whose weights are used in a way that is not followed.
    ties : tuple of tuple of str
        Names of layers that share one weight, in the order of the model.
    """

    ops: tuple[Op, ...]
    problems: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether everything that the model computes with weights is in the graph."""
        return not self.problems

    @property
    def layers(self) -> list[Layer]:
        """The conv and linear layers in order of execution."""
        return [op for op in self.ops if isinstance(op, Layer)]

    @property
    def unknown(self) -> list[Unknown]:
        """The operations whose channels stay live because codeq does not follow them."""
        return [op for op in self.ops if isinstance(op, Unknown)]

    def readers(self, name: str) -> list[Op]:
        """Return the operations that take the result of the operation `name`."""
        return [op for op in self.ops if name in op.inputs]

    def layer(self, name: str) -> Layer:
        """Return the operation of the layer with the dotted name `name`, its first one if it is called again."""
        return next(op for op in self.layers if op.layer == name)

    def batchnorm_after(self, layer: str) -> str | None:
        """Return the BatchNorm that alone takes the result of a layer, or `None`."""
        readers = self.readers(self.layer(layer).name)
        return readers[0].batchnorm if len(readers) == 1 and isinstance(readers[0], PerChannel) else None
