"""Number format of the forward pass in training: bfloat16 where the hardware computes with it, else float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

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


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of torch do not report the instructions; autocast on mps is not compared with float32 anywhere.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in CPU_INSTRUCTIONS)
