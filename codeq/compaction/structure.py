"""Structure of a compacted network as plain data.

The data name modules and functions of the network before any compaction, which its factory builds. What is not in that
network, or among the few modules and functions that compaction adds, cannot be named, so a file runs no other code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import fx, nn

from codeq.compaction import parts
from codeq.compaction.arguments import encode
from codeq.compaction.layers import channel_count
from codeq.compaction.origins import Origin, origins_of
from codeq.flow.known import WITH_CHANNELS
from codeq.graph.layer_rules import layer_sizes
from codeq.quantizer.activations import ActivationQuantizer
from codeq.quantizer.layers import weight_quantization

Structure = dict[str, Any]


def describe(model: nn.Module) -> Structure | None:
    """Return the structure of a compacted network, `None` for any other.

    Returns
    -------
    dict
        Numbers, strings, lists and dictionaries: ``input_size``; ``nodes``, the calls in order, each a list of its
        kind, target, arguments and named arguments; ``modules``, the called modules by name.
    """
    origins = origins_of(model)
    if origins is None:
        return None
    assert isinstance(model, fx.GraphModule)
    numbers = {node: number for number, node in enumerate(model.graph.nodes)}
    nodes, modules = [], {}
    for node in model.graph.nodes:
        target = function_name(node.target) if node.op == "call_function" else str(node.target)
        nodes.append([node.op, target, encode(node.args, numbers), encode(node.kwargs, numbers)])
        if node.op in ("call_module", "get_attr"):
            name = target if node.op == "call_module" else target.rpartition(".")[0]
            modules[name] = _describe_module(model.get_submodule(name), name, origins)
    size = cast(parts.InputSize, model.get_submodule("input_size")).size
    return {"input_size": list(size), "nodes": nodes, "modules": modules}


def _describe_module(module: nn.Module, name: str, origins: Mapping[str, Origin]) -> dict[str, Any]:
    match module:
        case parts.InputSize() | parts.Fill() | parts.Constant() | parts.BiasMap():
            return {"kind": type(module).__name__}
        case parts.Take():
            return {"kind": "Take", "dim": module.dim, "flat": module.flat}
        case parts.Restore():
            return {"kind": "Restore", "dim": module.dim, "shape": list(module.shape)}
        case parts.Parts():
            return {"kind": "Parts", "parts": [_describe_layer(part, origins[name]) for part in module.parts]}
        case ActivationQuantizer():
            return {"kind": "input", "bits": module.bits, "method": module.method, "symmetric": module.symmetric}
        case _ if name not in origins:
            return {"kind": "Buffer"}
    origin = origins[name]
    if origin.whole:
        return {"kind": "copy", "of": origin.name, "quantized": weight_quantization(module) is not None}
    if isinstance(module, WITH_CHANNELS):
        kind = "slopes" if isinstance(module, nn.PReLU) else "norm"
        return {"kind": kind, "of": origin.name, "channels": channel_count(module)}
    return _describe_layer(module, origin)


def _describe_layer(layer: Any, origin: Origin) -> dict[str, Any]:
    inputs, outputs = layer_sizes(layer)
    return {
        "kind": "layer",
        "of": origin.name,
        "inputs": inputs,
        "outputs": outputs,
        "groups": getattr(layer, "groups", 1),
        "bias": layer.bias is not None,
        "quantized": weight_quantization(layer) is not None,
    }


def function_name(function: Any) -> str:
    """Return the name of a function with its module, which tells apart those of one name."""
    name = getattr(function, "__qualname__", str(function))
    if "<locals>" in name:  # the poolings of torch.nn.functional share one such name
        name = function.__name__
    return f"{getattr(function, '__module__', None)}.{name}"
