"""Time of the command-line tools on a run, and of all cells of the notebook liveness_explorer.

python benchmarks/bench_tools.py RUN_FOLDER [COMMAND ...]

Works on a copy of the run, a finished ResNet-20 with a checkpoint. CPU seconds are user and system time of the process
and its children, which say more than the wall clock on a busy machine; the load is that of the last minute. Wall-clock
limits on a quiet machine of two cores: plot 8 s, compact 12 s, first widget of the explorer 5 s from its first cell on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import nbformat
from _common import describe_machine

from codeq import Run


def measure(arguments: list[str]) -> tuple[float, float]:
    """Return the CPU and wall-clock seconds of `codeq` with these arguments."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "codeq", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, time.perf_counter() - began


def until_first_widget(executed: Path) -> float:
    """Return the seconds from the start of the first cell to the end of the one that shows the LivenessExplorer."""
    cells = [cell for cell in nbformat.read(executed, 4).cells if cell.cell_type == "code"]
    shown = next(cell for cell in cells if "LivenessExplorer(" in cell.source)
    began, ended = cells[0].metadata.papermill.start_time, shown.metadata.papermill.end_time
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


def main() -> None:
    if len(sys.argv) == 1:
        print("not measured: needs the folder of a run")
        return
    print(describe_machine())
    with tempfile.TemporaryDirectory() as home:
        run, executed = str(Path(home, "run")), Path(home, "executed")
        shutil.copytree(Path(sys.argv[1]), run)
        commands = {
            "--help": ["--help"],
            "runs": ["runs", run],
            "plot": ["plot", run],
            "compact": ["compact", run],
            "explain": ["explain", run, Run.open(run).layers["layer"].iloc[0], "0"],
            "export": ["export", run, "--to", "packed"],
            "calibrate": ["calibrate", run],
            "explorer": ["notebook", "liveness_explorer", "-p", "run", run, "--run-dir", str(executed)],
        }
        print("| command | CPU s | wall s | load |\n|---|---|---|---|")
        for name in sys.argv[2:] or commands:
            cpu, wall = measure(commands[name])
            print(f"| {name} | {cpu:.1f} | {wall:.1f} | {os.getloadavg()[0]:.1f} |", flush=True)
            if name == "explorer":
                print(f"| its first widget | | {until_first_widget(executed / 'liveness_explorer.ipynb'):.1f} | |")


if __name__ == "__main__":
    main()
