"""Description of a coupled group: the weights that must be zero together, and the operations that connect them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from codeq.common.errors import CodeqError
from codeq.graph.channels import CoupledGroups
from codeq.graph.ops import (
    ChannelGraph,
    Concat,
    Gather,
    Layer,
    Op,
    Output,
    PerChannel,
    Product,
    Sum,
    UnfollowedWeight,
    Unknown,
)

NAMES = {
    Sum: "add", Product: "mul", Concat: "cat", Gather: "move", Output: "output", Unknown: "unknown",
    UnfollowedWeight: "layer",
}  # fmt: skip


@dataclass(frozen=True)
class CoupledGroup:
    """One prunable channel, with the filters that write it, the BatchNorms that scale it and the slices that read it.

    Parameters
    ----------
    number : int
        Number of the group.
    writers, readers, batchnorms : tuple of (str, int)
        Layer and filter; layer and input slice; BatchNorm and channel.
    chains : tuple of str
        For each writer, the operations between its result and the next layer.

    Examples
    --------
    >>> from codeq.graph.channels import coupled_groups
    >>> from codeq.models import resnet20
    >>> from codeq.graph.tracing import trace
    >>> graph = trace(resnet20())
    >>> print(coupled_group(graph, coupled_groups(graph), "layer1.0.conv1", 5))
    channel 5 of layer1.0.conv1 is pruned when these are zero together (group 21):
      filter layer1.0.conv1[5] → layer1.0.bn1 → relu_1
      slice  layer1.0.conv2[:, 5]
    """

    number: int
    writers: tuple[tuple[str, int], ...]
    readers: tuple[tuple[str, int], ...]
    batchnorms: tuple[tuple[str, int], ...]
    chains: tuple[str, ...]

    def __str__(self) -> str:
        layer, channel = self.writers[0]
        lines = [f"channel {channel} of {layer} is pruned when these are zero together (group {self.number}):"]
        lines += [f"  filter {chain}" for chain in self.chains]
        lines += [f"  slice  {name}[:, {index}]" for name, index in self.readers]
        return "\n".join(lines)


def coupled_group(graph: ChannelGraph, groups: CoupledGroups, layer: str, channel: int) -> CoupledGroup | None:
    """Return the coupled group that a filter belongs to, or `None` if its channel cannot be removed.

    Parameters
    ----------
    graph, groups
        Channel graph and coupled groups of the same model.
    layer : str
        Full dotted name of a conv or linear layer.
    channel : int
        Output channel.

    Raises
    ------
    CodeqError
        If the layer or channel does not exist.
    """
    if layer not in groups.writers:
        raise CodeqError(f"layer {layer!r} is not followed by the channel graph; layers: {', '.join(groups.writers)}")
    if not 0 <= channel < len(groups.writers[layer]):
        raise CodeqError(f"channel={channel}: layer {layer!r} has channels 0 … {len(groups.writers[layer]) - 1}")
    number = int(groups.writers[layer][channel])
    if number < 0:
        return None
    writers, readers = groups.members(number)
    norms = [(name, int(c)) for name, of in groups.batchnorms.items() for c in np.flatnonzero(of == number)]
    chains = [f"{name}[{c}]{''.join(f' → {step}' for step in _path(graph, name))}" for name, c in writers]
    return CoupledGroup(number, tuple(writers), tuple(readers), tuple(norms), tuple(chains))


def without_layers(groups: CoupledGroups, layers: Collection[str]) -> CoupledGroups:
    """Return the coupled groups that none of `layers` writes or reads, numbered anew; channels of the others stay.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> from codeq.graph.channels import coupled_groups
    >>> from codeq.graph.tracing import trace
    >>> groups = coupled_groups(trace(resnet20()))
    >>> groups.count, without_layers(groups, {"layer1.0.conv1"}).count  # 16 of the stream and 16 inside the block fewer
    (400, 368)
    """
    stays = np.zeros(groups.count + 1, dtype=bool)
    for side in (groups.writers, groups.readers):
        for name in side.keys() & layers:
            stays[side[name]] = True
    stays[-1] = True  # entry -1: channels without a group
    number = np.where(stays, -1, np.cumsum(~stays) - 1)
    sides = (groups.writers, groups.readers, groups.batchnorms)
    writers, readers, batchnorms = ({name: number[of] for name, of in side.items()} for side in sides)
    count = int((~stays).sum())
    return replace(groups, count=count, writers=writers, readers=readers, batchnorms=batchnorms)


def _path(graph: ChannelGraph, layer: str) -> list[str]:
    """Return the operations after a layer, up to the first that joins tensors, a split or the next layer."""
    current: Op = graph.layer(layer)
    steps: list[str] = []
    while True:
        readers = [op for op in graph.readers(current.name) if not isinstance(op, Layer)]
        if len(readers) != 1:
            return steps
        current = readers[0]
        steps.append(_name(current))
        if not isinstance(current, (PerChannel, Gather)):
            return steps


def _name(op: Op) -> str:
    if isinstance(op, PerChannel):
        return op.batchnorm or op.name
    return f"{NAMES[type(op)]} ({op.name})"
