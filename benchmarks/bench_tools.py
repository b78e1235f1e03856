"""Time of the tools on a run: `codeq plot`, `codeq compact`, and all cells of the notebook liveness_explorer.

python benchmarks/bench_tools.py RUN_FOLDER

CPU seconds are user and system time of the process and its children, which say more than the wall clock on a busy
machine. Limits on a quiet machine of two cores, for a ResNet-20: 8, 12 and 5 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import describe_machine


def measure(arguments: list[str]) -> tuple[float, float]:
    """Return the CPU and wall-clock seconds of `codeq` with these arguments."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "codeq", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.perf_counter() - began


def main() -> None:
    print(describe_machine())
    run = str(Path(sys.argv[1]).resolve())
    print("| command | CPU s | wall s |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        notebook = ["notebook", "liveness_explorer", "-p", "run", run, "--run-dir", str(Path(home, "executed"))]
        for name, arguments in (("plot", ["plot", run]), ("compact", ["compact", run]), ("explorer", notebook)):
            cpu, wall = measure(arguments)
            print(f"| {name} | {cpu:.1f} | {wall:.1f} |")


if __name__ == "__main__":
    main()
