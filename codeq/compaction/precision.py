"""Precision of a compacted network: that of the weights of the network that it is made from."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import fx, nn

from codeq.compaction.origins import Origin
from codeq.graph.baking import convert
from codeq.graph.functions import in_precision
from codeq.quantizer.activations import ActivationQuantizer
from codeq.quantizer.layers import reference_tensor


def set_precision(
    compacted: fx.GraphModule, dtype: torch.dtype, model: nn.Module, sources: Mapping[str, Origin]
) -> None:
    """Convert a compacted network from float64 to another type, in place.

    Quantizers of activations keep the types that they have in `model`: another step would make another grid.

    Parameters
    ----------
    compacted : GraphModule
        In float64, as are the types that its calls name (``softmax(…, dtype=…)``).
    dtype : dtype
        Type to convert it to.
    model : Module
        The network that it is made from.
    sources : mapping of str to Origin
        Called module of `model` that each module of `compacted` is made from.
    """
    quantizers = {name: m for name, m in compacted.named_modules() if isinstance(m, ActivationQuantizer)}
    exact = {name: copy.deepcopy(quantizer) for name, quantizer in quantizers.items()}
    convert(compacted, dtype)
    for name, quantizer in exact.items():
        given = model.get_submodule(sources[name].name)
        compacted.set_submodule(name, quantizer.to(reference_tensor(given).dtype))
    for node in compacted.graph.nodes:
        node.args, node.kwargs = in_precision(dtype, node.args, node.kwargs)
    compacted.recompile()
