"""Accuracy of a model and its compression under both accountings, with each weight quantized once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codeq.common.errors import CodeqError, unknown_name
from codeq.graph.tracing import evaluation_mode
from codeq.metrics import (
    LayerRecord,
    ModelStats,
    QuantizationComparison,
    measure,
    structured_stats,
    unstructured_stats,
)
from codeq.metrics.accuracy import check_labels
from codeq.metrics.budget import mean_bits
from codeq.metrics.encoding import encode_mask, encode_norms
from codeq.quantizer.layers import (
    WeightQuantization,
    forward_weight,
    named_layers,
    swap_channels,
    transposed_groups,
    weight_quantization,
)
from codeq.sparsity.norms import filter_norms

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Loader = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class EvalResult:
    """Accuracy, cost and sparsity of a model.

    Parameters
    ----------
    structured_stats, unstructured_stats : ModelStats
        Cost under the two accountings.
    structured_bops_ratio, structured_mac_ratio, unstructured_bops_ratio, unstructured_mac_ratio : float
        Compression ratios (×) against the dense 32-bit baseline; `inf` when nothing is left.
    test_accuracy : float or None
        Fraction of correct predictions; `None` without a loader.
    test_loss : float or None
        Mean cross-entropy in nats; `None` without a loader.
    structured_sparsity : float
        All-zero filters / filters of the quantized convolutions; of all convolutions if none is quantized, of all
        layers if the model has no convolution.
    unstructured_sparsity : float
        Zero weights / weights of the same convolutions.
    mean_bits : float
        Mean bit-width over the quantized layers, each layer counting once; 32 if there are none.
    layers : DataFrame
        One row per layer, in order of execution; see `layer_table`.
    liveness : dict of str to array of bool
        For each layer `[c_out]`, true for filters with a non-zero weight.
    left_out : tuple of str
        A note where both sparsities leave out most weights, because the convolutions have few of them.
    """

    structured_stats: ModelStats
    structured_bops_ratio: float
    structured_mac_ratio: float
    unstructured_stats: ModelStats
    unstructured_bops_ratio: float
    unstructured_mac_ratio: float
    test_accuracy: float | None
    test_loss: float | None
    structured_sparsity: float
    unstructured_sparsity: float
    mean_bits: float
    layers: pd.DataFrame
    liveness: dict[str, np.ndarray]
    left_out: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Omissions and assumptions of the figures, one sentence each, see `ModelStats`."""
        return (*self.structured_stats.notes, *self.left_out)


