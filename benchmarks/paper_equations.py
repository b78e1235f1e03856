"""The paper's dead-zone quantizer, written down equation by equation in eager PyTorch (arXiv 2512.12981).

It shares no code with codeq and leaves every gradient to autograd, as a first implementation from the paper would.
`bench_peers.py` times it, and a test compares its values and gradients with codeq's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

MIN_BITS, MAX_BITS = 2, 8


def straight_through(value: Tensor, x: Tensor) -> Tensor:
    """Return `value` with the gradient of `x`."""
    return x + (value - x).detach()


def dead_zone_quantize(w: Tensor, logit_dz: Tensor, logit_bit: Tensor) -> Tensor:
    """Return the quantized weights ``ŵ``, of the shape of `w`, from ``θ_dz`` and ``θ_bit``, both ``[]``."""
    absmax = torch.quantile(w.detach().abs().flatten(), 0.99)  # R, section 6.1
    real_bits = torch.tanh(logit_bit.abs()) * (MAX_BITS - MIN_BITS) + MIN_BITS
    bits = straight_through(real_bits.round(), real_bits)  # (18)
    levels = 2 ** (bits - 1) - 1  # Q
    dead_zone = 2 * absmax * (1 - torch.tanh(logit_dz.abs()))  # (15)
    step = (absmax - dead_zone / 2) / (levels - 0.5) + 1e-8  # (12)
    shift = dead_zone / 2 - step / 2  # δ
    beyond = w.abs() - shift
    u = w.sign() * straight_through(beyond.relu(), beyond) / step
    limit = levels.detach()
    q = straight_through(u.round().clamp(-limit, limit), u)  # (10)
    return step * q + shift * q.detach().sign()


class PaperQuantizer(nn.Module):
    """Weight quantizer with the parameters ``θ_dz`` and ``θ_bit``, both 3.0 at the start (section 6.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_dz = nn.Parameter(torch.tensor(3.0))
        self.logit_bit = nn.Parameter(torch.tensor(3.0))

    def forward(self, w: Tensor) -> Tensor:
        """Return the quantized weights, of the shape of `w`."""
        return dead_zone_quantize(w, self.logit_dz, self.logit_bit)


def attach_paper_quantizers(model: nn.Module) -> None:
    """Quantize the weights of every conv and linear layer of `model`."""
    for layer in list(model.modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(layer, "weight", PaperQuantizer())
