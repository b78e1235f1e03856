"""The dense 32-bit network that costs are compared with; that of a compacted network is the one before compaction."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from keyword import iskeyword
from typing import cast

from torch import fx, nn

from codeq.common.errors import CodeqError
from codeq.metrics.bops import dense_stats
from codeq.metrics.records import LayerRecord, Records, measure
from codeq.metrics.stats import ModelStats
from codeq.metrics.storage import packed_bytes
from codeq.quantizer.layers import FLOAT_BITS

_KEY = "codeq_reference"  # in the `meta` of a GraphModule, which its deep copies keep


@dataclass(frozen=True)
class Reference:
    """Cost of a dense 32-bit network.

    Parameters
    ----------
    stats : ModelStats
        MACs and BOPs, with activations of 32 bits.
    weight_bytes : int
        Bytes of its conv and linear weights as float32.
    """

    stats: ModelStats
    weight_bytes: int


def set_reference(compacted: fx.GraphModule, whole: nn.Module, input_size: tuple[int, ...]) -> None:
    """Compare the costs of a compacted network with those of the dense version of `whole`, in all that codeq reports.

    If `whole` has been compacted itself, it passes its reference on. If it cannot be counted, neither can `compacted`:
    `reference_of` raises the error then, since not every use of a network asks for costs.
    """
    try:
        compacted.meta[_KEY] = reference_of(whole, cast(tuple[int, int, int], tuple(input_size)))
    except CodeqError as error:
        compacted.meta[_KEY] = error


def reference_of(
    model: nn.Module, input_size: tuple[int, int, int], records: Records | list[LayerRecord] | None = None
) -> Reference:
    """Return the cost of the dense 32-bit network that `model` is compared with: its dense version, or `set_reference`.

    Parameters
    ----------
    model : Module
        With or without quantizers.
    input_size : tuple of int
        `(C, H, W)` of one input.
    records : list of LayerRecord, optional
        Those of `model`, if they are at hand.

    Raises
    ------
    CodeqError
        If the model cannot be traced or counted.
    """
    if stored := _stored(model):
        return stored
    return Reference(dense_stats(records or measure(model, input_size)), packed_bytes(model, input_size)[1])


def dense_bytes(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Return `weight_bytes` of `reference_of`, for which no network is traced whose matrices are those of its layers.

    Examples
    --------
    >>> dense_bytes(nn.Linear(4, 2), (4, 1, 1))
    32
    """
    stored = _stored(model)
    return stored.weight_bytes if stored else packed_bytes(model, input_size)[1]


def _stored(model: nn.Module) -> Reference | None:
    """Return what `set_reference` stored, `None` for a network that was not compacted."""
    if not isinstance(model, fx.GraphModule) or _KEY not in model.meta:
        return None
    found: Reference | CodeqError = model.meta[_KEY]
    if isinstance(found, CodeqError):
        raise found
    return found


def compacted_name(name: str) -> str:
    """Return the name that a module of the whole network has in a compacted one, whose forward is Python code.

    Examples
    --------
    >>> compacted_name("heads.global"), compacted_name("heads.left/right"), compacted_name("heads.conv-1")
    ('heads.global_', 'heads.left_right', 'heads.conv-1')
    """
    parts = (re.sub(r"[^\w -]", "_", part) for part in name.split("."))
    return ".".join(f"{part}_" if iskeyword(part) else part for part in parts)


def with_activation_bits(stats: ModelStats, b_a: int) -> ModelStats:
    """Return the dense 32-bit cost with activations of `b_a` bits."""
    layers = [replace(layer, bops=layer.macs * FLOAT_BITS * b_a, activation_bits=b_a) for layer in stats.layers]
    return ModelStats(layers, stats.notes)
