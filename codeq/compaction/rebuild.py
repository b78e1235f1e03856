"""Construction of the compacted network from the result of channel flow, call by call."""

from __future__ import annotations

import copy
import operator
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from codeq.common.errors import CodeqError
from codeq.compaction.layers import of_channels, smaller
from codeq.compaction.origins import Origin, inherited_origin, set_origins
from codeq.compaction.parts import BiasMap, InputSize
from codeq.compaction.storage import Builder, Layout, Piece, Stored
from codeq.flow import ChannelFlow, known
from codeq.flow.elementwise import aligned_shape
from codeq.flow.steps import Attention, Elementwise, Input, LayerCall, Moved, Opaque, Output, PerChannel, Reduced, Step
from codeq.flow.values import Value
from codeq.graph.calls import BATCH, function_of
from codeq.graph.known import DETACH
from codeq.quantizer.activations import INPUT_QUANTIZER, OUTPUT_QUANTIZER, ActivationQuantizer


def rebuild(
    flow: ChannelFlow, absorb: bool, trains: bool
) -> tuple[fx.GraphModule, dict[str, Origin], dict[str, LayerCall]]:
    """Return a float64 network in evaluation mode that computes only needed elements that depend on the input.

    With `absorb`, biases replace the fixed maps of padded convolutions, which makes results at the borders inexact.
    A network that `trains` stops gradients where that of `flow` does; any other needs no ``detach()``. The second
    result names the called modules of `flow` that the modules of the network are made from, the third the calls of its
    smaller layers.
    """
    rebuilding = _Rebuild(flow, absorb, trains)
    return rebuilding.module(), rebuilding.sources, rebuilding.calls


