"""Number format of the forward pass in training: bfloat16 where the hardware computes with it, else float32."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import torch

logger = logging.getLogger(__name__)

Precision = Literal["bf16", "float32"]

# Instructions that multiply bfloat16 numbers, by the names of `torch.cpu.get_capabilities` on x86 and ARM.
CPU_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def choose_precision(amp: Literal["auto", "bf16"] | None, device: torch.device) -> Precision:
    """Return the format in which a training on `device` with the setting `amp` computes.

    Parameters
    ----------
    amp : {"auto", "bf16"} or None
        ``"auto"`` is bfloat16 where the device has instructions for it; emulated, it would be slower than float32.
    device : torch.device
        Device of the training.

    Examples
    --------
    >>> choose_precision("bf16", torch.device("cpu")), choose_precision(None, torch.device("cpu"))
    ('bf16', 'float32')
    """
    return "bf16" if amp == "bf16" or (amp == "auto" and _computes_bfloat16(device)) else "float32"


def warn_of_emulation(precision: Precision, device: torch.device) -> None:
    """Warn where a training computes with bfloat16 on a device that is known to have no instructions for it.

    Parameters
    ----------
    precision : {"bf16", "float32"}
        Format of the training, chosen here, or on another machine for a resumed one.
    device : torch.device
        Device of the training.
    """
    if precision == "bf16" and _computes_bfloat16(device) is False:
        logger.warning(
            "bf16 on a device without instructions for it (%s): it is emulated and may take ten times as long as "
            "float32; a training with amp: auto chooses float32 here",
            device.type,
        )


def _computes_bfloat16(device: torch.device) -> bool | None:
    """Return whether the device has instructions for bfloat16, `None` if that is unknown."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of torch do not report the instructions; autocast on mps is not compared with float32 anywhere.
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return None
    capabilities: Mapping[str, object] = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in CPU_INSTRUCTIONS)
