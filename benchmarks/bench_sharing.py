"""Slowdown of two trainings that share the same cores, for two spin times of waiting OpenMP threads.

    python benchmarks/bench_sharing.py

The command line runs with ``GOMP_SPINCOUNT=1000``; without it GNU OpenMP spins for milliseconds.
"""

from __future__ import annotations

import os
import subprocess
import sys

from _common import describe_machine

STEPS = """
import time
import torch
import torch.nn.functional as F
from codeq.models import resnet20

model = resnet20().to(memory_format=torch.channels_last)
x, y = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last), torch.randint(10, (32,))
for _ in range(5):
    F.cross_entropy(model(x), y).backward()
start, steps = time.perf_counter(), 0
while time.perf_counter() - start < 10:
    F.cross_entropy(model(x), y).backward()
    steps += 1
print(1000 * (time.perf_counter() - start) / steps)
"""


def milliseconds(processes: int, settings: dict[str, str]) -> float:
    """Return the mean duration of a step with `processes` processes at once, in milliseconds."""
    command = [sys.executable, "-c", STEPS]
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | settings
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(processes)]
    return sum(float(process.communicate()[0]) for process in running) / processes


def main() -> None:
    print(describe_machine())
    print("| OpenMP | one process, ms a step | two processes, ms a step |\n|---|---|---|")
    for name, settings in (("default", {}), ("GOMP_SPINCOUNT=1000", {"GOMP_SPINCOUNT": "1000"})):
        print(f"| {name} | {milliseconds(1, settings):.0f} | {milliseconds(2, settings):.0f} |")


if __name__ == "__main__":
    main()
