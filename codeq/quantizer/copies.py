"""Deep copies of parametrized layers that do not share a class with their original.

PyTorch puts the property ``weight`` on a class made for the one layer, but a deep copy takes that class over. Removing
the parametrization of either then breaks the other, and inside `parametrize.cached` both read the weights of the first.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch.nn.utils import parametrize


def give_copies_separate_classes(layer: nn.Module) -> None:
    """Make every deep copy of the parametrized `layer`, and copies of copies, get a class of its own."""
    cls = cast(Any, type(layer))
    inherited = cls.__deepcopy__

    def deepcopy_with_class(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
        replica = inherited(self, memo)
        vars(replica).pop("_compiled_call_impl", None)  # of `Module.compile`: it would call the original
        names = list(cast(Any, replica).parametrizations)
        replica.__class__ = parametrize.type_before_parametrizations(replica)
        parametrize._inject_new_class(replica)
        for name in names:
            parametrize._inject_property(replica, name)
        give_copies_separate_classes(replica)
        return replica

    cls.__deepcopy__ = deepcopy_with_class
