"""The ledger: cost of one network under every convention that papers use, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from codeq.common.checks import at_least
from codeq.flow import Borders, Streams
from codeq.graph.channels import live_kernels
from codeq.metrics.bops import exact_stats, structured_stats, unstructured_stats
from codeq.metrics.codes import enclosed_bits, integer_weights
from codeq.metrics.comparison import compression_ratio
from codeq.metrics.records import LayerRecord, measure
from codeq.metrics.reference import compacted_name, reference_of
from codeq.metrics.stats import ModelStats
from codeq.metrics.storage import storage_bytes
from codeq.quantizer.layers import FLOAT_BITS, named_layers
from codeq.quantizer.patterns import match_factors, matches

if TYPE_CHECKING:
    import pandas as pd

Bits = int | Mapping[str, int]


@torch.no_grad()
def ledger(
    model: nn.Module,
    input_size: tuple[int, int, int] = (3, 32, 32),
    activation_bits: Bits | None = None,
    borders: Borders = "map",
    streams: Streams = "scatter",
) -> pd.DataFrame:
    """Return MACs, BOPs and bytes of `model` under every convention, against its dense 32-bit version.

    A compacted network is compared with the dense 32-bit version of the network before compaction.

    Parameters
    ----------
    model : Module
        With or without quantizers; left as it is.
    input_size : tuple of int
        `(C, H, W)` of one input.
    activation_bits : int or mapping of str to int
        Bits of the input of each layer; a mapping gives them by pattern of the names of layers (`{"conv1": 8, "*": 4}`,
        the first match counts). By default, and for the others, the bits of the quantizer of the input (see
        `attach_activation_quantizers`), 32 without one. The dense version has 32 everywhere.
    borders, streams
        Assumptions of ``exact``, see `codeq.flow.channel_flow`.

    Returns
    -------
    DataFrame
        Columns `value` (in the unit of the quantity, for one input), `dense` (of the dense 32-bit network), `relative`
        (value / dense, a fraction) and `ratio` (dense / value, ×). ``attrs["notes"]`` is that of `ModelStats`. Rows are
        named by three levels:

        `quantity`
            ``MACs``, ``BOPs``, ``bytes``.
        `convention`
            ``unstructured``: the non-zero weights, as in CoDeQ (paper eq. (21)-(22)). ``structured``: all weights of
            the channels that are not null, as in DJPQ and GETA; shifts of BatchNorm are ignored. ``exact``: the MACs of
            the compacted model, without everything that does not depend on the input or is not read; shifts of
            BatchNorm included. ``live density``: the non-zero weights that read live channels. ``EBOPs``: as
            unstructured, with the bits of each single weight (`enclosed_bits`). Bytes: see `StorageBytes`.
        `layers`
            ``all``, or ``inner``: without the first and the last layer, which some papers leave out.

    Raises
    ------
    CodeqError
        If the model cannot be traced, the bits of a layer are unknown or a layer cannot be counted, and for a pattern
        that matches no layer or bits that are not a positive integer.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> table = ledger(resnet20())
    >>> int(table.loc[("MACs", "structured", "all"), "value"])
    40551040
    >>> round(float(table.loc[("BOPs", "unstructured", "inner"), "relative"]), 3)
    1.0
    """
    import pandas as pd

    given = _check_bits(model, activation_bits)
    records = measure(model, input_size)
    real = {r.name: r.activation_bits or FLOAT_BITS for r in records}
    bits = {name: next((b for p, b in given.items() if matches(name, p)), real[name]) for name in real}
    exact = exact_stats(model, input_size, borders=borders, streams=streams)
    conventions = {
        "unstructured": _costs(unstructured_stats(records), bits),
        "structured": _costs(structured_stats(records), bits),
        "exact": _costs(exact, bits),
        "live density": _costs(_live_density(records), bits),
        "EBOPs": _ebops(model, records, bits),
    }
    reference = reference_of(model, input_size, records)
    whole = reference.stats.layers
    outer = {layer.name for layer in (*whole[:1], *whole[-1:])}  # compaction may have removed them
    names = [record.name for record in records]
    chosen = {
        "all": (names, whole),
        "inner": ([name for name in names if not _belongs(name, outer)], whole[1:-1]),
    }
    rows = []
    for at, quantity in enumerate(("MACs", "BOPs")):
        for convention, costs in conventions.items():
            if (quantity, convention) == ("MACs", "EBOPs"):  # the same multiplications as unstructured
                continue
            for layers, (counted, dense) in chosen.items():
                value = sum(costs[name][at] for name in counted)
                rows.append((quantity, convention, layers, value, sum((layer.macs, layer.bops)[at] for layer in dense)))
    stored = storage_bytes(model, input_size)
    for name in ("float32", "packed", "entropy"):
        rows.append(("bytes", name, "all", getattr(stored, name), reference.weight_bytes))
    frame = pd.DataFrame(rows, columns=["quantity", "convention", "layers", "value", "dense"])
    frame["relative"] = [value / of if of else 1.0 for value, of in zip(frame.value, frame.dense, strict=True)]
    frame["ratio"] = [compression_ratio(of, value) for value, of in zip(frame.value, frame.dense, strict=True)]
    frame.attrs["notes"] = tuple(dict.fromkeys((*records.notes, *exact.notes)))
    return frame.set_index(["quantity", "convention", "layers"])


def _belongs(name: str, layers: set[str]) -> bool:
    """Return whether a layer is one of `layers`, or a part of one that compaction split."""
    renamed = {compacted_name(layer) for layer in layers} | layers
    return any(name == layer or name.startswith(f"{layer}.") for layer in renamed)


def _check_bits(model: nn.Module, activation_bits: Bits | None) -> Mapping[str, int]:
    """Return the bits by pattern; every pattern matches a layer."""
    if activation_bits is None:
        return {}
    given = activation_bits if isinstance(activation_bits, Mapping) else {"*": activation_bits}
    found = {pattern: at_least(f"activation_bits[{pattern!r}]", bits, 1) for pattern, bits in given.items()}
    if list(named_layers(model)):
        match_factors(model, found, "activation_bits")
    return found


def _costs(stats: ModelStats, activation_bits: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return ``(MACs, BOPs)`` of each layer; a layer that is called more than once counts every time."""
    costs = dict.fromkeys(activation_bits, (0, 0))
    for layer in stats.layers:
        macs, bops = costs[layer.name]
        costs[layer.name] = macs + layer.macs, bops + layer.macs * layer.bitwidth * activation_bits[layer.name]
    return costs


def _live_density(records: list[LayerRecord]) -> ModelStats:
    layers = []
    for record in records:
        groups = record.null_in.total // record.weight.shape[1]
        live = torch.from_numpy(live_kernels(record.nonzero, groups, record.null_in.mask())).to(record.weight.device)
        weights = record.weight * live.reshape(*live.shape, *[1] * (record.weight.ndim - 2))
        macs = int(weights.count_nonzero()) * prod(record.spatial)
        layers.append(record.stats(macs, record.null_out.ratio, record.bitwidth, FLOAT_BITS))
    return ModelStats(layers)


def _ebops(model: nn.Module, records: list[LayerRecord], activation_bits: dict[str, int]) -> dict[str, tuple[int, int]]:
    costs, layers = {}, dict(named_layers(model))
    for record in records:
        codes = integer_weights(layers[record.name]) if record.name in layers else None
        nonzero = int(record.weight.count_nonzero())
        bits = FLOAT_BITS * nonzero if codes is None else int(enclosed_bits(codes).sum())
        used = prod(record.spatial)
        costs[record.name] = nonzero * used, bits * used * activation_bits[record.name]
    return costs
