"""Names of devices, and the devices of this machine."""

from __future__ import annotations

import torch

from codeq.common.errors import CodeqError, quote

ALLOWED = "cpu, mps, cuda or cuda:N"


def parse_device(name: str) -> torch.device:
    """Return the device called `name`, whether or not this machine has it.

    Raises
    ------
    CodeqError
        For a name that is not a device or that codeq does not train on.

    Examples
    --------
    >>> parse_device("cuda:1")
    device(type='cuda', index=1)
    >>> parse_device("gpu")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: device 'gpu' is unknown. Allowed: cpu, mps, cuda or cuda:N
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "mps", "cuda") or (device.type != "cuda" and device.index):
        raise CodeqError(f"device {quote(name)} is unknown. Allowed: {ALLOWED}")
    return device


def resolve_device(name: str | None) -> torch.device:
    """Return the device to run on.

    Parameters
    ----------
    name : str or None
        A device, or `None` for the best one of this machine: cuda, else mps, else cpu.

    Raises
    ------
    CodeqError
        For a named device that this machine does not have: only the default falls back to another one.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    mps = torch.backends.mps.is_available()
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    device = parse_device(name)
    count = {"cpu": 1, "mps": int(mps), "cuda": torch.cuda.device_count()}[device.type]
    if (device.index or 0) >= count:
        here = ["cpu", *(["mps"] if mps else []), *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise CodeqError(f"device {name!r} is not on this machine. Choose with --device one of: {', '.join(here)}")
    return device
