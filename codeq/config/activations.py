"""Settings of the quantizers of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, Strict

from codeq.config.serialize import Part
from codeq.config.values import Flag
from codeq.quantizer import MAX_BITS, MIN_BITS
from codeq.quantizer.activations import ActivationMethod, ResidualOperands


@dataclass(frozen=True, kw_only=True)
class ActivationsConfig(Part):
    """Quantizers of the inputs of quantized layers, see `codeq.attach_activation_quantizers`.

    Parameters
    ----------
    bits : int
        2 … 16.
    method : {"lsq", "minmax", "percentile"}
        A learned step, or one that is calibrated on the first training batches and stays.
    symmetric : bool
        Whether the integers are ``-2^(b-1) … 2^(b-1) - 1``; otherwise they follow the range of the values.
    per : {"tensor"}
        Values that share a scale.
    residual : {"float", "shared"}
        Whether the operands of each residual add are quantized with one step.
    """

    bits: Annotated[int, Strict(), Field(ge=MIN_BITS, le=MAX_BITS)] = 8
    method: ActivationMethod = "lsq"
    symmetric: Flag = False
    per: Literal["tensor"] = "tensor"
    residual: ResidualOperands = "float"
