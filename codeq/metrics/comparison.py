"""Comparison of a compressed network with its dense 32-bit version."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from torch import nn

from codeq.common.checks import at_least
from codeq.common.errors import CodeqError, quote
from codeq.metrics.bops import structured_stats, unstructured_stats
from codeq.metrics.records import measure
from codeq.metrics.reference import Reference, reference_of, with_activation_bits
from codeq.metrics.stats import ModelStats


def compression_ratio(baseline: int, compressed: int) -> float:
    """Return baseline / compressed (×); `inf` when nothing is left, and 1 when there was nothing.

    Examples
    --------
    >>> compression_ratio(8, 2), compression_ratio(8, 0), compression_ratio(0, 0)
    (4.0, inf, 1.0)
    """
    if baseline == compressed:
        return 1.0
    return baseline / compressed if compressed else inf


class QuantizationComparison:
    """Comparison of compressed networks with the dense 32-bit one.

    Parameters
    ----------
    input_size : tuple of int
        `(C, H, W)` of one input.
    b_a : int
        Bits of activations that are not quantized, and of all activations of the dense network.

    Raises
    ------
    CodeqError
        For bits that are not a positive integer.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> comparison = QuantizationComparison()
    >>> comparison.set_baseline(resnet20())
    >>> comparison.baseline.total_macs
    40551040
    >>> comparison.compression_ratio(comparison.calculate_stats(resnet20()))
    1.0
    """

    def __init__(self, input_size: tuple[int, int, int] = (3, 32, 32), b_a: int = 32) -> None:
        self.input_size = input_size
        self.b_a = at_least("b_a", b_a, 1, " (bits)")
        self._reference: Reference | None = None

    @property
    def baseline(self) -> ModelStats:
        """Cost of the dense 32-bit network.

        Raises
        ------
        CodeqError
            Before `set_baseline`.
        """
        return self._found().stats

    @property
    def baseline_bytes(self) -> int:
        """Bytes of the conv and linear weights of the dense 32-bit network; errors as for `baseline`."""
        return self._found().weight_bytes

    def _found(self) -> Reference:
        if self._reference is None:
            raise CodeqError("there is no baseline to compare with; call set_baseline(model) first")
        return self._reference

    def set_baseline(self, model: nn.Module) -> None:
        """Use the dense 32-bit version of `model` as baseline, regardless of its quantizers and zeros.

        Of a compacted network it is that of the network before compaction.
        """
        reference = reference_of(model, self.input_size)
        self._reference = replace(reference, stats=with_activation_bits(reference.stats, self.b_a))

    def calculate_stats(self, model: nn.Module) -> ModelStats:
        """Return the structured cost of `model`, see `structured_stats`."""
        return structured_stats(measure(model, self.input_size), self.b_a)

    def calculate_unstructured_stats(self, model: nn.Module) -> ModelStats:
        """Return the unstructured cost of `model`, see `unstructured_stats`."""
        return unstructured_stats(measure(model, self.input_size), self.b_a)

    def compression_ratio(self, stats: ModelStats) -> float:
        """Return baseline BOPs / structured BOPs (×); `inf` when nothing is left."""
        return compression_ratio(self.baseline.total_bops, _checked(stats).total_bops)

    def mac_compression_ratio(self, stats: ModelStats) -> float:
        """Return baseline MACs / structured MACs (×); `inf` when nothing is left."""
        return compression_ratio(self.baseline.total_macs, _checked(stats).total_macs)

    def unstructured_compression_ratio(self, stats: ModelStats) -> float:
        """Return baseline BOPs / unstructured BOPs (×); `inf` when nothing is left."""
        return self.compression_ratio(stats)

    def unstructured_mac_compression_ratio(self, stats: ModelStats) -> float:
        """Return baseline MACs / unstructured MACs (×); `inf` when nothing is left."""
        return self.mac_compression_ratio(stats)


def _checked(stats: object) -> ModelStats:
    if not isinstance(stats, ModelStats):
        raise CodeqError(f"stats={quote(stats)}: must be what calculate_stats or calculate_unstructured_stats returns")
    return stats
