"""Accuracy of a model and its compression under both accountings, with each weight quantized once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from codeq.common.errors import CodeqError, quote, unknown_name
from codeq.common.modes import evaluation_mode
from codeq.metrics import (
    LayerRecord,
    ModelStats,
    QuantizationComparison,
    measure,
    structured_stats,
    unstructured_stats,
)
from codeq.metrics.accuracy import Loader, measure_accuracy
from codeq.metrics.budget import mean_bits
from codeq.metrics.layer_table import layer_table
from codeq.quantizer.layers import cached_weights, forward_weight, named_layers, weight_quantization
from codeq.quantizer.transposed import swap_channels, transposed_groups

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


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
        All-zero filters / filters of the quantized convolutions; of the quantized layers if no convolution is
        quantized. Of a float model those of the convolutions, or of all layers if there are none.
    unstructured_sparsity : float
        Zero weights / weights of the same layers.
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
        with evaluation_mode(model), cached_weights(model):  # each weight is quantized once for all batches
            records = measure(model, comparison.input_size)
            accuracy, loss = measure_accuracy(model, loader, total) if loader is not None else (None, None)
            structured = structured_stats(records, comparison.b_a)
            unstructured = unstructured_stats(records, comparison.b_a)
            names = {name for name, layer in named_layers(model) if weight_quantization(layer)}
            distinct = [r for r in records if r.stored]
            layers = [r for r in distinct if r.name in names] or distinct
            counted = [r for r in layers if r.weight.ndim > 2] or layers  # linear layers have two dimensions
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
                left_out=_left_out(counted, layers),
            )

    def accuracy(
        self, model: nn.Module, loader: Loader, total: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[float, float]:
        """Return accuracy (fraction) and mean cross-entropy (nats) alone; arguments and errors as of `evaluate`."""
        with evaluation_mode(model), cached_weights(model):
            return measure_accuracy(model, loader, total)

    def plot_channel_liveness(self, model: nn.Module) -> Figure:
        """Draw which filters of each layer are alive (white) and dead (black)."""
        from codeq import plots

        with evaluation_mode(model):
            records = measure(model, self.comparison.input_size)
        return plots.footnote(plots.channel_liveness({r.name: r.alive for r in records}), records.notes)

    def plot_sparsity_map(self, model: nn.Module, layer_name: str) -> Figure:
        """Draw the kernels of one layer in evaluation mode, zero weights black.

        Raises
        ------
        CodeqError
            If `layer_name` is not exactly one conv or linear layer.
        """
        from codeq import plots

        layers = dict(named_layers(model))
        if layer_name not in layers:
            raise unknown_name("layer", layer_name, layers)
        with evaluation_mode(model):
            layer = layers[layer_name]
            weight = swap_channels(forward_weight(layer), transposed_groups(layer))
            return plots.sparsity_map(weight.float().cpu().numpy(), layer_name)

    def plot_layer_sparsity_bars(self, result: EvalResult) -> Figure:
        """Draw structured against unstructured pruning ratio of every layer."""
        from codeq import plots

        if not isinstance(result, EvalResult):
            raise CodeqError(f"result={quote(result)}: must be what Evaluator.evaluate returns")
        return plots.footnote(plots.layer_sparsity_bars(result.layers), result.notes)


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
