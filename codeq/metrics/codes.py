"""Integer codes of quantized weights, which a packed file stores, and the integers that hardware multiplies with."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeq.quantizer import DeadZoneQuantizer
from codeq.quantizer.functions import dead_zone_codes
from codeq.quantizer.layers import latent_weight, weight_quantization, weights_by_scale
from codeq.quantizer.modules import grid_quantizer
from codeq.quantizer.transposed import swap_channels


@torch.no_grad()
def weight_codes(layer: nn.Module) -> np.ndarray | None:
    """Return the integer code of every weight of a layer, or `None` for float weights.

    For quantizers of codeq the `q` of paper eq. (1) or (10), with a scale per layer or per channel. The codes of any
    other, of a subclass with a forward of its own, and of a quantizer with further parametrizations, such as a mask,
    are its levels divided by the smallest distance between two of them (or of one from 0), rounded. With
    ``granularity = "channel"`` each output channel has a smallest distance of its own; one with few weights may lack
    neighbouring levels, which makes its codes smaller.

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Linear(3, 1, bias=False))
    >>> _ = attach_weight_quantizers(net, [], "uniform", {"bitwidth": 3})
    >>> with torch.no_grad():
    ...     _ = latent_weight(net[0]).copy_(torch.tensor([[0.1, -2.0, 3.0]]))
    >>> weight_codes(net[0]).tolist()
    [[0, -2, 3]]
    """
    quantization = weight_quantization(layer)
    if quantization is None or not quantization.enabled:
        return None
    quantizer, groups = grid_quantizer(layer), quantization.transposed_groups
    latent = swap_channels(latent_weight(layer), groups)
    if quantizer is not None:
        codes = dead_zone_codes(latent, *quantizer.step_and_dead_zone(latent))[1]
    else:
        rows = weights_by_scale(layer).cpu().double()  # on the CPU: Apple's GPU has no float64
        codes = (rows / smallest_distances(rows)).view(latent.shape)
    return swap_channels(codes, groups).round().long().cpu().numpy()


def integer_weights(layer: nn.Module) -> np.ndarray | None:
    """Return the integers that fixed-point hardware multiplies the inputs of a layer with, `None` for float weights.

    On an affine grid all levels are an integer ``m + k`` times the step, and that integer is the factor. The paper's
    grid has no such integers: there the codes stand for them (the product with ``δ sign(q)`` is a sum and one factor).

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Linear(3, 1, bias=False))
    >>> options = {"fixed_bit_val": 3, "learnable_bit": False, "init_deadzone_logit": 0.7, "grid": "affine"}
    >>> _ = attach_weight_quantizers(net, [], "deadzone", options)
    >>> with torch.no_grad():
    ...     _ = latent_weight(net[0]).copy_(torch.tensor([[0.1, -2.0, 3.0]]))
    >>> weight_codes(net[0]).tolist(), integer_weights(net[0]).tolist()
    ([[0, -2, 3]], [[0, -3, 4]])
    """
    codes, quantizer = weight_codes(layer), grid_quantizer(layer)
    if codes is None or not isinstance(quantizer, DeadZoneQuantizer):
        return codes
    offset = quantizer.affine_offset()
    return codes if offset is None else codes + int(offset) * np.sign(codes)


def smallest_distances(rows: Tensor) -> Tensor:
    """Return the smallest distance of two levels of each row, 0 among them, as ``[rows, 1]``; 1 for a row of zeros."""
    levels = F.pad(rows.abs(), (1, 0)).sort(dim=1).values
    apart = levels.diff(dim=1)
    same = apart <= 1e-6 * levels[:, -1:]  # the same level, rounded differently
    smallest = apart.masked_fill(same, torch.inf).amin(dim=1, keepdim=True)
    return smallest.masked_fill(smallest.isinf(), 1)


def enclosed_bits(codes: np.ndarray) -> np.ndarray:
    """Return the number of bits from the highest to the lowest set bit of each magnitude, both included.

    This is the cost of multiplying by a constant: `0b0110100` takes a 4-bit multiplication and a shift. It is the
    bit-width of a weight in EBOPs (Sun et al., *Gradient-based Automatic Mixed Precision Quantization for Neural
    Networks On-Chip*, arXiv 2405.00645). The sign is not counted.

    Examples
    --------
    >>> enclosed_bits(np.array([0, 1, -6, 0b0110100])).tolist()
    [0, 1, 2, 4]
    """
    magnitude = np.abs(codes)
    lowest = magnitude & -magnitude
    # frexp is exact for integers below 2^53: its exponent is the number of bits.
    bits = np.frexp(magnitude.astype(np.float64))[1] - np.frexp(lowest.astype(np.float64))[1] + 1
    return np.where(magnitude == 0, 0, bits)
