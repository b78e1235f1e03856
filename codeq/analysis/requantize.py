"""Requantization of a trained network with other dead-zones and bit-widths, without training."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from codeq.common.checks import is_integer
from codeq.common.errors import CodeqError, unknown_name
from codeq.evaluator import EvalResult, Evaluator, Loader
from codeq.metrics import measure
from codeq.metrics.reference import dense_bytes
from codeq.metrics.storage import packed_bytes
from codeq.quantizer import MAX_BITS, MIN_BITS, DeadZoneQuantizer, UniformSymmetric
from codeq.quantizer.layers import bitwidth, distinct_layers, named_layers, weight_quantization

SATURATED = 10.0  # tanh of it is 1 in float32: no dead-zone, or all bits


@dataclass(frozen=True)
class Setting:
    """Quantizer settings of one layer.

    Parameters
    ----------
    dead_zone : float or None
        Width of the zero bin as a fraction of its largest, ``d / (2 R)`` in 0 … 1; `None` for a quantizer without one.
    bits : int
        Bit-width.
    """

    dead_zone: float | None
    bits: int


@dataclass(frozen=True, eq=False)
class Requantized:
    """Result of `Requantizer.evaluate`.

    Parameters
    ----------
    result : EvalResult
        Of `Evaluator` for a model with these dead-zones and bits.
    weights : dict of str to int
        Number of weights of each row of `result.layers`, without biases; 0 for a layer whose weights are those of an
        earlier one (tied weights).
    packed_bytes, float_bytes : int
        Bytes of the weights packed at these bits, see `codeq.metrics.StorageBytes`, and of those of the dense network
        at 32 bits, which is the one before any compaction.
    """

    result: EvalResult
    weights: dict[str, int]
    packed_bytes: int
    float_bytes: int

    @property
    def density(self) -> float:
        """Non-zero weights / weights of all conv and linear layers."""
        layers = self.result.layers
        nonzero = sum(density * self.weights[name] for name, density in zip(layers.layer, layers.density, strict=True))
        return float(nonzero / sum(self.weights.values()))

    @property
    def dead_filters(self) -> int:
        """All-zero filters of all conv and linear layers."""
        return int(self.result.layers["dead_filters"].sum())

    @property
    def null_channels(self) -> int:
        """Null output channels, ``"weights"`` accounting: dead filters, and filters that read null channels only."""
        return int(self.result.layers["null_out"].sum())


def dead_zone_logit(fraction: float) -> float:
    """Return the `θ_dz` whose dead-zone is ``d = fraction · 2 R``, the inverse of paper eq. (15).

    Raises
    ------
    CodeqError
        For a fraction outside 0 … 1.

    Examples
    --------
    >>> dead_zone_logit(1.0), round(dead_zone_logit(0.25), 4), dead_zone_logit(0.0)
    (0.0, 0.973, 10.0)
    """
    if not 0 <= fraction <= 1:
        raise CodeqError(f"dead_zone={fraction!r}: must lie in 0 … 1, the fraction d / (2 R)")
    return min(math.atanh(1 - fraction), SATURATED) if 1 - fraction < 1 else SATURATED


def bit_logit(bits: int, max_bits: int) -> float:
    """Return a `θ_bit` that gives `bits` bits, the inverse of paper eq. (18).

    Raises
    ------
    CodeqError
        For bits outside 2 … `max_bits`.

    Examples
    --------
    >>> bit_logit(2, max_bits=8), round(bit_logit(5, max_bits=8), 4), bit_logit(8, max_bits=8)
    (0.0, 0.5493, 10.0)
    """
    if not MIN_BITS <= bits <= max_bits:
        raise CodeqError(f"bits={bits!r}: must lie in {MIN_BITS} … {max_bits}, the largest that can be learned")
    return SATURATED if bits == max_bits > MIN_BITS else math.atanh((bits - MIN_BITS) / max(max_bits - MIN_BITS, 1))


class Requantizer:
    """A copy of a trained model whose dead-zones and bit-widths can be set repeatedly.

    Parameters
    ----------
    model : Module
        With dead-zone or uniform quantizers. It is copied and never changed.
    input_size : tuple of int
        `(C, H, W)` of one input.

    Raises
    ------
    CodeqError
        If no layer has such a quantizer.

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {"max_bits": 8})
    >>> what_if = Requantizer(net, (3, 8, 8))
    >>> what_if.trained["0"].bits, what_if.evaluate(bits={"0": 4, "2": 3}).packed_bytes
    (8, 162)
    """

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> None:
        self.model = copy.deepcopy(model).eval()
        self._input_size = input_size
        self._evaluator = Evaluator(self.model, input_size)
        self._float_bytes = dense_bytes(self.model, input_size)
        records = measure(self.model, input_size)
        self._weights = {record.name: record.weight.numel() if record.stored else 0 for record in records}
        # Layers that share a weight share its quantizer, which is set by the name of the first.
        self._quantizations = {
            name: quantization
            for name, layer in distinct_layers(self.model)
            if (quantization := weight_quantization(layer))
            and isinstance(quantization.quantizer, (DeadZoneQuantizer, UniformSymmetric))
        }
        if not self._quantizations:
            raise CodeqError("no layer of the model has a dead-zone or uniform quantizer, so none can be requantized")
        self._quantizers = {name: quantization.quantizer for name, quantization in self._quantizations.items()}
        modules = dict(named_layers(self.model))
        self.trained = {
            name: Setting(_dead_zone(quantizer), bitwidth(name, modules[name]))
            for name, quantizer in self._quantizers.items()
        }

    def apply(self, dead_zone: Mapping[str, float] | None = None, bits: Mapping[str, int] | None = None) -> nn.Module:
        """Set the quantizers of the copy and return it; other layers keep their trained settings.

        Parameters
        ----------
        dead_zone : mapping of str to float
            ``d / (2 R)`` in 0 … 1, by layer.
        bits : mapping of str to int
            2 … 16, by layer.

        Raises
        ------
        CodeqError
            For a layer without such a setting, and for values out of range.
        """
        dead_zone, bits = dict(dead_zone or {}), dict(bits or {})
        for name in (*dead_zone, *bits):
            if name not in self.trained:
                raise unknown_name("adjustable layer", name, self.trained)
        wanted = {
            name: _with(self._quantizers[name], name, dead_zone.get(name), bits.get(name)) for name in self._quantizers
        }
        for name, quantizer in wanted.items():
            self._quantizations[name].quantizer = quantizer
        return self.model

    def evaluate(
        self,
        dead_zone: Mapping[str, float] | None = None,
        bits: Mapping[str, int] | None = None,
        loader: Loader | None = None,
    ) -> Requantized:
        """Measure the copy with these settings, see `apply`; with a `loader` also its accuracy."""
        model = self.apply(dead_zone, bits)
        result = self._evaluator.evaluate(model, loader)
        return Requantized(result, self._weights, packed_bytes(model, self._input_size)[0], self._float_bytes)


def _dead_zone(quantizer: nn.Module) -> float | None:
    return quantizer.get_dead_zone() if isinstance(quantizer, DeadZoneQuantizer) else None


@torch.no_grad()
def _with(quantizer: nn.Module, layer: str, dead_zone: float | None, bits: int | None) -> nn.Module:
    """Return a copy of `quantizer` with other settings; `None` keeps the trained one."""
    quantizer = copy.deepcopy(quantizer)
    if bits is not None and (not is_integer(bits) or not MIN_BITS <= bits <= MAX_BITS):
        raise CodeqError(f"bits={bits!r} of layer {layer!r}: must be an integer from {MIN_BITS} to {MAX_BITS}")
    if isinstance(quantizer, UniformSymmetric):
        if dead_zone is not None:
            raise CodeqError(f"layer {layer!r} has a uniform quantizer, whose dead-zone is one step; set its bits")
        quantizer.bitwidth = quantizer.bitwidth if bits is None else int(bits)
        return quantizer
    assert isinstance(quantizer, DeadZoneQuantizer)
    if dead_zone is not None:
        quantizer.logit_dz.fill_(dead_zone_logit(dead_zone))
    if bits is None:
        return quantizer
    if quantizer.learnable_bit and bits <= quantizer.max_bits:
        quantizer.logit_bit.fill_(bit_logit(bits, quantizer.max_bits))
    else:
        quantizer.learnable_bit, quantizer.fixed_bit_val = False, int(bits)
    return quantizer
