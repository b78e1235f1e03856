"""Channel graph: a network as a list of channel operations without weights, see `codeq.graph.tracing`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True, eq=False)
class Op:
    """Effect of one call on channels.

    Parameters
    ----------
    name : str
        Unique name of the traced node.
    inputs : tuple of str
        Names of the operations whose results are its inputs.
    channels : int
        Size of its result along the channel dimension.
    """

    name: str
    inputs: tuple[str, ...]
    channels: int


class Source(Op):
    """Input of the network."""


@dataclass(frozen=True, eq=False)
class Layer(Op):
    """A conv or linear layer: every output channel mixes input channels of its group.

    Parameters
    ----------
    layer : str
        Full dotted name of the module.
    groups : int
        Groups of a grouped convolution, else 1.
    spatial : tuple of int
        `(m_h, m_w)`, the output positions each weight is used at; for a linear layer `(1, 1)`, or `(tokens, 1)` on
        tokens `[N, tokens, C]`.
    input_quantizer : str or None
        Name of the module that quantizes its input.
    """

    layer: str
    groups: int
    spatial: tuple[int, int]
    input_quantizer: str | None = None

    @property
    def weight(self) -> str:
        """Name of the layer, as in `UnfollowedWeight`."""
        return self.layer

    @property
    def elements(self) -> int:
        """Elements of the result for one input."""
        return self.channels * prod(self.spatial)


@dataclass(frozen=True, eq=False)
class PerChannel(Op):
    """Operation on each channel separately.

    Parameters
    ----------
    batchnorm : str or None
        Name of the module, if it is a BatchNorm; its shift counts as 0.
    keeps_zero : bool
        Whether it maps 0 to 0, unlike a sigmoid.
    """

    batchnorm: str | None = None
    keeps_zero: bool = True


class Sum(Op):
    """Sum of two tensors with the same channels: the residual connection."""


class Product(Op):
    """Product of two tensors channel by channel: a gate, as in squeeze-and-excite."""


class Concat(Op):
    """Concatenation of the channels of its inputs."""


@dataclass(frozen=True, eq=False)
class Gather(Op):
    """Selection of channels: result channel `c` is input channel `index[c]`, or the constant 0 where that is -1.

    Used for slicing, channel padding and flattening.
    """

    index: np.ndarray


@dataclass(frozen=True, eq=False)
class Unknown(Op):
    """Operation without a rule or that mixes channels; all channels of its inputs and result stay live.

    `call` is its name: ``call_module blocks.0.norm1``, ``call_function scaled_dot_product_attention``.
    """

    call: str


@dataclass(frozen=True, eq=False)
class UnfollowedWeight(Unknown):
    """Use of weights whose cost is known, but not what it does to channels, so that all of them stay live.

    These are a linear or convolution function with a parameter that belongs to no layer, as in
    `torch.nn.MultiheadAttention`; convolutions in one or three dimensions; transposed convolutions; and layers on
    tensors whose channels lie elsewhere, such as a linear layer on `[N, H, W, C]`.

    Parameters
    ----------
    weight : str
        Full dotted name of the layer, or of the parameter, `[c_out, c_in / groups, ...]`.
    groups : int
        Groups of a grouped convolution, else 1.
    spatial : tuple of int
        See `Layer`; the input positions of a transposed convolution.
    elements : int
        Elements of the result for one input.
    input_quantizer : str or None
        See `Layer`.
    transposed : bool
        Whether it is a transposed convolution, whose parameter is `[c_in, c_out / groups, ...]`.
    """

    weight: str
    groups: int
    spatial: tuple[int, int]
    elements: int
    input_quantizer: str | None = None
    transposed: bool = False


class Output(Op):
    """Result of the network."""


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """A model as a list of channel operations in order of execution, free of weights.

    Parameters
    ----------
    ops : tuple of Op
        Operations in order of execution. A layer that is called twice occurs twice.
    problems : tuple of str
        Reasons why counts from the graph are incomplete or cannot be trusted: weights that are used but not counted, or
        a model that computes other results than its trace (all channels stay live then).
    uncounted : tuple of str
        Names of conv and linear layers whose weights are used in a way that codeq does not follow.
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
        """Conv and linear layers in order of execution."""
        return [op for op in self.ops if isinstance(op, Layer)]

    @property
    def weighted(self) -> list[Layer | UnfollowedWeight]:
        """Calls that multiply by weights in order of execution, whether channels are followed through them or not."""
        return [op for op in self.ops if isinstance(op, (Layer, UnfollowedWeight))]

    @property
    def unknown(self) -> list[Unknown]:
        """Operations whose channels stay live because codeq does not follow them."""
        return [op for op in self.ops if isinstance(op, Unknown)]

    def readers(self, name: str) -> list[Op]:
        """Return the operations that read the result of the operation `name`."""
        return [op for op in self.ops if name in op.inputs]

    def layer(self, name: str) -> Layer:
        """Return the operation of the layer with the dotted name `name`, the first if it is called again."""
        return next(op for op in self.layers if op.layer == name)

    def batchnorms_after(self, layer: str) -> tuple[str, ...]:
        """Return the BatchNorms behind the calls of a layer, each once; none if anything else reads one of the results.

        Calls may have a BatchNorm each, as those of a head that runs on features of several sizes.
        """
        norms: list[str] = []
        for op in self.weighted:
            if op.weight == layer:
                match self.readers(op.name):
                    case [PerChannel(batchnorm=str() as norm)]:
                        norms.append(norm)
                    case _:
                        return ()
        return tuple(dict.fromkeys(norms))
