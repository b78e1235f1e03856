"""Provenance of a run: git commit, package versions, hardware and command."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeq.common.paths import CHECKOUT

if TYPE_CHECKING:
    import torch

PACKAGES = ("codeq", "torch", "torchvision", "numpy", "pandas")


def describe_environment(seed: int, precision: str, device: torch.device | None) -> dict[str, Any]:
    """Return what ``environment.json`` of a new run contains, as plain values.

    Parameters
    ----------
    seed : int
        Seed of the run.
    precision : str
        Number format of its training.
    device : torch.device or None
        Device of its training: a GPU is named only if it trains, and asked only then, as that takes memory on it.
    """
    import torch

    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device and device.type == "cuda" else None,
        "precision": precision,
        "seed": seed,
        "command": sys.argv,
    }


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, or `None` for one that is only on the path.

    Examples
    --------
    >>> installed_version("numpy") is None, installed_version("no-such-package")
    (False, None)
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """Return the name of the processor, or of its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not on Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _git_commit() -> str | None:
    """Return the commit of the checkout that codeq runs from, with ``-dirty`` if files differ from it, or `None`."""
    if not CHECKOUT:
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
