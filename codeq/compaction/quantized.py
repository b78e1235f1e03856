"""Quantizers of a compacted network: latent weights behind the kept weights, and scales that stay as they are."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from codeq.common.errors import CodeqError
from codeq.compaction.layers import of_kept_channels
from codeq.compaction.origins import Origin, constant_parameters, trained_calls, trained_parameters
from codeq.flow import ChannelFlow
from codeq.flow.rules import describe
from codeq.flow.steps import LayerCall
from codeq.flow.values import Value
from codeq.graph.calls import function_of
from codeq.graph.known import DETACH
from codeq.quantizer.copies import give_copies_separate_classes
from codeq.quantizer.layers import WeightQuantization, distinct_layers, latent_weight, named_layers, named_quantizations
from codeq.quantizer.scaled import ScaledQuantizer
from codeq.quantizer.transposed import swap_channels, transposed_groups


@torch.no_grad()
def attach_kept_quantizers(
    compacted: nn.Module, model: nn.Module, flow: ChannelFlow, sources: Mapping[str, Origin]
) -> None:
    """Put the quantizers of `model` on the layers of `compacted`, in place.

    The scale `R` is a quantile over all weights of a layer, so it would change with the weights that are left: each
    quantizer holds the `R` that it has in `model`. Logits and learned scales stay parameters.

    Parameters
    ----------
    compacted : Module
        With plain weights, of the precision and on the device of `model`, and frozen as it is.
    model : Module
        With quantizers.
    flow : ChannelFlow
        Analysis of `model`, with the channels that its layers keep.
    sources : mapping of str to Origin
        Called module of `flow` that each module of `compacted` is made from.

    Raises
    ------
    CodeqError
        For a forward that switches gradients off behind a parameter that trains, for parameters that train behind a
        parametrization that is no quantizer (`weight_norm`, a mask), for a quantized layer that is called twice or
        shares its weight, or another module with parameters of which several parts are kept, since they would be
        trained apart, for a quantizer that gives the kept weights other values than before, and for that of a layer
        that returns something else than one tensor.
    """
    _refuse_stopped_gradients(model, flow)
    _refuse_parametrizations(compacted, model, flow, sources)
    _refuse_trained_apart(compacted, model, flow, sources)
    calls = flow.layers
    layers, distinct = dict(named_layers(model)), {name for name, _ in distinct_layers(model)}
    uses = Counter(call.name for call in calls)
    quantizations = {name: q for name, q in named_quantizations(model) if q.enabled}
    sharers = Counter(id(quantization) for quantization in quantizations.values())
    made = {origin.name: name for name, origin in sources.items()}
    for name in flow.unfollowed_layers:
        if name in quantizations and name in made:
            raise CodeqError(
                f"keep_quantizers=True: layer {name!r} returns something else than one tensor, so that its quantizer "
                "cannot be kept; compact with keep_quantizers=False"
            )
    copies: dict[int, Any] = {}  # parts of a grouped convolution still share what they share in `model`
    for call in calls:
        quantization = quantizations.get(call.name)
        if quantization is None or not call.kept_out.any():
            continue
        if uses[call.name] > 1 or call.name not in distinct or sharers[id(quantization)] > 1:
            raise _trained_apart(call.name)
        quantizer = copy.deepcopy(quantization.quantizer, copies)
        kept = compacted.get_submodule(made[str(call.node.target)])
        _quantize_kept(kept, call, layers[call.name], quantizer)


def _refuse_stopped_gradients(model: nn.Module, flow: ChannelFlow) -> None:
    """Refuse tensors that gradients flow through in a compacted network, but not in the same way in the whole one.

    ``x.detach()`` is a call that stays one. ``torch.no_grad()`` and an `autograd.Function` leave no call, and what is
    written into a detached tensor changes the values of the other one, but not its gradient. Before the first parameter
    that trains there are no gradients to stop.
    """
    trained, reached = trained_calls(model, flow.calls), set[fx.Node]()  # by gradients, in the compacted network
    for node in flow.calls.graph.nodes:
        base = node.args[0] if node.meta.get("overwrites") and node.args else None
        detached = base if isinstance(base, fx.Node) and function_of(base) in DETACH else None
        sources = (*node.all_input_nodes, *(detached.all_input_nodes if detached else ()))
        if (node in trained or not reached.isdisjoint(sources)) and (detached or _differentiable(flow.results[node])):
            read = not all(user.meta.get("without_gradients") for user in node.users)
            if detached or (node.meta.get("without_gradients") and read):
                raise CodeqError(
                    f"keep_quantizers=True: {describe(node, flow.calls.module(node))} runs without gradients "
                    "(torch.no_grad, an autograd.Function, or a write into a detached tensor), which a compacted "
                    "network would train through; compact with keep_quantizers=False"
                )
            if function_of(node) not in DETACH:
                reached.add(node)


def _differentiable(result: Any) -> bool:
    values = [value for value in pytree.tree_leaves(result) if isinstance(value, Value)]
    return any(value.live and (value.data.is_floating_point() or value.data.is_complex()) for value in values)


def _refuse_parametrizations(
    compacted: nn.Module, model: nn.Module, flow: ChannelFlow, sources: Mapping[str, Origin]
) -> None:
    """Refuse parameters that train behind something else than a quantizer: they would train as plain ones."""
    modules, kept = dict(model.named_modules()), dict(compacted.named_modules())
    for called in [origin.name for name, origin in sources.items() if name in kept]:
        layer = flow.calls.layers.get(called, called)
        # A function can be called with a parameter of a module that is no layer.
        inside = modules[layer].named_modules(prefix=layer) if layer in modules else [_owner_of(layer, modules)]
        for name, module in inside:
            chains: Any = cast(Any, module).parametrizations if parametrize.is_parametrized(module) else {}
            for chain in chains.values():
                others = [type(part).__name__ for part in chain if not isinstance(part, WeightQuantization)]
                if others and any(parameter.requires_grad for parameter in chain.parameters()):
                    raise CodeqError(
                        f"keep_quantizers=True: {name!r} has the parametrization {others[0]}, which is no quantizer "
                        "and would not be kept; make it permanent by torch.nn.utils.parametrize."
                        "remove_parametrizations, or compact with keep_quantizers=False"
                    )


def _owner_of(parameter: str, modules: Mapping[str, nn.Module]) -> tuple[str, nn.Module]:
    owner = parameter.rpartition(".")[0]
    return owner, modules[owner]


def _refuse_trained_apart(
    compacted: nn.Module, model: nn.Module, flow: ChannelFlow, sources: Mapping[str, Origin]
) -> None:
    """Refuse parameters that train and that several modules of a compacted network have copies or parts of.

    Those of `model` count: in the recorded copy the weight of a quantized layer is another one than that of an
    embedding, an excluded layer or a call of a function that shares it.
    """
    modules, made = dict(compacted.named_modules()), dict[nn.Parameter, str]()
    shared = trained_parameters(model, flow.calls)
    for name, origin in sources.items():
        if name in modules and any(parameter.requires_grad for parameter in modules[name].parameters()):
            for parameter in flow.calls.modules[origin.name].parameters():
                if made.setdefault(shared.get(parameter, parameter), name) != name:
                    raise _trained_apart(flow.calls.layers.get(origin.name, origin.name))
    for name in constant_parameters(model, flow.calls):
        if shared[flow.calls.model.get_parameter(name)] in made:
            raise _trained_apart(made[shared[flow.calls.model.get_parameter(name)]])


def _trained_apart(layer: str) -> CodeqError:
    return CodeqError(
        f"keep_quantizers=True: layer {layer!r} is used more than once or shares its weights, and the layers made from "
        "it would be trained apart; compact with keep_quantizers=False"
    )


def _quantize_kept(kept: nn.Module, call: LayerCall, layer: nn.Module, shared: nn.Module) -> None:
    """Quantize the layer made from `layer`, or the several ones of a grouped convolution (see `Parts`)."""
    w, groups = latent_weight(layer), transposed_groups(layer)
    parts, latents = [part for _, part in named_layers(kept)], _selected(call, w)
    quantizers = [shared] * len(parts)
    if isinstance(shared, ScaledQuantizer):
        wide = swap_channels(w, groups)
        scale = shared.magnitude(wide) if shared.stored_scale is None else shared.stored_scale
        shared.set_scale(scale)
        if scale.ndim:
            rows = _selected(call, swap_channels(scale.expand_as(wide), groups))
            quantizers = [_with_rows(shared, part, values) for part, values in zip(parts, rows, strict=True)]
    for part, latent, quantizer in zip(parts, latents, quantizers, strict=True):
        expected = cast(Tensor, part.weight).detach()
        part.weight = nn.Parameter(latent.to(expected), requires_grad=w.requires_grad)
        quantize_weight(part, quantizer)
        if not torch.equal(part.weight, expected):
            raise CodeqError(
                f"keep_quantizers=True: quantizer {type(quantizer).__name__} of layer {call.name!r} gives its kept "
                "weights other values when the removed ones are gone; compact with keep_quantizers=False"
            )


def quantize_weight(layer: nn.Module, quantizer: nn.Module) -> None:
    """Put a quantizer on the weight of a layer of a compacted network, without computing anything."""
    quantization = WeightQuantization(quantizer, True, transposed_groups(layer))
    parametrize.register_parametrization(layer, "weight", quantization, unsafe=True)
    give_copies_separate_classes(layer)


def with_scale(shared: ScaledQuantizer, scale: Tensor) -> ScaledQuantizer:
    """Return a copy with a scale of its own, and with the logits of `shared`."""
    replica = copy.deepcopy(shared, {id(parameter): parameter for parameter in shared.parameters()})
    if replica.scale == "learned":
        replica.learned_absmax = nn.Parameter(replica.learned_absmax.detach())
    replica.set_scale(scale)
    return replica


def _with_rows(shared: ScaledQuantizer, part: nn.Module, values: Tensor) -> ScaledQuantizer:
    """Return a copy with the scales of the output channels of `part`, and with the logits of `shared`."""
    rows = swap_channels(values, transposed_groups(part)).flatten(1)[:, :1]
    return with_scale(shared, rows.reshape(-1, *[1] * (values.ndim - 1)).to(cast(Tensor, shared.stored_scale)))


def _selected(call: LayerCall, weight: Tensor) -> list[Tensor]:
    """Return those values of a tensor of the weight's shape that each layer made from this call keeps."""
    if call.opaque:
        return [weight.detach()]
    whole = copy.copy(call)
    whole.layer = copy.deepcopy(call.layer)
    whole.layer.weight = nn.Parameter(weight.detach().cpu().double(), requires_grad=False)
    return [cast(Tensor, part.weight).detach() for _, part in named_layers(of_kept_channels(whole, None))]
