"""Origins of the modules of a compacted network: the modules of the whole network that they are made from.

A `torch.fx.GraphModule` keeps its ``meta`` in deep copies, unlike other attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import fx, nn

_KEY = "codeq_origins"


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
    earlier, owner = origins_of(model) or {}, target
    while owner and owner not in earlier:
        owner = owner.rpartition(".")[0]
    return Origin(earlier[owner].name, whole and earlier[owner].whole) if owner else Origin(target, whole)


def freeze_alike(compacted: nn.Module, model: nn.Module, source: Callable[[str], str]) -> None:
    """Freeze the parameters of `compacted` that are made from frozen ones of `model`; all others train.

    Parameters
    ----------
    compacted : Module
        Without quantizers.
    model : Module
        The network that it is made from, with its quantizers.
    source : callable
        Name of the module of `model`, or of the weight that it passes to a function, that a module is made from.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, parameter in compacted.named_parameters():
        owner, _, key = name.rpartition(".")
        of = source(owner)
        names = {f"{of}.{key}", f"{of}.parametrizations.{key}.original"} | ({of} if key == "weight" else set())
        parameter.requires_grad = names.isdisjoint(frozen)
