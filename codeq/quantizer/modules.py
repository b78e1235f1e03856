"""Quantizer modules, which hold the parameters and nothing else, and their registry."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from codeq.common.checks import check_choice, check_flag, is_integer
from codeq.common.errors import CodeqError, quote
from codeq.common.registry import Registry
from codeq.quantizer.functions import (
    MIN_BITS,
    Grid,
    affine_offset,
    dead_zone_grid,
    dead_zone_quantize,
    dead_zone_share,
    learned_bits,
    positive_levels,
    uniform_quantize,
    widen,
)
from codeq.quantizer.layers import sole_quantization
from codeq.quantizer.learned import learned_absmax_quantize
from codeq.quantizer.scale import AbsmaxOver, Granularity, Scale
from codeq.quantizer.scaled import ScaledQuantizer

MAX_BITS = 16  # above, neighbouring levels are no longer distinct in float32


Kind = TypeVar("Kind", bound=nn.Module)


def computes_as(quantizer: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Return whether a quantizer is of a class and has its `forward`: that of a subclass may give other levels.

    Examples
    --------
    >>> class Halved(UniformSymmetric):
    ...     def forward(self, w):
    ...         return super().forward(w) / 2
    >>> computes_as(UniformSymmetric(), UniformSymmetric), computes_as(Halved(), UniformSymmetric)
    (True, False)
    """
    own = "forward" in vars(quantizer) or type(quantizer).forward is not kind.forward
    return isinstance(quantizer, kind) and not own


def check_bits(name: str, value: int) -> int:
    """Return a bit-width, or raise a `CodeqError` if it is none from 2 to 16."""
    if not is_integer(value) or not MIN_BITS <= value <= MAX_BITS:
        raise CodeqError(f"{name}={quote(value)}: must be an integer from {MIN_BITS} to {MAX_BITS} (bits)")
    return int(value)


def _logit(name: str, value: Any) -> Tensor:
    """Return the initial value of a logit, or raise a `CodeqError` if it is no finite number."""
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)  # of NumPy and PyTorch, too
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise CodeqError(f"{name}={quote(value)}: must be a finite number")
    return torch.tensor(number)


class DeadZoneQuantizer(ScaledQuantizer):
    """The paper's quantizer: one learnable dead-zone and one learnable bit-width for a whole weight tensor.

    `absmax_over`, `granularity`, `scale` and `grid` are extensions; their defaults are the paper's.

    Parameters
    ----------
    fixed_bit_val : int
        Bit-width used when `learnable_bit` is false.
    max_bits : int
        Largest bit-width that can be learned, `b_max` (the smallest is 2).
    init_bit_logit, init_deadzone_logit : float
        Initial ``θ_bit`` and ``θ_dz``; 3.0 gives `max_bits` and almost no dead-zone.
    learnable_bit, learnable_deadzone : bool
        Whether ``logit_bit`` and ``logit_dz`` train; otherwise they are frozen.
    absmax_over : {"all", "nonzero"}
        Weights over which the 0.99 quantile `R` is taken, see `absmax`.
    granularity : {"layer", "channel"}
        One `R`, and therefore one `d` and `s`, for the whole tensor or for each output channel (its first dimension;
        `attach_weight_quantizers` sees to that for transposed convolutions). ``θ_dz`` and ``θ_bit`` are shared by all
        channels, so a layer has one bit-width either way.
    scale : {"absmax", "learned", "held"}
        `R` is computed from the weights, or starts at that value and is trained as in LSQ (arXiv 1902.08153), or keeps
        it. See `ScaledQuantizer`: a stored scale takes its value when the quantizer is attached.
    grid : {"paper", "affine"}
        With ``"affine"``, `d` is always an odd multiple of `s`, so that every level is an integer times `s`, see
        `dead_zone_grid`. Of 2 bits, the narrowest dead-zone is then ``d = R``.

    Raises
    ------
    CodeqError
        For a bit-width outside 2 … 16, an unknown `absmax_over`, `granularity`, `scale` or `grid`, a logit that is no
        finite number, and a `learnable_…` that is neither true nor false.

    Examples
    --------
    >>> quantizer = DeadZoneQuantizer(max_bits=8)
    >>> w = torch.linspace(-1, 1, 101)
    >>> quantizer(w).shape, quantizer.get_bitwidth()
    (torch.Size([101]), tensor(8))
    >>> quantizer = DeadZoneQuantizer(granularity="channel", scale="learned")
    >>> quantizer(torch.tensor([[-1.0, 1.0], [2.0, 2.0]])).shape, quantizer.learned_absmax.tolist()
    (torch.Size([2, 2]), [[1.0], [2.0]])
    """

    def __init__(
        self,
        fixed_bit_val: int = 4,
        max_bits: int = 8,
        init_bit_logit: float = 3.0,
        init_deadzone_logit: float = 3.0,
        learnable_bit: bool = True,
        learnable_deadzone: bool = True,
        absmax_over: AbsmaxOver = "all",
        granularity: Granularity = "layer",
        scale: Scale = "absmax",
        grid: Grid = "paper",
    ) -> None:
        super().__init__(absmax_over, granularity, scale)
        check_choice("grid", grid, Grid)
        self.fixed_bit_val = check_bits("fixed_bit_val", fixed_bit_val)
        self.max_bits = check_bits("max_bits", max_bits)
        check_flag("learnable_bit", learnable_bit)
        check_flag("learnable_deadzone", learnable_deadzone)
        self.learnable_bit = learnable_bit
        self.grid = grid
        self.logit_dz = nn.Parameter(_logit("init_deadzone_logit", init_deadzone_logit), learnable_deadzone)
        self.logit_bit = nn.Parameter(_logit("init_bit_logit", init_bit_logit), learnable_bit)

    def _bits(self) -> Tensor | int:
        return learned_bits(self.logit_bit, self.max_bits) if self.learnable_bit else self.fixed_bit_val

    def step_and_dead_zone(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor | int]:
        """Return step `s` and dead-zone width `d` (shape and unit as of `magnitude`), and bit-width `b` for `w`."""
        step, dead_zone, bits, _ = self._grid(self.magnitude(w))
        return step, dead_zone, bits

    def get_dead_zone(self) -> float:
        """Return ``d / (2 R)`` in force, a fraction: 1 - tanh|θ_dz|, or the nearest of an affine grid."""
        share = dead_zone_share(self.logit_dz.detach().cpu().double())  # on the CPU: Apple's GPU has no float64
        return float(dead_zone_grid(torch.ones_like(share), share, int(self.get_bitwidth()), self.grid)[2])

    def affine_offset(self) -> Tensor | None:
        """Return the `m` of the levels ``s (m + k)``, ``[]``, or `None` on the paper's grid, which is not affine."""
        return None if self.grid == "paper" else affine_offset(dead_zone_share(self.logit_dz), self._bits())

    def _grid(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor | int, Tensor]:
        bits = self._bits()
        step, dead_zone, share = dead_zone_grid(r, dead_zone_share(self.logit_dz), bits, self.grid)
        return step, dead_zone, bits, share

    def forward(self, w: Tensor) -> Tensor:
        """Return the quantized weights ``ŵ``, of the shape of `w`."""
        step, dead_zone, bits, share = self._grid(self.magnitude(w))
        if self.scale == "learned":
            return learned_absmax_quantize(w, step, dead_zone, bits, self.learned_absmax, share)
        return dead_zone_quantize(w, step, dead_zone, bits)

    def get_bitwidth(self) -> Tensor:
        """Return the current integer bit-width, ``[]``, in bits."""
        bits = self._bits()
        # `full_like` fills on the device; copying a number to it would make the host wait.
        return bits.detach().long() if isinstance(bits, Tensor) else torch.full_like(self.logit_bit, bits).long()

    def extra_repr(self) -> str:
        """Describe the rules of bit-width and scale for `print(model)`."""
        rule = f"max_bits={self.max_bits}" if self.learnable_bit else f"bits={self.fixed_bit_val}"
        options = f"granularity={self.granularity!r}, scale={self.scale!r}, grid={self.grid!r}"
        return f"{rule}, absmax_over={self.absmax_over!r}, {options}"


