"""Fingerprint of everything that the trace of a model depends on, except the values of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from codeq.graph.snapshots import Snapshots, frozen_tensor

# Attributes that do not affect the forward pass in evaluation mode, or that are compared elsewhere.
SKIPPED = frozenset({
    "training", "_parameters", "_buffers", "_modules", "_backward_hooks", "_backward_pre_hooks",
    "_is_full_backward_hook",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    "_non_persistent_buffers_set", "_forward_hooks_always_called",
})  # fmt: skip


def fingerprint(model: nn.Module) -> tuple[Any, ...]:
    """Return a fingerprint that is equal for two states of a model only if they differ in values of weights alone.

    It contains the modules with their types, attributes, functions and hooks, shapes and types of tensors, values of
    tensors of integers (which may be indices), and which parameters are shared. Quantizers and other parametrizations
    are left out. Of Python modules and classes it contains what the forward functions, and all functions, methods and
    properties that they use by name, read there by name. Not followed are installed packages and the standard library.

    Parameters
    ----------
    model : Module
        Not changed.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3))
    >>> before = fingerprint(net)
    >>> net[0].stride = (2, 2)
    >>> fingerprint(net) == before
    False
    """
    numbers: dict[int, int] = {}  # of parameters, in the order of the model

    def number(tensor: Tensor | None) -> Any:
        return None if tensor is None else (numbers.setdefault(id(tensor), len(numbers)), *frozen_tensor(tensor))

    snapshots = Snapshots()
    parts: list[Any] = [
        snapshots.value(list(g.values())) for g in (hooks._global_forward_hooks, hooks._global_forward_pre_hooks)
    ]
    for name, module in _modules(model):
        tensors, cls = module._parameters, type_before_parametrizations(module)
        snapshots.find_class(cls)
        if "parametrizations" in module._modules:
            originals = {n: p.original for n, p in module.parametrizations.items() if hasattr(p, "original")}  # type: ignore[union-attr,operator]
            tensors = {**tensors, **originals}
        parts.append((
            name,
            type(module),
            cls,
            sorted((n, number(p)) for n, p in tensors.items() if p is not None),
            [(n, frozen_tensor(b)) for n, b in module._buffers.items() if b is not None],
            [(n, snapshots.value(value)) for n, value in vars(module).items() if n not in SKIPPED],
        ))  # fmt: skip
    return *parts, *snapshots.code()


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    stack = [("", model)]
    while stack:
        name, module = stack.pop()
        if id(module) in seen or isinstance(module, ParametrizationList):
            continue
        seen.add(id(module))
        yield name, module
        stack += [(f"{name}.{n}", m) for n, m in module._modules.items() if m is not None and n != "parametrizations"]
