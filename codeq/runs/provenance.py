"""Provenance of a run: git commit, package versions, hardware and command."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeq.common.paths import CHECKOUT

if TYPE_CHECKING:
    import torch

PACKAGES = ("codeq", "torch", "torchvision", "numpy", "pandas")
MACHINE = ("git_commit", "python", "platform", "cpu", "cpu_threads", "gpu", "device")  # compared beside the versions
RESUMED = "resumed_with"


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
        "device": device.type if device else "cpu",
        "precision": precision,
        "seed": seed,
        "command": sys.argv,
    }


def with_resumption(recorded: dict[str, Any], found: dict[str, Any], epoch: int) -> tuple[dict[str, Any], list[str]]:
    """Compare the environment of a resumption with the one in which the run was trained before.

    Parameters
    ----------
    recorded : dict
        Content of ``environment.json``: the first environment, and in a list what changed with later ones. What an
        older version of codeq did not record is not compared.
    found : dict
        Environment of the resumption, by `describe_environment`.
    epoch : int
        Epoch that it resumes in.

    Returns
    -------
    tuple of dict and list of str
        New content of the file, and each change as text.

    Examples
    --------
    >>> first = {"gpu": "A100", "versions": {"torch": "2.9"}}
    >>> content, changes = with_resumption(first, {"gpu": "H100", "versions": {"torch": "2.9"}}, 7)
    >>> changes, content["resumed_with"]
    (['gpu A100 -> H100'], [{'epoch': 7, 'gpu': 'H100'}])
    """
    later = recorded.get(RESUMED, [])
    before, now = environments(recorded)[-1], _compared(found)
    changed = {key: now[key] for key, value in before.items() if key in now and now[key] != value}
    texts = [f"{key} {_text(before[key])} -> {_text(value)}" for key, value in changed.items()]
    return (recorded | {RESUMED: [*later, {"epoch": epoch, **changed}]} if changed else recorded), texts


def environments(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the environments that a run was trained in, one after the other, from the content of its file.

    Each has the keys of the machine and a key for the version of each package.

    Examples
    --------
    >>> later = [{"epoch": 7, "gpu": "H100"}]
    >>> [one["gpu"] for one in environments({"gpu": "A100", "versions": {}, "resumed_with": later})]
    ['A100', 'H100']
    """
    found = [_compared(recorded)]
    for entry in recorded.get(RESUMED, []):
        found.append(found[-1] | {key: value for key, value in entry.items() if key in found[-1]})
    return found


def _compared(environment: dict[str, Any]) -> dict[str, Any]:
    return {key: environment[key] for key in MACHINE if key in environment} | environment.get("versions", {})


def _text(value: Any) -> str:
    return short_commits(str(value)) if value is not None else "none"


def short_commits(text: str) -> str:
    """Return `text` with the first digits of each commit alone; changes that were not committed stay said.

    Examples
    --------
    >>> short_commits("812eccdea11a01c04e1225befd8b07be1faee481-dirty, unknown")
    '812eccde-dirty, unknown'
    """
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{32}\b", r"\1", text)


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