DeadZoneLDZCompander = DeadZoneQuantizer


class UniformSymmetric(ScaledQuantizer):
    """Mid-tread uniform symmetric quantizer of fixed bit-width, paper eq. (1) and (2).

    Parameters
    ----------
    bitwidth : int
        Bits, 2 … 16.
    scale : {"absmax", "held"}
        `R` is computed from the weights, or keeps the value of the first ones, see `ScaledQuantizer`.

    Examples
    --------
    >>> UniformSymmetric(bitwidth=2)(torch.tensor([-1.0, 0.2, 1.0])).tolist()
    [-1.0, 0.0, 1.0]
    """

    def __init__(self, bitwidth: int = 8, scale: Literal["absmax", "held"] = "absmax") -> None:
        check_choice("scale", scale, Literal["absmax", "held"])
        super().__init__("all", "layer", scale)
        self.bitwidth = check_bits("bitwidth", bitwidth)

    def step(self, w: Tensor) -> Tensor:
        """Return the step `s` for `w`, ``[]``, in the unit of `w`."""
        step = widen(self.magnitude(w)) / positive_levels(self.bitwidth)
        return step.clamp(min=torch.finfo(step.dtype).tiny)

    def step_and_dead_zone(self, w: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return step `s`, the width of the zero bin, which equals it, and bit-width `b` for `w`."""
        step = self.step(w)
        return step, step, self.bitwidth

    def forward(self, w: Tensor) -> Tensor:
        """Return the quantized weights ``ŵ``, of the shape of `w`."""
        return uniform_quantize(w, self.step(w), self.bitwidth)

    def get_bitwidth(self) -> Tensor:
        """Return the bit-width, ``[]``, in bits."""
        return torch.tensor(self.bitwidth)


def grid_quantizer(layer: nn.Module) -> DeadZoneQuantizer | UniformSymmetric | None:
    """Return the quantizer on whose levels ``s q + δ sign(q)`` (paper eq. (10)) the weights of a layer lie, or `None`.

    That is an enabled quantizer of codeq which computes the weights alone, and not one of a user, a subclass with a
    `forward` of its own, or one with further parametrizations behind it, such as a mask.

    Examples
    --------
    >>> grid_quantizer(nn.Linear(4, 2)) is None
    True
    """
    quantization = sole_quantization(layer)
    quantizer = quantization.quantizer if quantization else None
    if quantizer is not None and (
        computes_as(quantizer, DeadZoneQuantizer) or computes_as(quantizer, UniformSymmetric)
    ):
        return quantizer
    return None


QUANTIZERS: Registry[type[nn.Module]] = Registry("quantizer")
QUANTIZERS["deadzone"] = DeadZoneQuantizer
QUANTIZERS["uniform"] = UniformSymmetric