class _Rebuild:
    def __init__(self, flow: ChannelFlow, absorb: bool, trains: bool) -> None:
        self.flow, self.absorb, self.trains = flow, absorb, trains
        graph, root = fx.Graph(), nn.Module()
        argument = graph.placeholder("x")
        self.input_size = InputSize(flow.calls.input_size, torch.double)
        root.add_module("input_size", self.input_size)
        self.builder = Builder(graph, root, graph.call_module("input_size", (argument,)))
        self.stored: dict[Value, Stored] = {}
        self.copies: dict[tuple[Any, ...], str] = {}  # names of modules, by those they are copies of and channels
        self.origins: dict[str, Origin] = {}  # in the network before any compaction
        self.sources: dict[str, Origin] = {}  # in the network that is compacted now
        self.calls: dict[str, LayerCall] = {}  # that smaller layers are made from

    def module(self) -> fx.GraphModule:
        for step in self.flow.steps:
            match step:
                case Input():
                    self._input(step)
                case Moved():
                    self._moved(step)
                case LayerCall() if not step.opaque:
                    self._layer(step)
                case Elementwise():
                    self._elementwise(step)
                case PerChannel():
                    self._per_channel(step)
                case Reduced():
                    self._reduced(step)
                case Opaque() | Attention() | LayerCall():
                    self._opaque(step)
                case Output():
                    self.builder.graph.output(self._restored(step.node.args[0], step.node.name))
        compacted = fx.GraphModule(self.builder.root, self.builder.graph, class_name="Compacted")
        compacted.graph.eliminate_dead_code()
        compacted.delete_all_unused_submodules()  # whose weights would be saved, but not be read
        compacted.add_submodule("input_size", self.input_size)  # of a constant network, too
        compacted.graph.lint()
        compacted.recompile()
        set_origins(compacted, self.origins)
        return compacted.eval()

    def _kept(self, value: Value) -> np.ndarray:
        """Return which elements of a value the compacted network computes."""
        return self.flow.needed[value.units]

    def _find(self, value: Value) -> Stored:
        return self.stored.get(value) or Stored((), np.full(value.units.shape, -1))

    def _store(self, value: Value, node: fx.Node, layout: Layout) -> None:
        if not value.units.shape:  # one number for each input: stored as `[N, 1]`, as an elementwise result is
            node = self.builder.graph.call_method("reshape", (node, -1, 1))
        where = layout.where()
        chosen = layout.select(np.arange(where.size).reshape(where.shape))
        kept = np.where(self._kept(value), where, -1)
        self.stored[value] = Stored((Piece(node, chosen.shape),), kept)

    def _get(self, step: Step, value: Value, elements: np.ndarray, expand: bool = True) -> fx.Node:
        return self.builder.get(step.node.name, value, self._find(value), elements, expand)

    def _input(self, step: Input) -> None:
        shape = step.result.units.shape
        self._store(step.result, self.builder.source, Layout(shape, 0, np.arange(shape[0])))

    def _moved(self, step: Moved) -> None:
        """Record the new places of moved elements, without computing anything."""
        found = [self._find(value) for value in step.sources]
        starts = np.cumsum([0, *(sum(piece.size for piece in stored.pieces) for stored in found)])
        places = [np.where(s.where < 0, -1, s.where + start).ravel() for s, start in zip(found, starts, strict=False)]
        whole = np.append(np.concatenate(places), -1)  # the last entry is that of origin -1
        pieces = tuple(piece for stored in found for piece in stored.pieces)
        results = [leaf for leaf in pytree.tree_leaves(step.result) if isinstance(leaf, Value)]
        for value, origin in zip(results, step.origins, strict=True):
            self.stored[value] = Stored(pieces, whole[origin])

    def _layer(self, call: LayerCall) -> None:
        if not call.kept_out.any():
            return
        x: Value = call.args[0]
        axis = x.units.ndim - 1 if isinstance(call.layer, nn.Linear) else 0
        reads = Layout(x.units.shape, axis, np.flatnonzero(call.kept_in))
        inputs = self._get(call, x, reads.select(_indices(x)))
        layer, bias_map = smaller(call, self.absorb)
        node = self.builder.call(call.name, layer, inputs)
        self.calls[str(node.target)] = call
        self._note(str(node.target), str(call.node.target), whole=False)
        if bias_map is not None:
            node = self.builder.call(f"{call.name.replace('.', '_')}_bias", BiasMap(bias_map.clone()), node)
        shape = call.result.units.shape
        axis = len(shape) - 1 if isinstance(call.layer, nn.Linear) else 0
        self._store(call.result, node, Layout(shape, axis, np.flatnonzero(call.kept_out)))

    def _elementwise(self, step: Elementwise) -> None:
        kept = self._kept(step.result)
        if not kept.any():
            return
        layout = Layout.of(kept)

        def elements(value: Value) -> np.ndarray:
            return layout.select(_indices(value).reshape(cast(Any, aligned_shape(value, step.result))))

        # A constant may be stored smaller than it is if the other operands give the result its shape.
        operands = [self.flow.results[node] for node in step.node.all_input_nodes]
        chosen = [(value, elements(value)) for value in operands if isinstance(value, Value)]
        computed = [e.shape for value, e in chosen if (self._find(value).where.ravel()[e] >= 0).any()]
        spanned = np.broadcast_shapes(*computed) == layout.select(_indices(step.result)).shape

        def operand(value: Value) -> fx.Node:
            return self._get(step, value, elements(value), expand=not spanned)

        args, kwargs = self._arguments(step, operand)
        self._store(step.result, self._emit(step, args, kwargs), layout)

    def _per_channel(self, step: PerChannel) -> None:
        kept = self._kept(step.result)
        if not kept.any():
            return
        channels = Layout.of(kept, axis=0)
        x: Value = step.args[0]
        inputs = self._get(step, x, Layout(x.units.shape, 0, channels.index).select(_indices(x)))
        module = self.flow.calls.module(step.node)
        if isinstance(module, known.WITH_CHANNELS):
            target = str(step.node.target)
            key = target, *channels.index.tolist()
            if key not in self.copies:
                name = self.builder.add_module(self.flow.calls.layer(step.node), _chosen(module, channels.index))
                self._note(name, target, whole=False)
                self.copies[key] = name
            node = self.builder.graph.call_module(self.copies[key], (inputs,))
        else:
            args, kwargs = self._arguments(step, lambda _: inputs)
            node = self._emit(step, args, kwargs)
        self._store(step.result, node, channels)

    def _reduced(self, step: Reduced) -> None:
        if not self._kept(step.result).any():
            return
        result: Value = step.result
        args, kwargs = self._arguments(step, lambda value: self._get(step, value, _indices(value)))
        self._store(result, self._emit(step, args, kwargs), Layout.of(np.ones(result.units.shape, dtype=bool)))

    def _opaque(self, step: Step) -> None:
        results = [leaf for leaf in pytree.tree_leaves(step.result) if isinstance(leaf, Value)]
        if not any(self._kept(value).any() for value in results):
            return
        args, kwargs = (self._restored(a, step.node.name) for a in (step.node.args, step.node.kwargs))
        node = self._emit(step, args, kwargs)
        self._unpack(step.result, node)

    def _unpack(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, Value):
            if result.folded:
                self.stored[result] = Stored((Piece(node, ()),), np.empty(0, dtype=np.int64))
                return
            if result.batch:
                node = self.builder.graph.call_function(torch.movedim, (node, result.batch, 0))
            if result.batch is not None:
                self._store(result, node, Layout.of(np.ones(result.units.shape, dtype=bool)))
        elif isinstance(result, (tuple, list)):
            for i, item in enumerate(result):
                self._unpack(item, self.builder.graph.call_function(operator.getitem, (node, i)))

    def _restored(self, argument: Any, name: str) -> Any:
        """Return an argument of a call that is kept unchanged: whole tensors, and numbers by batch size."""
        return fx.map_arg(
            argument, lambda node: self._whole(self.flow.results[node], self.flow.calls.larger[node], name)
        )

    def _whole(self, result: Any, larger: Any, name: str) -> Any:
        if isinstance(result, Value):
            if result.folded and result.live:
                return self.stored[result].pieces[0].node
            if result.folded:
                raise CodeqError(f"{name}: a constant whose size grows with the batch in an unusual way")
            if result.batch is None:
                return self.builder.buffer(name, result.data.clone())
            node = self.builder.get(name, result, self._find(result), _indices(result))
            return self.builder.graph.call_function(torch.movedim, (node, 0, result.batch)) if result.batch else node
        if isinstance(result, (tuple, list)) and not isinstance(result, torch.Size):
            return type(result)(self._whole(a, b, name) for a, b in zip(result, larger, strict=True))
        if isinstance(result, torch.Size):
            return tuple(self._whole(a, b, name) for a, b in zip(result, larger, strict=True))
        if isinstance(result, int) and not isinstance(result, bool) and result != larger:
            return self._batch_dependent(result, larger - result)
        return result

    def _batch_dependent(self, count: int, slope: int) -> fx.Node:
        """Return a node for a number that is `count` for a batch of `BATCH` and grows by `slope` with every input."""
        graph = self.builder.graph
        size = graph.call_method("size", (self.builder.source, 0))
        scaled = size if slope == 1 else graph.call_function(operator.mul, (size, slope))
        offset = count - slope * BATCH
        return graph.call_function(operator.add, (scaled, offset)) if offset else scaled

    def _arguments(self, step: Step, tensor: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def argument(node: fx.Node) -> Any:
            result = self.flow.results[node]
            if isinstance(result, Value):
                return tensor(result)
            return self._whole(result, self.flow.calls.larger[node], step.node.name)

        return fx.map_arg(step.node.args, argument), fx.map_arg(step.node.kwargs, argument)

    def _emit(self, step: Step, args: Any, kwargs: Any) -> fx.Node:
        """Add the same call as in the recorded network."""
        graph, node = self.builder.graph, step.node
        if function_of(node) in DETACH and not self.trains:
            return cast(fx.Node, args[0])
        if node.op == "call_module":
            return graph.call_module(self._add(str(node.target)), args, kwargs)
        if node.op == "call_method":
            # A tensor that compaction has put together can lie in memory in another order, which `view` refuses.
            viewed = node.target == "view" and not kwargs and not isinstance(args[-1], torch.dtype)
            return graph.call_method("reshape" if viewed else str(node.target), args, kwargs)
        return graph.call_function(cast(Any, node.target), args, kwargs)

    def _add(self, target: str) -> str:
        """Add a copy of a module, one for all of its calls, and return its name."""
        if (target,) in self.copies:
            return self.copies[target,]
        module = self.flow.calls.modules[target]
        if isinstance(module, ActivationQuantizer):  # beside its layer, not inside: the graph calls both
            owner, _, kind = target.rpartition(".")
            beside = f"{owner}_{kind}" if kind in (INPUT_QUANTIZER, OUTPUT_QUANTIZER) else target
            name = self.builder.add_module(beside, copy.deepcopy(module))
            self.sources[name] = Origin(target, whole=True)
        else:
            name = self.builder.add_module(target, copy.deepcopy(module))
            self._note(name, target, whole=True)
        self.copies[target,] = name
        return name

    def _note(self, name: str, target: str, whole: bool) -> None:
        """Note which module a new module is made from."""
        self.sources[name] = Origin(target, whole)
        self.origins[name] = inherited_origin(self.flow.calls.model, target, whole)


def _indices(value: Value) -> np.ndarray:
    return np.arange(value.units.size).reshape(value.units.shape)


def _chosen(module: Any, channels: np.ndarray) -> nn.Module:
    """Return a BatchNorm or a PReLU of the given channels only."""
    index = torch.from_numpy(channels)
    chosen = of_channels(module, len(channels)).double()
    chosen.load_state_dict({name: value[index] if value.ndim else value for name, value in module.state_dict().items()})
    return chosen
