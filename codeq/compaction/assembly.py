"""The compacted network of a structure, built from the modules of the network before any compaction."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from codeq.common.default_device import cpu_by_default
from codeq.common.errors import CodeqError
from codeq.compaction import parts
from codeq.compaction.arguments import decode
from codeq.compaction.layers import channel_count, of_channels, same_kind
from codeq.compaction.origins import Origin, freeze_alike, set_origins, source_of
from codeq.compaction.quantized import quantize_weight, with_scale
from codeq.compaction.structure import Structure, function_name
from codeq.flow.known import WITH_CHANNELS
from codeq.graph import spellings
from codeq.graph.baking import convert
from codeq.graph.call_recording import record_calls
from codeq.graph.calls import Calls
from codeq.graph.layer_rules import layer_sizes
from codeq.graph.overwriting import overwritten
from codeq.quantizer.activations import ActivationQuantizer
from codeq.quantizer.layers import LAYER_TYPES, named_layers, named_quantizations
from codeq.quantizer.precision import weight_type
from codeq.quantizer.scaled import ScaledQuantizer

# What compaction, and another one of its result, calls besides the calls of the network itself.
_FUNCTIONS = (operator.getitem, operator.mul, operator.add, torch.movedim, torch.cat, torch.where)
_BY_NAME = (getattr, overwritten)  # they read or call the attribute that their second argument names
_METHODS = {"size", "permute", "reshape", "flatten", "expand", "index_select", "to", "add"}
_NAME = re.compile(r"[\w -]+(\.[\w -]+)*")  # PyTorch writes names into the code of the forward
_SCALES = ("held_absmax", "learned_absmax")


@cpu_by_default()
def build_compacted(
    structure: Structure, state: Mapping[str, Tensor], whole: nn.Module, quantize: bool = False
) -> fx.GraphModule:
    """Build the compacted network of a structure, whose weights are still to be loaded.

    Parameters
    ----------
    structure : dict
        See `codeq.compaction.structure.describe`.
    state : mapping of str to Tensor
        State dict of the compacted network, which gives the shapes of fixed maps and scales.
    whole : Module
        The network before any compaction, with its quantizers and any weights.
    quantize : bool
        Whether a float compacted network gets the quantizers of `whole`, with stored scales still empty.

    Returns
    -------
    GraphModule
        In evaluation mode on the CPU; all parameters train, except those that do not in `whole`.

    Raises
    ------
    CodeqError
        If the structure is malformed, or is not that of a network made from `whole`.
    """
    try:
        return _Assembly(structure, state, whole, quantize).network()
    except CodeqError:
        raise
    except Exception as error:  # whatever wrong data cause
        raise CodeqError(
            f"the structure of the compacted network is damaged, or not made from this {type(whole).__name__}: "
            f"{type(error).__name__}: {str(error)[:200]}"
        ) from error


class _Assembly:
    def __init__(self, structure: Structure, state: Mapping[str, Tensor], whole: nn.Module, quantize: bool) -> None:
        self.size = tuple(map(int, structure["input_size"]))
        self.structure, self.state, self.whole = structure, state, whole
        self.input_size = parts.InputSize(self.size, weight_type(whole, torch.float32))
        # Not every operation takes types of less than 32 bits; buffers that the state lacks keep all of their bits.
        precision = torch.promote_types(self.input_size.dtype, torch.float32)
        self.calls: Calls = record_calls(whole, self.size, precision)
        self.root = nn.Module()
        self.origins: dict[str, Origin] = {}
        self.quantize = quantize
        self.quantized: list[str] = []

    def network(self) -> fx.GraphModule:
        for name, settings in self.structure["modules"].items():
            self._add(name, self._module(name, settings))
        network = fx.GraphModule(self.root, self._graph(), class_name="Compacted")
        network.add_submodule("input_size", self.input_size)  # which a constant network does not call
        set_origins(network, self.origins)
        freeze_alike(network, self.whole, self.calls, lambda name: source_of(name, self.origins))
        self._quantize(network)
        return network.eval()

    def _add(self, name: str, module: nn.Module) -> None:
        if not _NAME.fullmatch(name):
            raise CodeqError(f"module name {name!r:.200} of the structure: must be a dotted name")
        parts.add_nested(self.root, name, module)

    def _module(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        def stored(key: str) -> Tensor:
            return self.state[f"{name}.{key}"].clone()

        match settings["kind"]:
            case "InputSize":
                return self.input_size
            case "Take":
                return parts.Take(stored("index"), int(settings["dim"]), bool(settings["flat"]))
            case "Restore":
                return parts.Restore(stored("fixed"), stored("order"), settings["shape"], int(settings["dim"]))
            case "Fill":
                return parts.Fill(stored("mask"), stored("fixed"))
            case "Constant":
                return parts.Constant(stored("fixed"))
            case "BiasMap":
                return parts.BiasMap(stored("map"))
            case "Buffer":
                holder = nn.Module()
                holder.register_buffer("fixed", stored("fixed"))
                return holder
            case "input":
                quantizer = ActivationQuantizer(settings["bits"], settings["method"], settings["symmetric"])
                return quantizer.to(stored("step").dtype)
            case "Parts":
                layers = [self._made(f"{name}.parts.{i}", layer) for i, layer in enumerate(settings["parts"])]
                self.origins[name] = Origin(settings["parts"][0]["of"], whole=False)
                takes = [stored(f"takes.{i}.index") for i in range(len(layers))]
                return parts.Parts(layers, takes, stored("order"))
        return self._made(name, settings)

    def _made(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        """Return the copy or the smaller version of a module of the whole network, of the type of its weights."""
        kind, source = settings["kind"], cast(Any, self.calls.modules[settings["of"]])
        self.origins[name] = Origin(settings["of"], whole=kind == "copy")
        if settings.get("quantized"):
            self.quantized.append(name)
        if kind == "copy":
            made = copy.deepcopy(source)
        elif kind in ("norm", "slopes") and isinstance(source, WITH_CHANNELS):
            made = of_channels(source, _at_most(channel_count(source), settings["channels"]))
        elif kind == "layer" and isinstance(source, LAYER_TYPES):
            most_inputs, most_outputs = layer_sizes(source)
            inputs, outputs = _at_most(most_inputs, settings["inputs"]), _at_most(most_outputs, settings["outputs"])
            made = same_kind(source, inputs, outputs, int(settings["groups"]), bool(settings["bias"]))
        else:
            raise CodeqError(f"module {name!r:.200} of the structure: kind {kind!r:.200} of {settings['of']!r:.200}")
        return convert(made, self.input_size.dtype)

    def _graph(self) -> fx.Graph:
        own = [node for node in self.calls.graph.nodes if node.op == "call_function"]
        functions = {function_name(function): function for function in (*_FUNCTIONS, *(node.target for node in own))}
        methods = _METHODS | {str(node.target) for node in self.calls.graph.nodes if node.op == "call_method"}
        # Files of earlier versions have second names.
        functions |= {function_name(a): a for a, b in spellings.FUNCTIONS.items() if function_name(b) in functions}
        methods |= {second for second, first in spellings.METHODS.items() if first in methods}
        attributes = {(node.target, node.args[1]) for node in own if node.target in _BY_NAME}
        graph, nodes = fx.Graph(), list[fx.Node]()
        for op, target, *arguments in self.structure["nodes"]:
            args, kwargs = (decode(argument, nodes) for argument in arguments)
            match op:
                case "placeholder" if not nodes:
                    nodes.append(graph.placeholder("x"))
                case "output":
                    nodes.append(graph.output(*args))
                case "get_attr" if _NAME.fullmatch(target):
                    nodes.append(graph.get_attr(target))
                case "call_module" if target in self.structure["modules"]:
                    nodes.append(graph.call_module(target, args, kwargs))
                case "call_method" if target in methods:
                    nodes.append(graph.call_method(target, args, kwargs))
                case "call_function" if target in functions and (
                    functions[target] not in _BY_NAME or (functions[target], args[1]) in attributes
                ):
                    nodes.append(graph.call_function(functions[target], args, kwargs))
                case _:
                    raise CodeqError(
                        f"the structure of the compacted network calls {str(target)[:200]!r}, which this "
                        f"{type(self.whole).__name__} does not"
                    )
        graph.lint()
        return graph

    def _quantize(self, network: nn.Module) -> None:
        layers, quantizations = dict(named_layers(network)), dict(named_quantizations(self.whole))
        shared: dict[str, nn.Module] = {}
        fresh = [name for name in layers if name in self.origins and self._layer_of_whole(name) in quantizations]
        for name in fresh if self.quantize else self.quantized:
            origin = self._layer_of_whole(name)
            if origin not in quantizations:
                raise CodeqError(f"layer {origin!r:.200} is quantized in the compacted network only")
            quantizer = shared.setdefault(origin, copy.deepcopy(quantizations[origin].quantizer))
            if isinstance(quantizer, ScaledQuantizer):
                quantizer = self._with_own_scale(quantizer, f"{name}.parametrizations.weight.0.quantizer")
            quantize_weight(layers[name], quantizer)

    def _layer_of_whole(self, name: str) -> str:
        target = self.origins[name].name
        return self.calls.layers.get(target, target)

    def _with_own_scale(self, shared: ScaledQuantizer, place: str) -> ScaledQuantizer:
        """Give a quantizer the scale of its layer: stored in the state, still empty, or computed from the weights.

        Convolutions made from one share the logits, but each has the scales of its own output channels.
        """
        scale = next((self.state[f"{place}.{key}"] for key in _SCALES if f"{place}.{key}" in self.state), None)
        if scale is None:
            if shared.stored_scale is None:
                return shared
            scale = shared.stored_scale.new_empty(0)
        if shared.granularity == "channel":
            return with_scale(shared, scale)
        shared.set_scale(scale)
        return shared


def _at_most(limit: int, number: Any) -> int:
    if not 0 < int(number) <= limit:
        raise CodeqError(f"{number!r:.200} channels in the structure: must be from 1 to {limit}")
    return int(number)
