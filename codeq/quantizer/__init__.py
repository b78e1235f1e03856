"""CoDeQ dead-zone quantizer (arXiv 2512.12981): pure functions, modules with the parameters, and `attach`.

Symbols follow the paper: ``w`` weights, ``b`` bits, ``d`` dead-zone width, ``s`` step, ``R`` absmax, and
``Q = 2^(b-1) - 1``.
"""

from codeq.quantizer.functions import (
    MIN_BITS,
    dead_zone_quantize,
    dead_zone_width,
    learned_bits,
    positive_levels,
    pruning_aware_step,
    round_ste,
    uniform_quantize,
)
from codeq.quantizer.modules import (
    MAX_BITS,
    QUANTIZERS,
    DeadZoneLDZCompander,
    DeadZoneQuantizer,
    UniformSymmetric,
)
from codeq.quantizer.scale import absmax

__all__ = [
    "QUANTIZERS", "DeadZoneQuantizer", "DeadZoneLDZCompander", "UniformSymmetric", "MIN_BITS", "MAX_BITS",
    # pure functions
    "absmax", "positive_levels", "dead_zone_width", "learned_bits", "pruning_aware_step", "round_ste",
    "dead_zone_quantize", "uniform_quantize",
]  # fmt: skip
