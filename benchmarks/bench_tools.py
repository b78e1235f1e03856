"""Time of the command-line tools on a run, and of all cells of the notebook liveness_explorer.

python benchmarks/bench_tools.py RUN_FOLDER [COMMAND ...]

Works on a copy of the run, a finished ResNet-20 with a checkpoint. CPU seconds are user and system time of the process
and its children, which say more than the wall clock on a busy machine; the load is that of the last minute. Wall-clock
limits on a quiet machine of two cores: plot 8 s, compact 12 s, explorer 5 s.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import describe_machine

from codeq import Run


def measure(arguments: list[str]) -> tuple[float, float]:
    """Return the CPU and wall-clock seconds of `codeq` with these arguments."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "codeq", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.perf_counter() - began


def main() -> None:
    print(describe_machine())
    with tempfile.TemporaryDirectory() as home:
        run = str(Path(home, "run"))
        shutil.copytree(Path(sys.argv[1]), run)
        commands = {
            "--help": ["--help"],
            "runs": ["runs", run],
            "plot": ["plot", run],
            "compact": ["compact", run],
            "explain": ["explain", run, Run.open(run).layers["layer"].iloc[0], "0"],
            "export": ["export", run, "--to", "packed"],
            "calibrate": ["calibrate", run],
            "explorer": ["notebook", "liveness_explorer", "-p", "run", run, "--run-dir", str(Path(home, "executed"))],
        }
        print("| command | CPU s | wall s | load |\n|---|---|---|---|")
        for name in sys.argv[2:] or commands:
            cpu, wall = measure(commands[name])
            print(f"| {name} | {cpu:.1f} | {wall:.1f} | {os.getloadavg()[0]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
