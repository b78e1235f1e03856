"""Cost target of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_args

from pydantic import Field, Strict

from codeq.config.serialize import Part
from codeq.config.values import Factor, Fraction, Rate
from codeq.metrics.budget import Figure
from codeq.quantizer.functions import MIN_BITS
from codeq.quantizer.layers import FLOAT_BITS


@dataclass(frozen=True, kw_only=True)
class TargetConfig(Part):
    """Cost at the end of the training, to which λ is steered, see `codeq.training.controller.TargetController`.

    Exactly one figure is given; see `codeq.metrics.budget.cost_figure`.

    Parameters
    ----------
    relative_bops, structured_macs, bytes : float, optional
        Unstructured BOPs, structured MACs or packed bytes as a fraction of the dense 32-bit network, in (0, 1).
    mean_bits : float, optional
        Mean bit-width of the quantized layers, in bits.
    reach : float
        Fraction of the training after which the planned course has arrived at the target, in (0, 1).
    proportional, integral : float
        Gains of the controller.
    """

    relative_bops: Fraction | None = None
    structured_macs: Fraction | None = None
    bytes: Fraction | None = None
    mean_bits: Annotated[float, Strict(), Field(gt=MIN_BITS, lt=FLOAT_BITS)] | None = None
    reach: Fraction = 0.7
    proportional: Rate = 20.0
    integral: Factor = 100.0

    @property
    def figure(self) -> Figure:
        """Name of the figure."""
        return next(name for name in get_args(Figure) if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """Value of the figure at the end."""
        return float(getattr(self, self.figure))
