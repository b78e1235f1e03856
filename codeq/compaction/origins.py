"""Origins of the modules of a compacted network: the modules of the whole network that they are made from.

A `torch.fx.GraphModule` keeps its ``meta`` in deep copies, unlike other attributes.
"""

from __future__ import annotations

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
