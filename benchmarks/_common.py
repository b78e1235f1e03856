"""Timing and description of the machine, shared by all benchmarks."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from codeq.common.timing import Times, time_in_turns


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_machine() -> dict[str, str | int]:
    """Return the hardware, versions, date and commit that measured times depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device().type == "cuda" else "cpu",
        "date": datetime.date.today().isoformat(),
        "commit": commit or "none",
    }


def wait_for_gpu() -> None:
    """Return when the GPU, NVIDIA's or Apple's, has done its work, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def once_ms(fn: Callable[[], object]) -> float:
    """Return the duration of one `fn()` in milliseconds, the GPU's work included."""
    wait_for_gpu()
    start = time.perf_counter()
    fn()
    wait_for_gpu()
    return (time.perf_counter() - start) * 1e3


def median_ms(fn: Callable[[], object], repeats: int = 50, warmup: int = 5) -> float:
    """Return the median duration of `fn()` in milliseconds, the GPU's work included."""
    for _ in range(warmup):
        fn()
    return statistics.median(once_ms(fn) for _ in range(repeats))


def paired(fn_a: Callable[[], object], fn_b: Callable[[], object], rounds: int = 30) -> dict[str, float]:
    """Time `fn_a` and `fn_b` alternately, A B B A …, so that other load on the machine affects both equally.

    Returns
    -------
    dict
        ``ratio``: median over the rounds of time B / time A; ``a_ms`` and ``b_ms``: the medians of each.
    """
    for fn in (fn_a, fn_b):
        fn()
    times = []
    for k in range(rounds):
        first, second = (fn_a, fn_b) if k % 2 == 0 else (fn_b, fn_a)
        one, two = once_ms(first), once_ms(second)
        times.append((one, two) if k % 2 == 0 else (two, one))
    return {
        "ratio": statistics.median(b / a for a, b in times),
        "a_ms": statistics.median(a for a, _ in times),
        "b_ms": statistics.median(b for _, b in times),
    }


def in_turns(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Time `calls` as `time_in_turns` does, `repeats` times, which gives at least three times as many rounds."""
    found = [time_in_turns(calls) for _ in range(repeats)]
    return {name: Times([turn for times in found for turn in times[name].rounds]) for name in calls}