class Evaluator:
    """Accuracy of models, and their compression against the dense 32-bit version of a baseline.

    Parameters
    ----------
    baseline_model : Module
        Any model of the baseline's architecture, whatever its weights.
    input_size : tuple of int
        `(C, H, W)` of one input.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> result = Evaluator(resnet20()).evaluate(resnet20())
    >>> result.structured_bops_ratio, result.test_accuracy
    (1.0, None)
    """

    def __init__(self, baseline_model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> None:
        self.comparison = QuantizationComparison(input_size)
        self.comparison.set_baseline(baseline_model)

    def evaluate(
        self, model: nn.Module, loader: Loader | None = None, total: Callable[[Tensor], Tensor] | None = None
    ) -> EvalResult:
        """Measure `model`, and its accuracy if a loader is given; its mode and device do not change.

        Parameters
        ----------
        model : Module
            With or without quantizers.
        loader : iterable of (Tensor, Tensor), optional
            Batches of inputs and labels `[N]`.
        total : callable, optional
            Sums a tensor over the processes that share the evaluation, each with a loader of its part.

        Raises
        ------
        CodeqError
            For a model that cannot be traced or counted, for a loader without batches, and for labels that are not
            integer numbers `[N]` of the model's classes.
        """
        comparison = self.comparison
        with evaluation_mode(model), parametrize.cached():  # each weight is quantized once for all batches
            records = measure(model, comparison.input_size)
            accuracy, loss = measure_accuracy(model, loader, total) if loader is not None else (None, None)
            structured = structured_stats(records, comparison.b_a)
            unstructured = unstructured_stats(records, comparison.b_a)
            quantized = {name: layer for name, layer in named_layers(model) if weight_quantization(layer)}
            distinct = [r for r in records if r.stored]
            convs = [r for r in distinct if r.weight.ndim == 4] or distinct
            counted = [r for r in convs if r.name in quantized] or convs
            return EvalResult(
                structured_stats=structured,
                structured_bops_ratio=comparison.compression_ratio(structured),
                structured_mac_ratio=comparison.mac_compression_ratio(structured),
                unstructured_stats=unstructured,
                unstructured_bops_ratio=comparison.unstructured_compression_ratio(unstructured),
                unstructured_mac_ratio=comparison.unstructured_mac_compression_ratio(unstructured),
                test_accuracy=accuracy,
                test_loss=loss,
                structured_sparsity=_fraction(
                    sum((~r.alive).sum() for r in counted), sum(r.alive.size for r in counted)
                ),
                unstructured_sparsity=_fraction(*_zeros(counted)),
                mean_bits=mean_bits(model, records),
                layers=layer_table(model, records, structured, unstructured),
                liveness={r.name: r.alive for r in records},
                left_out=_left_out(counted, [r for r in distinct if r.name in quantized] or distinct),
            )

    def accuracy(
        self, model: nn.Module, loader: Loader, total: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[float, float]:
        """Return accuracy (fraction) and mean cross-entropy (nats) alone; arguments and errors as of `evaluate`."""
        with evaluation_mode(model), parametrize.cached():
            return measure_accuracy(model, loader, total)

    def plot_channel_liveness(self, model: nn.Module) -> Figure:
        """Draw which filters of each layer are alive (white) and dead (black)."""
        from codeq import plots

        with evaluation_mode(model):
            records = measure(model, self.comparison.input_size)
        return plots.footnote(plots.channel_liveness({r.name: r.alive for r in records}), records.notes)

    def plot_sparsity_map(self, model: nn.Module, layer_name: str) -> Figure:
        """Draw the kernels of one layer, zero weights black.

        Raises
        ------
        CodeqError
            If `layer_name` is not exactly one conv or linear layer.
        """
        from codeq import plots

        layers = dict(named_layers(model))
        if layer_name not in layers:
            raise unknown_name("layer", layer_name, layers)
        with torch.no_grad():
            layer = layers[layer_name]
            weight = swap_channels(forward_weight(layer), transposed_groups(layer))
            return plots.sparsity_map(weight.float().cpu().numpy(), layer_name)

    def plot_layer_sparsity_bars(self, result: EvalResult) -> Figure:
        """Draw structured against unstructured pruning ratio of every layer."""
        from codeq import plots

        return plots.footnote(plots.layer_sparsity_bars(result.layers), result.notes)


def measure_accuracy(
    model: nn.Module, loader: Loader, total: Callable[[Tensor], Tensor] | None = None
) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of a model in evaluation mode, as `Evaluator.accuracy`.

    Parametrized weights are computed anew for each batch, where the caller does not cache them.
    """
    device, classes = next(model.parameters()).device, 0
    # Correct predictions, loss, inputs and impossible labels; float64 counts them exactly, where the device has it.
    sums = torch.zeros(4, device=device, dtype=torch.double if device.type in ("cpu", "cuda") else torch.float)
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        logits = model(x)
        check_labels(logits, y)
        logits = logits.float() if logits.itemsize < 4 else logits
        # Counted instead of refused at once, which would make the host wait for a GPU in every batch.
        known = y.long().clamp(0, logits.shape[1] - 1)
        sums[3] += (known != y).sum()
        # The largest logit of a row with NaN is the NaN, which predicts nothing.
        sums[0] += ((logits.argmax(1) == y) & ~logits.isnan().any(1)).sum()
        sums[1] += F.cross_entropy(logits, known, reduction="sum")
        sums[2] += len(y)
        classes = logits.shape[1]
    num_correct, loss, count, impossible = (total(sums) if total else sums).tolist()
    if not count:
        raise CodeqError("loader has no batches; accuracy needs at least one input")
    if impossible:
        raise CodeqError(
            f"{impossible:.0f} of {count:.0f} labels are none of the {classes} classes of the model: must be integers "
            f"0 … {classes - 1}"
        )
    return num_correct / count, loss / count


def _left_out(counted: list[LayerRecord], layers: list[LayerRecord]) -> tuple[str, ...]:
    share = sum(r.weight.numel() for r in counted) / max(sum(r.weight.numel() for r in layers), 1)
    if share >= 0.5:
        return ()
    return (f"zero weights and dead filters are those of the convolutions, which have {share:.1%} of the weights",)


def _zeros(records: list[LayerRecord]) -> tuple[int, int]:
    total = sum(r.weight.numel() for r in records)
    return total - sum(int(r.weight.count_nonzero()) for r in records), total


def _fraction(part: int, whole: int) -> float:
    return float(part / whole) if whole else 0.0


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
