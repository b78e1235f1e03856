"""Rules of conv and linear layers: sizes, groups, output positions, and the quantizers of their inputs."""

from __future__ import annotations

from math import prod
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from codeq.graph.calls import BATCH, Calls
from codeq.graph.leaves import plain_forward
from codeq.graph.moves import moved_from
from codeq.graph.ops import Layer, UnfollowedWeight
from codeq.graph.overwriting import overwritten
from codeq.quantizer.activations import ActivationQuantizer, activation_bits
from codeq.quantizer.layers import LAYER_TYPES
from codeq.quantizer.transposed import TRANSPOSED_TYPES

# Position of the first tensor whose elements are in the result of a call that joins tensors.
JOINED: dict[Any, int] = {torch.cat: 0, torch.where: 1}

Base = tuple[str, tuple[str, ...], int]  # arguments of every operation: name, inputs, channels


def shape_of(node: fx.Node) -> torch.Size:
    """Return the shape of the result of a call that returns a tensor."""
    return cast(torch.Size, node.meta["result"])


def channel_axis(shape: torch.Size) -> int:
    """Return the dimension of the channels: the last of tokens `[N, tokens, C]`, else 1.

    A tensor of rank 3 whose channels lie elsewhere, such as `[N, C, H·W]`, only comes from an `Unknown`, whose
    channels stay live whatever its dimensions are.
    """
    return 2 if len(shape) == 3 else 1


def layer_sizes(layer: Any) -> tuple[int, int]:
    """Return the numbers of input and of output channels of a conv or linear layer.

    Examples
    --------
    >>> layer_sizes(nn.Linear(3, 4)), layer_sizes(nn.ConvTranspose2d(6, 8, 3, groups=2))
    ((3, 4), (6, 8))
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def call_of(node: fx.Node) -> str:
    """Return the kind, name and place of a call: ``call_module norm1``, ``call_function softmax in blocks.0``."""
    name, place = getattr(node.target, "__name__", node.target), node.meta.get("place")
    if node.target is overwritten:
        return f"call_method {node.args[1]}" + (f" in {place}" if place else "")
    return f"{node.op} {name}" + (f" in {place}" if place and node.op in ("call_function", "call_method") else "")


def input_quantizer(calls: Calls, node: fx.Node) -> str | None:
    """Return the name of the module that quantizes the input of the layer that `node` calls, `None` if it is float.

    Of several that give the joined parts of the input the same bits it is the first. In a compacted network elements
    can be selected, and constants put between them, after the quantizer.
    """
    return _quantizer_of(calls, node.args[0] if node.args else None)


def _quantizer_of(calls: Calls, source: Any) -> str | None:
    while isinstance(source, fx.Node):
        if isinstance(calls.module(source), ActivationQuantizer):
            return str(source.target)
        if source.target in JOINED:
            parts = [part for part in _nodes(source.args[JOINED[source.target] :]) if part in calls.varying]
            found = [_quantizer_of(calls, part) for part in parts]
            bits = {activation_bits(calls.modules, quantizer) for quantizer in found}
            return found[0] if len(bits) == 1 else None
        source = moved_from(calls, source)
    return None


def _nodes(arguments: Any) -> list[fx.Node]:
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, fx.Node)]


def layer_operation(base: Base, node: fx.Node, calls: Calls) -> Layer | UnfollowedWeight | None:
    """Return the operation of a conv or linear layer or its function, or `None` if its cost is unknown."""
    module, shape, larger = calls.module(node), shape_of(node), calls.larger[node]
    if not plain_forward(cast(nn.Module, module)) or node in calls.sizes_by_values:
        return None
    name, groups, quantizer = calls.layer(node), getattr(module, "groups", 1), input_quantizer(calls, node)
    of_layer = isinstance(calls.modules.get(name), LAYER_TYPES)
    if isinstance(module, nn.Linear) and len(shape) in (2, 3) and elements_of_one(node, calls):
        # Number of positions for one input. Tokens or windows may be merged into the batch dimension, and they count.
        spatial = (larger[:-1].numel() - shape[:-1].numel() or shape[:-1].numel(), 1)
    elif isinstance(module, nn.Conv2d) and len(shape) == 4 and shape[0] == BATCH * (larger[0] - shape[0]):
        # Frames of a video or pairs of images may be merged into the batch dimension as well.
        spatial = (larger[0] - shape[0]) * shape[2], shape[3]
    elif positions := _positions(node, calls):
        used, written = positions
        transposed = isinstance(module, TRANSPOSED_TYPES)
        return UnfollowedWeight(*base, call_of(node), name, groups, (used, 1), written, quantizer, transposed)
    else:
        return None
    if of_layer:
        return Layer(*base, name, groups, spatial, quantizer)
    return UnfollowedWeight(*base, f"weight {name}", name, groups, spatial, base[2] * prod(spatial), quantizer)


def _positions(node: fx.Node, calls: Calls) -> tuple[int, int] | None:
    """Return the positions at which one input uses each weight of a layer, and the elements of its result.

    The channels of its tensors may lie in any dimension.
    """
    layer = calls.module(node)
    inputs, outputs = layer_sizes(layer)
    written = elements_of_one(node, calls)
    used = written // outputs
    if isinstance(layer, TRANSPOSED_TYPES):
        used = elements_of_one(node.all_input_nodes[0], calls) // inputs
    return (used, written) if used and written else None


def elements_of_one(node: fx.Node, calls: Calls) -> int:
    """Return the elements of a tensor for one input, 0 if they are not as many for each."""
    whole = shape_of(node).numel()
    growth = calls.larger[node].numel() - whole  # by one more input
    return (growth or whole) if growth * BATCH in (0, whole) else 0
