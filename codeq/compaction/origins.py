"""Origins of the modules of a compacted network: the modules of the whole network that they are made from.

A `torch.fx.GraphModule` keeps its ``meta`` in deep copies, unlike other attributes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import fx, nn

from codeq.graph.calls import Calls

_KEY = "codeq_origins"
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*$")


class Origin(NamedTuple):
    """Origin of one module.

    Parameters
    ----------
    name : str
        Called module of the network before any compaction, as `codeq.graph.call_recording.record_calls` names it.
    whole : bool
        Whether it is a copy, and not a layer with fewer channels.
    """

    name: str
    whole: bool


def set_origins(model: fx.GraphModule, origins: dict[str, Origin]) -> None:
    """Store the origins of the modules of a compacted network, by name."""
    model.meta[_KEY] = origins


def origins_of(model: nn.Module) -> dict[str, Origin] | None:
    """Return the origins of the modules of a compacted network, `None` for any other."""
    return model.meta.get(_KEY) if isinstance(model, fx.GraphModule) else None


def inherited_origin(model: nn.Module, target: str, whole: bool) -> Origin:
    """Return the origin of a module made from module `target` of `model`, which may be a compacted network itself.

    The convolutions of `Parts` have the origin of the `Parts`.
    """
    earlier = origins_of(model) or {}
    owner = _owner(target, earlier)
    return Origin(earlier[owner].name, whole and earlier[owner].whole) if owner else Origin(target, whole)


def freeze_alike(compacted: nn.Module, model: nn.Module, calls: Calls, source: Callable[[str], str]) -> None:
    """Freeze the parameters of `compacted` that are made from frozen ones or buffers of `model`; all others train.

    Parameters
    ----------
    compacted : Module
        Without quantizers.
    model : Module
        The network that it is made from, with its quantizers.
    calls : Calls
        The recorded `model`.
    source : callable
        Called module of `calls` that a module of `compacted` is made from, by name.
    """
    trains = _trains(model)
    names = {id(tensor): name for name, tensor in calls.model.named_parameters()}
    for name, parameter in compacted.named_parameters():
        owner, _, key = name.rpartition(".")
        target = source(owner)
        if target not in calls.layers:
            parameter.requires_grad = trains.get(f"{target}.{key}", True)  # a bias can be new
        elif (given := getattr(calls.modules[target], key)) is not None:
            parameter.requires_grad = id(given) in names and trains[names[id(given)]]


def constant_parameters(model: nn.Module, calls: Calls) -> list[str]:
    """Return the parameters of `model` that train, but are constants of a network that is compacted from it.

    They are used outside of layers (a class token, a scale of a residual branch) or by layers that do not depend on the
    input of the network.

    Parameters
    ----------
    model, calls
        As in `freeze_alike`.
    """
    trains = _trains(model)
    names = {id(tensor): name for name, tensor in calls.model.named_parameters()}
    found: list[str] = []
    for node in calls.graph.nodes:
        if node.op == "get_attr":
            tensors = [calls.attribute(node)]
        else:
            module = None if node in calls.varying else calls.module(node)
            tensors = [*module.parameters()] if module is not None else []
        found += [name for tensor in tensors if trains.get(name := names.get(id(tensor), ""), False)]
    return list(dict.fromkeys(found))


def trained_calls(model: nn.Module, calls: Calls) -> set[fx.Node]:
    """Return the calls of modules and functions with parameters of `model` that train, those of quantizers included.

    Parameters
    ----------
    model, calls
        As in `freeze_alike`.
    """
    trained = [name for name, trains in _trains(model).items() if trains]
    found: set[fx.Node] = set()
    for node in calls.graph.nodes:
        layer = calls.layer(node)  # or the weight of a function
        if node.op == "call_module" and any(name == layer or name.startswith(f"{layer}.") for name in trained):
            found.add(node)
    return found


def trained_parameters(model: nn.Module, calls: Calls) -> dict[nn.Parameter, nn.Parameter]:
    """Return for each parameter of the recorded copy the one of `model` behind it, for those that train.

    Two parameters of the copy have the same one where a quantized layer shares its weight with a float user of it.

    Parameters
    ----------
    model, calls
        As in `freeze_alike`.
    """
    found = {
        _PARAMETRIZED.sub(r"\1", name): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
    return {tensor: found[name] for name, tensor in calls.model.named_parameters() if name in found}


def _trains(model: nn.Module) -> dict[str, bool]:
    """Return for each parameter of `model`, under its name without parametrizations, whether it trains."""
    trains: dict[str, bool] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = _PARAMETRIZED.sub(r"\1", name)  # of several originals, such as norm and direction, one is enough
        trains[plain] = trains.get(plain, False) or parameter.requires_grad
    return trains


def source_of(name: str, origins: Mapping[str, Origin]) -> str:
    """Return the called module that a module is made from, which may be inside a copied one or a part of another.

    Examples
    --------
    >>> origins = {"head": Origin("model.head", True), "conv": Origin("model.conv", False)}
    >>> source_of("head.fc", origins), source_of("conv.parts.0", origins)
    ('model.head.fc', 'model.conv')
    """
    owner = _owner(name, origins)
    if not owner:
        return name
    return origins[owner].name + (name.removeprefix(owner) if origins[owner].whole else "")


def _owner(name: str, origins: Mapping[str, Origin]) -> str:
    """Return the module with an origin that `name` is, or that it is nearest in; empty if there is none."""
    while name and name not in origins:
        name = name.rpartition(".")[0]
    return name
