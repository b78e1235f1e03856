"""Rules of channel flow, which compute the units of the result of one call.

Each rule takes the call, its arguments with a `Value` for every tensor, and its result on the fixed part of them (0 in
place of elements that depend on the input). It returns a `Step`, or `None` if it does not apply to the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from codeq.flow import known
from codeq.flow.attention import attention_units
from codeq.flow.element_tracking import track_elements
from codeq.flow.elementwise import elementwise_units
from codeq.flow.layers import (
    Borders,
    borders_uneven,
    by_channel,
    kernels,
    output_units,
    positions,
    spread_over_space,
)
from codeq.flow.steps import Attention, Elementwise, LayerCall, Moved, Opaque, PerChannel, Reduced, Step
from codeq.flow.values import FIXED, Units, Value
from codeq.graph import known as shared
from codeq.graph.calls import BATCH, Calls, function_of, run_node, valued_arguments
from codeq.graph.leaves import plain_forward
from codeq.graph.overwriting import overwritten
from codeq.quantizer.activations import ActivationQuantizer
from codeq.quantizer.layers import LAYER_TYPES
from codeq.quantizer.transposed import TRANSPOSED_TYPES


class Rules:
    """Rules of channel flow for one traced network.

    Parameters
    ----------
    calls : Calls
        The recorded network.
    borders : {"map", "live"}
        See `codeq.flow.analysis.channel_flow`.
    counted_nonzero : mapping of str to array of bool
        Weights that count as non-zero in any case, by module: kernels of a layer, `[c_out, c_in / groups]`, and scales
        of a BatchNorm, `[channels]`.
    """

    def __init__(self, calls: Calls, borders: Borders, counted_nonzero: Mapping[str, np.ndarray]) -> None:
        self.calls = calls
        self.borders = borders
        self.counted_nonzero = counted_nonzero
        self.units = Units()

    def step(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | object:
        """Return the step of a call, or its result unchanged if that contains no tensor."""
        values, valued = _values((args, kwargs)), _values(valued_arguments(node, args, kwargs))
        try:
            raw, runs = self._run(node, args, kwargs, Value.batched), True
        except Exception:  # it takes no zeros in place of elements that depend on the input: the inverse of a matrix
            if not any(value.live for value in values):
                raise
            raw, runs = _zeros(node), False
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(raw)):
            return raw
        is_layer = isinstance(self.calls.module(node), LAYER_TYPES) and isinstance(raw, Tensor)
        step: Step | None
        if runs and is_layer and values and values[0].batch is not None:
            step = self._layer(node, args, kwargs, raw)
        elif not any(value.live for value in values):
            return self.fixed(raw, self.calls.larger[node])
        elif is_layer:
            step = self._whole_layer(self._opaque(node, args, kwargs, raw, values), self._module(node), raw)
        elif not runs:
            step = None
        elif self._returns_input(node, raw):
            return args[0]
        elif not any(value.live for value in valued) and not (fixed := self.fixed(raw, self.calls.larger[node])).folded:
            return fixed
        elif any(value.folded for value in values):
            step = None
        else:
            rule = self._rule(node)
            step = rule(node, args, kwargs, raw) if rule else None
        return step or self._opaque(node, args, kwargs, raw, values)

    def fixed(self, raw: Any, larger: Any) -> Any:
        """Return tensors that do not depend on the input as values, and other objects unchanged."""
        return self._wrap(raw, larger, lambda data: np.broadcast_to(np.int64(FIXED), data.shape))

    def _module(self, node: fx.Node) -> nn.Module:
        return self.calls.modules[str(node.target)]

    def _run(self, node: fx.Node, args: Any, kwargs: Any, tensor: Callable[[Value], Tensor]) -> Any:
        args, kwargs = pytree.tree_map(lambda leaf: tensor(leaf) if isinstance(leaf, Value) else leaf, (args, kwargs))
        return run_node(node, self.calls.modules, args, kwargs)

    def _returns_input(self, node: fx.Node, raw: Any) -> bool:
        kind = type(self._module(node)) if node.op == "call_module" else None
        unchanged = kind in shared.UNCHANGED_MODULES or function_of(node) in shared.UNCHANGED_METHODS
        return unchanged or (function_of(node) in shared.DETACH and not (raw.is_floating_point() or raw.is_complex()))

    def _rule(self, node: fx.Node) -> Callable[..., Step | None] | None:
        if node.op == "call_module":
            kind = type(self._module(node))  # not isinstance: a subclass may compute something else
            if kind in known.STRUCTURAL_MODULES:
                return self._moved
            one_slope = kind is nn.PReLU and self._module(node).num_parameters == 1
            if kind in known.ELEMENTWISE_MODULES or kind is ActivationQuantizer or one_slope:
                return self._elementwise
            return self._per_channel if kind in (*known.WITH_CHANNELS, *known.SPATIAL_MODULES) else None
        structural = node.target in known.STRUCTURAL_FUNCTIONS
        if node.target is getattr:
            structural = node.args[1] in known.STRUCTURAL_ATTRIBUTES
        if node.target is overwritten:
            structural = node.args[1] in known.STRUCTURAL_OVERWRITES
        if structural:
            return self._moved
        if node.target in known.ELEMENTWISE_FUNCTIONS:
            return self._elementwise
        if node.target in known.SPATIAL_FUNCTIONS:
            return self._per_channel
        if node.target is F.scaled_dot_product_attention:
            return self._attention
        return self._reduced if node.target in known.REDUCTIONS else None

    def _wrap(self, raw: Any, larger: Any, units: Callable[[Tensor], np.ndarray]) -> Any:
        """Replace each tensor of a result by a value, whose units `units` computes from its data."""
        leaves, spec = pytree.tree_flatten(raw)
        shapes = pytree.tree_leaves(larger, is_leaf=lambda leaf: isinstance(leaf, torch.Size))
        return pytree.tree_unflatten(
            [
                self._value(leaf, shape, units) if isinstance(leaf, Tensor) else leaf
                for leaf, shape in zip(leaves, shapes, strict=True)
            ],
            spec,
        )

    @staticmethod
    def _value(raw: Tensor, larger: torch.Size, units: Callable[[Tensor], np.ndarray]) -> Value:
        grown = [axis for axis, (a, b) in enumerate(zip(raw.shape, larger, strict=True)) if a != b]
        batch = grown[0] if len(grown) == 1 and raw.shape[grown[0]] == BATCH else None
        data = raw.select(batch, 0) if batch is not None else raw
        data_units = units(data)
        folded = batch is None and (bool(grown) or bool((data_units != FIXED).any()))
        if data.is_floating_point():
            data = torch.where(torch.from_numpy(np.array(data_units != FIXED)), 0.0, data)
        return Value(data, data_units, batch, folded)

    def _opaque(self, node: fx.Node, args: Any, kwargs: Any, raw: Any, values: Sequence[Value]) -> Step:
        read = np.unique(np.concatenate([np.unique(value.units) for value in values]))
        unit = self.units.fresh(read[read != FIXED])
        result = self._wrap(raw, self.calls.larger[node], lambda data: np.broadcast_to(np.int64(unit), data.shape))
        return Opaque(node, args, kwargs, result, call=describe(node, self.calls.module(node)))

    def _moved(self, node: fx.Node, args: Any, kwargs: Any, raw: Any) -> Step | None:
        values = _values((args, kwargs))
        sources = [value for value in values if value.data.is_floating_point()]  # the others are indices
        if any(value.live for value in values if value not in sources):
            return None
        result = self.fixed(raw, self.calls.larger[node])
        leaves, spec = pytree.tree_flatten(result)
        found = track_elements(lambda tensor: self._run(node, args, kwargs, tensor), sources, leaves)
        if found is None:
            return None
        tracked, origins = found
        return Moved(node, args, kwargs, pytree.tree_unflatten(tracked, spec), sources, origins)

    def _attention(self, node: fx.Node, args: Any, kwargs: Any, raw: Tensor) -> Step | None:
        options = [*args[3:], *kwargs.values()]  # a mask, dropout, causal or grouped attention
        if len(args) < 3 or any(
            isinstance(option, Value) or option for option in options if option != kwargs.get("scale")
        ):
            return None
        units = attention_units(self.units, *args[:3])
        if units is None:
            return None
        return Attention(node, args, kwargs, self._value(raw, self.calls.larger[node], lambda _: units))

    def _elementwise(self, node: fx.Node, args: Any, kwargs: Any, raw: Any) -> Step | None:
        if not isinstance(raw, Tensor) or not raw.is_floating_point():
            return None
        multiplies = function_of(node) in known.MULTIPLICATIONS
        units = elementwise_units(
            self.units, _values((args, kwargs)), self.fixed(raw, self.calls.larger[node]), multiplies
        )
        if units is None:
            return None
        return Elementwise(node, args, kwargs, self._value(raw, self.calls.larger[node], lambda _: units))

    def _per_channel(self, node: fx.Node, args: Any, kwargs: Any, raw: Any) -> Step | None:
        x = args[0]
        if not isinstance(raw, Tensor) or not isinstance(x, Value) or x.batch != 0 or x.data.ndim == 0:
            return None
        module = self._module(node) if node.op == "call_module" else None
        if isinstance(module, shared.BATCH_NORMS):
            if module.running_mean is None:
                return None
            units = x.units
            if module.weight is not None:  # scaled by 0, a channel equals BatchNorm's shift for every input
                scaled = (module.weight != 0).numpy() | self.counted_nonzero.get(self.calls.layer(node), False)
                units = np.where(scaled.reshape(-1, *[1] * (units.ndim - 1)), units, FIXED)
        elif isinstance(module, nn.PReLU):
            units = x.units
        elif x.data.ndim != 3:  # for a 3-dimensional tensor, pooling treats the batch as channels
            return None
        else:
            merged = self.units.merge(x.units.reshape(len(x.units), -1))
            units = np.broadcast_to(merged.reshape(-1, 1, 1), raw.shape[1:])
        return PerChannel(node, args, kwargs, self._value(raw, self.calls.larger[node], lambda _: units))

    def _reduced(self, node: fx.Node, args: Any, kwargs: Any, raw: Any) -> Step | None:
        x, position = args[0] if args else None, shared.dimensions_of(node.target)
        dims = args[position] if len(args) > position else kwargs.get("dim")
        dims = (dims,) if isinstance(dims, int) and not isinstance(dims, bool) else dims
        if not isinstance(raw, Tensor) or not isinstance(dims, (tuple, list)) or not isinstance(x, Value):
            return None
        if x.batch != 0:
            return None
        axes = sorted({dim % (x.data.ndim + 1) - 1 for dim in dims})
        if not axes or -1 in axes:  # without dimensions, over all of them
            return None
        rest = [axis for axis in range(x.data.ndim) if axis not in axes]
        size = int(np.prod([x.data.shape[axis] for axis in rest]))
        merged = self.units.merge(x.units.transpose(*rest, *axes).reshape(size, -1))
        if node.target in shared.SCANS:
            lines = np.expand_dims(merged.reshape([x.data.shape[axis] for axis in rest]), axes)
            merged = np.broadcast_to(lines, x.data.shape)
        result = self._value(raw, self.calls.larger[node], lambda data: merged.reshape(data.shape))
        return (Reduced if 0 in axes else PerChannel)(node, args, kwargs, result)

    def _layer(self, node: fx.Node, args: Any, kwargs: Any, raw: Tensor) -> Step:
        layer, x = self._module(node), args[0]
        linear = isinstance(layer, nn.Linear)
        usual = x.batch != x.data.ndim if linear else x.batch == 0 and x.data.ndim == raw.ndim - 1
        if not usual or not plain_forward(layer) or kwargs or len(args) > 1:
            return self._whole_layer(self._opaque(node, args, kwargs, raw, [x]), layer, raw)
        name = self.calls.layer(node)
        nonzero = kernels(layer) | self.counted_nonzero.get(name, False)
        read = by_channel(layer, x.units)
        live_in = (read != FIXED).any(axis=1)
        carried = borders_uneven(layer, x) if self.borders == "live" else np.zeros(len(live_in), dtype=bool)
        groups = int(getattr(layer, "groups", 1))
        reads_carried = (nonzero.reshape(groups, -1, nonzero.shape[1]) & carried.reshape(groups, 1, -1)).any(axis=2)
        units = output_units(self.units, nonzero, groups, read, reads_carried.ravel())
        result = self._value(
            raw, self.calls.larger[node], lambda data: spread_over_space(layer, units, tuple(data.shape))
        )
        count = positions(layer, tuple(x.data.shape), tuple(result.data.shape))
        return LayerCall(node, args, kwargs, result, name, layer, nonzero, live_in, count, carried)

    def _whole_layer(self, step: Step, layer: nn.Module, raw: Tensor) -> LayerCall:
        """Return the step of a layer that is used in an unusual way: it is kept unchanged and all channels count."""
        nonzero = kernels(layer)
        positioned = step.args[0].batched() if isinstance(layer, TRANSPOSED_TYPES) else raw
        channels = positioned.shape[-1 if isinstance(layer, nn.Linear) else 1]
        count = positioned.numel() // channels // BATCH
        live_in = np.ones(nonzero.shape[1] * int(getattr(layer, "groups", 1)), dtype=bool)
        return LayerCall(
            step.node, step.args, step.kwargs, step.result, self.calls.layer(step.node), layer, nonzero, live_in, count,
            carried=~live_in, opaque=True,
        )  # fmt: skip


def _zeros(node: fx.Node) -> Any:
    """Return zeros in place of the tensors that a call returned while it was recorded."""

    def is_shape(leaf: Any) -> bool:
        return isinstance(leaf, torch.Size)

    def zeros(leaf: Any) -> Any:
        return torch.zeros(leaf, dtype=torch.float64) if is_shape(leaf) else leaf

    return pytree.tree_map(zeros, node.meta["result"], is_leaf=is_shape)


def _values(arguments: Any) -> list[Value]:
    return [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Value)]


def describe(node: fx.Node, module: nn.Module | None) -> str:
    """Return the name and place of a call: ``norm (LayerNorm)``, ``softmax in blocks.0.attn``."""
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    name = str(node.args[1]) if node.target is overwritten else getattr(node.target, "__name__", str(node.target))
    place = node.meta.get("place")
    return f"{name} in {place}" if place else name
