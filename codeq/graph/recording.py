"""Recording of the layers and PyTorch functions that a model calls, as a `torch.fx` graph.

The model is executed, so hooks, overridden calls, defaults, named tuples and Python control flow are followed. Only
control flow and numbers that depend on the *values* of the input cannot be recorded, and raise an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from codeq.common.errors import CodeqError
from codeq.graph.functional_layers import FUNCTIONS, add_bias, batch_norm_of_call, layer_of_call, split_bias
from codeq.graph.functions import (
    in_precision,
    is_method,
    name_of,
    out_of_place,
    selecting,
    size_by_values,
    target_of,
    with_tensor_indices,
)
from codeq.graph.leaves import is_leaf
from codeq.graph.loose_tensors import LooseTensors
from codeq.graph.nodes import Nodes, Recording
from codeq.graph.overwriting import overwritten
from codeq.graph.spellings import first_spelling
from codeq.graph.surroundings import leave_autocast, recording_state
from codeq.quantizer.layers import LAYER_TYPES
from codeq.quantizer.precision import weight_type

# They convert a tensor to Python or NumPy values.
READS = frozenset({
    "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__complex__", "__index__",
    "__dlpack__",
    "equal", "allclose", "is_nonzero", "__contains__",
})  # fmt: skip
CASTS = frozenset({"to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"})
FACTORIES = frozenset({"zeros", "ones", "full", "empty", "arange", "linspace", "logspace", "eye", "rand", "randn"})
RESIZES = frozenset({"resize_", "resize_as_", "set_"})
# Functions that call layers; the calls inside them are recorded instead.
ENTERED = {F.multi_head_attention_forward}


def record(model: nn.Module, x: Tensor, original: nn.Module, whole: Collection[str] = ()) -> Recording:
    """Run `model` on `x` and record its calls.

    Parameters
    ----------
    model : Module
        In evaluation mode, with plain weights of the precision of `x`. Its buffers are not changed.
    x : Tensor
        `[N, ...]`.
    original : Module
        The model that `model` is a copy of.
    whole : collection of str
        Modules to record as one call each.

    Raises
    ------
    CodeqError
        If the model computes something that cannot be recorded.
    """
    recorder = _Recorder(model, x.dtype, original, whole)
    nodes = recorder.nodes
    nodes.add_input(x := x.clone())
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        with recording_state(x.dtype), recorder.wrapped(), recorder:
            output = model(x)
        nodes.add_output(output)
    finally:
        for buffer, before in buffers:
            if buffer.shape == before.shape:
                buffer.copy_(before)
    return nodes.recording


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, dtype: torch.dtype, original: nn.Module, whole: Collection[str]) -> None:
        super().__init__()
        self.model, self.dtype, self.whole = model, dtype, whole
        self.modules = dict(model.named_modules())
        self.nodes = Nodes(model, original)
        # That of the weights, unless its numbers are too large for the recording.
        self.weights = min(weight_type(original, torch.float32), dtype, key=lambda kind: torch.finfo(kind).bits)
        self.loose = LooseTensors(dtype, self.nodes.knows)
        self.paused = False

    @contextmanager
    def wrapped(self) -> Iterator[None]:
        """Record calls of modules while the context is open."""
        wrapped = []
        try:
            for name, module in self.modules.items():
                before = vars(module).get("forward")
                recorded = self._leaf if name in self.whole or is_leaf(module) else self._enter
                module.forward = partial(recorded, name, module.forward)
                wrapped.append((module, before))
            yield
        finally:
            for module, before in wrapped:
                if before is None:
                    del module.forward
                else:
                    module.forward = before

    def _enter(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.paused:  # inside a module that is recorded as one call
            return forward(*args, **kwargs)
        self.nodes.enter(name, args)
        result = None
        try:
            result = forward(*args, **kwargs)
            return result
        finally:
            self.nodes.leave(result)

    def _leaf(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.paused:
            return forward(*args, **kwargs)
        self.paused = True
        leave_autocast()
        try:
            args, kwargs = self.loose.convert((args, kwargs))
            arguments = self.nodes.arguments((args, kwargs))
            tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            writes = [tensor._version for tensor in tensors]
            result = forward(*args, **kwargs)
            changed = [tensor for tensor, count in zip(tensors, writes, strict=True) if tensor._version != count]
            op, target, arguments = first_spelling("call_module", name, arguments)
            node = self.nodes.create(op, target, *arguments)
            self.nodes.results(node, result, changed)
            if not changed and args and result is args[0]:
                node.meta["unchanged"] = True
            node.meta["within"] += (self.nodes.enter(name, args),)
            self.nodes.leave(result)
            return result
        finally:
            self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        leave_autocast()
        if func in ENTERED:
            with self, patch.object(F, "has_torch_function", lambda *_: False):
                return func(*args, **kwargs)
        name = name_of(func)
        method = bool(args) and isinstance(args[0], Tensor) and is_method(func)
        if name in READS:
            self._read(name, args)
            return func(*args, **kwargs)
        args, kwargs = self.loose.convert(in_precision(self.dtype, args, kwargs))
        if name in ("__getitem__", "__setitem__"):
            args = with_tensor_indices(args)
        if method and name in CASTS:
            return self._cast(func, args, kwargs)
        if name in RESIZES or (name == "__set__" and any(isinstance(leaf, Tensor) for leaf in args[1:])):
            raise CodeqError(f"{self.nodes.place()} replaces the memory of a tensor, which codeq does not follow")
        if func in FUNCTIONS:
            layer = layer_of_call(func, args, kwargs, self.nodes.names)
            if layer is not None:
                args, kwargs, bias = split_bias(args, kwargs, self.nodes.names)
                result = self._functional(func, args, kwargs, *layer)
                with self:  # an addition of its own
                    return result if bias is None else add_bias(result, bias, layer[1])
        if func is F.batch_norm:
            norm = batch_norm_of_call(args, kwargs, self.nodes.names, self.modules)
            if norm is not None:
                return self._functional(func, args, kwargs, *norm)
        return self._call(func, name, method, args, kwargs)

    def _call(self, func: Any, name: str, method: bool, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = kwargs.get("out")
        arguments = self.nodes.arguments((args, {key: value for key, value in kwargs.items() if key != "out"}))
        first = args[0] if args and isinstance(args[0], Tensor) else None
        before = first.clone() if first is not None and name.endswith("_") and not name.endswith("__") else None
        shape = None if first is None else (first.shape, first.stride())
        writes = [tensor._version for tensor in tensors]
        result = func(*args, **kwargs)
        changed = [tensor for tensor, count in zip(tensors, writes, strict=True) if tensor._version != count]
        returned = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not returned and not changed:  # a size, a type, a setting
            # Numbers that a forward computes from a type, such as its smallest number, are those of the weights.
            return self.weights if isinstance(result, torch.dtype) and result == self.dtype else result
        reshaped = first is not None and shape != (first.shape, first.stride())
        if result is first and not changed and not reshaped and name != "detach_":
            return result
        written = first if out is None else out
        if len({tensor.untyped_storage().data_ptr() for tensor in changed}) > 1 or (
            changed and not any(tensor is written for tensor in changed)
        ):
            raise CodeqError(
                f"{self.nodes.place()} calls {name}, which overwrites tensors in a way that codeq does not follow"
            )
        if changed and written is not None:
            changed = [written]  # its views count as changed, too
        if before is not None and (changed or reshaped):
            op, target, arguments = self._out_of_place(func, name, method, before, args, kwargs, arguments)
        elif name == "__setitem__":
            op, target, arguments = "call_function", overwritten, ((arguments[0][0], name, *arguments[0][1:]), {})
        elif changed and out is None:
            op, target, arguments = "call_function", func, out_of_place(func, *arguments)
        else:
            op, target, arguments = target_of(func, name, method, arguments)
        if not tensors:
            if name not in FACTORIES:
                return result  # computed from Python or NumPy values: a constant
            arguments[1]["dtype"] = result.dtype
        op, target, arguments = first_spelling(op, target, arguments)
        node = self.nodes.create(op, target, *arguments)
        if not changed and size_by_values(name, args, kwargs):
            by_input = self.nodes.varies(*map(self.nodes.node, selecting(name, args, kwargs)))
            node.meta["size_by_values"] = by_input
            self.nodes.recording.reads_values |= not by_input
        self.nodes.results(node, result, changed)
        return result

    def _out_of_place(
        self, func: Any, name: str, method: bool, before: Tensor, args: Any, kwargs: Any, arguments: Any
    ) -> tuple[str, Any, Any]:
        """Return the call that computes the result of an in-place call as a new tensor."""
        after, plain = args[0], name.removesuffix("_")
        owner = Tensor if method else next((o for o in (torch, F) if getattr(o, name, None) is func), None)
        twin = getattr(owner, plain, None)
        if twin is not None:
            try:
                result = twin(before.clone(), *args[1:], **kwargs)
            except (TypeError, RuntimeError):
                result = None
            same = isinstance(result, Tensor) and (result.shape, result.dtype) == (after.shape, after.dtype)
            if same and torch.equal(torch.nan_to_num(result), torch.nan_to_num(after)):
                return ("call_method", plain, arguments) if method else ("call_function", twin, arguments)
        if not hasattr(Tensor, name):
            raise CodeqError(f"{name} in {self.nodes.place()} works in place, which codeq does not follow")
        return "call_function", overwritten, ((arguments[0][0], name, *arguments[0][1:]), arguments[1])

    def _functional(self, func: Any, args: Any, kwargs: Any, name: str, layer: nn.Module) -> Any:
        owner, _, attribute = name.rpartition(".")
        if attribute == "weight" and isinstance(self.modules[owner], (*LAYER_TYPES, nn.PReLU)):
            name = owner
        target = f"{name.replace('.', '_')}_call{len(self.nodes.recording.functional)}"
        self.nodes.recording.functional[target] = name, layer
        arguments = self.nodes.arguments(((args[0] if args else kwargs["input"],), {}))
        result = func(*args, **kwargs)
        self.nodes.results(self.nodes.create("call_module", target, *arguments), result, [])
        return result

    def _cast(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, name = args[0], name_of(func)
        if name in ("cpu", "cuda"):
            return x
        if name == "to" and len(args) > 1 and isinstance(args[1], (str, int)):
            args = x, torch.device("cpu"), *args[2:]  # a device by name or number
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):  # `x.type()`: a name
            return result
        if result.is_floating_point() and result.dtype != self.dtype:  # `x.float()`, `x.type("torch.FloatTensor")`
            result = x.to(self.dtype)
        if result is x:
            return x
        if result.is_floating_point():
            if x.is_floating_point():
                self.nodes.aliases.add(result, self.nodes.node(x))  # a copy
            else:
                arguments = self.nodes.arguments(((x,), {}))
                node = self.nodes.create("call_method", "type_as", (*arguments[0], self.nodes.input), {})
                if not self.nodes.varies(*arguments[0]):
                    self.nodes.varying.discard(node)
                self.nodes.results(node, result, [])
            return result
        self.nodes.results(
            self.nodes.create("call_method", "to", *self.nodes.arguments(((x, result.dtype), {}))), result, []
        )
        return result

    def _read(self, name: str, args: Any) -> None:
        for leaf in pytree.tree_leaves(args):
            if isinstance(leaf, Tensor):
                if leaf in self.nodes.aliases and self.nodes.varies(self.nodes.node(leaf)):
                    raise CodeqError(
                        f"{self.nodes.place()} reads the values of a tensor that depends on the input ({name}): "
                        "control flow and Python numbers that depend on values cannot be followed"
                    )
                self.nodes.recording.reads_values = True
