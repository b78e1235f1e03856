"""Cost figures that a budget can limit, each one number of the whole network, and their smallest possible values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from codeq.common.checks import check_choice
from codeq.metrics.bops import structured_stats, unstructured_stats
from codeq.metrics.comparison import QuantizationComparison
from codeq.metrics.macs import unstructured_macs
from codeq.metrics.records import LayerRecord, measure
from codeq.metrics.storage import packed_bytes, stored_weights
from codeq.quantizer.functions import MIN_BITS
from codeq.quantizer.layers import (
    FLOAT_BITS,
    named_layers,
    weight_parametrizations,
    weight_quantization,
)

Figure = Literal["relative_bops", "structured_macs", "bytes", "mean_bits"]


def mean_bits(model: nn.Module, records: Sequence[LayerRecord]) -> float:
    """Return the mean bit-width over the quantized layers of `records`, each counting once; of all if none is."""
    quantized = {name for name, layer in named_layers(model) if weight_quantization(layer)}
    bits = [r.bitwidth for r in records if r.name in quantized] or [r.bitwidth for r in records] or [FLOAT_BITS]
    return sum(bits) / len(bits)


def cost_figure(name: Figure, model: nn.Module, comparison: QuantizationComparison) -> float:
    """Measure one cost figure of `model`.

    Parameters
    ----------
    name : {"relative_bops", "structured_macs", "bytes", "mean_bits"}
        Unstructured BOPs, MACs of the structured ``"weights"`` count, or packed bytes of the weights, as fractions of
        the dense 32-bit network; or the mean bit-width of the quantized layers.
    model : Module
        In any mode.
    comparison : QuantizationComparison
        With the baseline.

    Raises
    ------
    CodeqError
        For another `name`, and if the model cannot be traced or counted.

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    >>> comparison = QuantizationComparison((3, 2, 2))
    >>> comparison.set_baseline(net)
    >>> _ = attach_weight_quantizers(net, [], "uniform", {"bitwidth": 4})
    >>> cost_figure("bytes", net, comparison), cost_figure("mean_bits", net, comparison)
    (0.125, 4.0)
    """
    check_choice("name", name, Figure)
    if name == "bytes":
        return packed_bytes(model, comparison.input_size)[0] / comparison.baseline_bytes
    records, baseline = measure(model, comparison.input_size), comparison.baseline
    if name == "relative_bops":
        return unstructured_stats(records, comparison.b_a).total_bops / baseline.total_bops
    if name == "structured_macs":
        return structured_stats(records, comparison.b_a).total_macs / baseline.total_macs
    return mean_bits(model, records)


def smallest_figure(
    name: Figure, model: nn.Module, comparison: QuantizationComparison, *, pruning: bool = False
) -> float:
    """Return a lower bound of a cost figure of `model` over all weights and quantizers that a training can give it.

    Layers without a trainable bit-width keep their bits. Weights that do not train, and those of float layers, are zero
    only where they are now; other quantized layers can become zero, as weights that train also reach a dead-zone that
    does not. ``structured_macs`` can fall to 0, because the consumers of a channel can die, too.

    Parameters
    ----------
    name : {"relative_bops", "structured_macs", "bytes", "mean_bits"}
        See `cost_figure`.
    model : Module
        With the weights at the start.
    comparison : QuantizationComparison
        With the baseline.
    pruning : bool
        Whether sparsity terms of the loss act on the weights, which can make those of float layers zero.

    Raises
    ------
    CodeqError
        As `cost_figure`.

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 4))
    >>> comparison = QuantizationComparison((3, 2, 2))
    >>> comparison.set_baseline(net)
    >>> _ = attach_weight_quantizers(net, ["2"], "deadzone", {"max_bits": 4})
    >>> smallest_figure("relative_bops", net, comparison)  # the float layer: 16 of 64 MACs
    0.25
    """
    check_choice("name", name, Figure)
    if name == "structured_macs" or (name == "relative_bops" and pruning):
        return 0.0
    layers, records = dict(named_layers(model)), measure(model, comparison.input_size)
    bits = {r.name: MIN_BITS if _trains_bits(layers.get(r.name)) else r.bitwidth for r in records}
    if name == "bytes":
        counts = stored_weights(model, comparison.input_size)
        packed = sum(count * bits.get(layer, MIN_BITS) for layer, count in counts.items())
        return packed / (8 * comparison.baseline_bytes)
    if name == "mean_bits":
        quantized = [bits[r.name] for r in records if r.name in layers and weight_quantization(layers[r.name])]
        return sum(quantized) / max(len(quantized), 1)
    kept = [r for r in records if not _trains_zeros(layers.get(r.name))]
    bops = sum(
        unstructured_macs(r.weight, *r.spatial) * bits[r.name] * (r.activation_bits or comparison.b_a) for r in kept
    )
    return bops / comparison.baseline.total_bops


def _trains_bits(layer: nn.Module | None) -> bool:
    quantization = weight_quantization(layer) if layer is not None else None
    parameter = getattr(quantization.quantizer, "logit_bit", None) if quantization else None
    return parameter is not None and parameter.requires_grad


def _trains_zeros(layer: nn.Module | None) -> bool:
    """Return whether a layer rounds weights to zero, and its weights or how it rounds them train."""
    chain = weight_parametrizations(layer) if layer is not None else None
    quantized = layer is not None and weight_quantization(layer) is not None
    return quantized and chain is not None and any(parameter.requires_grad for parameter in chain.parameters())
