"""Table of the layers of a measured model: bits, sparsity, null channels and cost of each."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

from torch import nn

from codeq.metrics.encoding import encode_mask, encode_norms
from codeq.metrics.records import LayerRecord
from codeq.metrics.stats import ModelStats
from codeq.quantizer.layers import WeightQuantization, named_layers, weight_quantization
from codeq.sparsity.norms import filter_norms

if TYPE_CHECKING:
    import pandas as pd


def layer_table(
    model: nn.Module, records: list[LayerRecord], structured: ModelStats, unstructured: ModelStats
) -> pd.DataFrame:
    """Return the table of a model's layers, one row per layer, in order of execution.

    Columns: `layer`; `quantized`; `bits`; `theta_dz`, `theta_bit` (the quantizer's logits, NaN if it has none);
    `filters`, `dead_filters` (output channels, all-zero ones); `alive` (one bit per filter, see `decode_mask`);
    `norms` (Euclidean norm of each filter's quantized weights, see `decode_norms`); `density` (non-zero weights /
    weights); `null_in`, `null_out` (channels); `structured_pruning`, `unstructured_pruning` (fractions);
    `structured_macs`, `structured_bops`, `unstructured_macs`, `unstructured_bops`.
    """
    import pandas as pd  # takes a third of a second

    layers = dict(named_layers(model))
    rows = []
    for record, s, u in zip(records, structured.layers, unstructured.layers, strict=True):
        layer = layers.get(record.name)  # none for a parameter that belongs to no layer
        quantization = weight_quantization(layer) if layer is not None else None
        rows.append(
            {
                "layer": record.name,
                "quantized": quantization is not None and quantization.enabled,
                "bits": record.bitwidth,
                "theta_dz": _logit(quantization, "logit_dz"),
                "theta_bit": _logit(quantization, "logit_bit"),
                "filters": record.alive.size,
                "dead_filters": int((~record.alive).sum()),
                "alive": encode_mask(record.alive),
                # In float64, which not all devices have: squares of small weights are zero in float32.
                "norms": encode_norms(filter_norms(record.weight.cpu().double()).numpy()),
                "density": 1 - u.pruning_ratio,
                "null_in": record.null_in.count,
                "null_out": record.null_out.count,
                "structured_pruning": s.pruning_ratio,
                "unstructured_pruning": u.pruning_ratio,
                "structured_macs": s.macs,
                "structured_bops": s.bops,
                "unstructured_macs": u.macs,
                "unstructured_bops": u.bops,
            }
        )
    return pd.DataFrame(rows)


def _logit(quantization: WeightQuantization | None, name: str) -> float:
    logit = getattr(quantization.quantizer, name, None) if quantization else None
    return float(logit.detach().float().mean()) if logit is not None else nan
