"""Studies with many members: all succeed, memory of the parent, overhead of papermill, time to collect the results.

    python benchmarks/bench_studies.py [--members 100] [--workers 4] [--pairs 3] [--runs 500]

The members train an MLP on synthetic images for one epoch, on the CPU. [100 of 100 done; memory of the parent flat;
papermill at most 5 s a member more than a direct call; 500 runs collected in at most 3 s]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _common import describe_machine

BASE = "model: mlp\ndataset: synthetic\nepochs: 1\ndevice: cpu\nviz_interval: 1000\nquantizer: {name: deadzone}\n"
COLLECT = "import sys, time; from codeq.studies import collect; began = time.perf_counter(); collect(sys.argv[1]); "
COLLECT += "print(time.perf_counter() - began)"


class Home:
    """Project folder with studies of the same base."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = os.environ | {"CODEQ_HOME": str(folder)}
        (folder / "base.yaml").write_text(BASE)

    def sweep(self, name: str, members: int, **executor: Any) -> tuple[float, list[tuple[int, int]]]:
        """Run a study, and return its seconds and, once a second, the finished members and the parent's bytes."""
        study = {"name": name, "base": str(self.folder / "base.yaml"), "seeds": list(range(members))}
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(study | {"executor": {"cpus_per_run": 1, **executor}}))
        began, seen = time.perf_counter(), []
        command = [sys.executable, "-m", "codeq", "sweep", str(path)]
        with open(self.folder / f"{name}.log", "w") as log:
            sweep = subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)
            while sweep.poll() is None:
                seen.append((self.done(name), resident_bytes(sweep.pid)))
                time.sleep(1)
        return time.perf_counter() - began, seen

    def done(self, name: str) -> int:
        """Return the number of members that are done."""
        return len(list((self.folder / "outputs" / name).glob("*/summary.json")))

    def collect(self, name: str) -> float:
        """Return the seconds that a new process takes to collect the results, without imports."""
        command = [sys.executable, "-c", COLLECT, str(self.folder / "outputs" / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=self._environment)
        return float(done.stdout)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if it has ended, or where the system has no ``/proc``."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3, help="studies of three members through each of both ways")
    parser.add_argument("--runs", type=int, default=500, help="to collect")
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    with TemporaryDirectory() as folder:
        home = Home(Path(folder))
        seconds, seen = home.sweep("many", options.members, workers=options.workers)
        done = home.done("many")
        print(f"{done} of {options.members} members done, {options.workers} at a time: {seconds:.0f} s", flush=True)
        for share in (0.1, 0.5, 0.9):
            at = next((found for count, found in seen if count >= share * options.members), 0)
            memory = f"{at / 1e6:.1f} MB" if at else "not known"
            print(f"memory of the parent with {share:.0%} done: {memory}", flush=True)
        print(f"{done} runs collected in {home.collect('many'):.2f} s", flush=True)
        overheads = []
        for pair in range(options.pairs):
            direct, papermill = (
                home.sweep(f"{via}{pair}", 3, workers=1, via=via)[0] for via in ("direct", "papermill")
            )
            overheads.append((papermill - direct) / 3)
            print(f"three members: direct {direct:.1f} s, papermill {papermill:.1f} s", flush=True)
        if overheads:
            print(f"overhead of papermill: {statistics.median(overheads):.1f} s a member", flush=True)
        outputs = home.folder / "outputs"
        runs = sorted(path.parent for path in outputs.glob("many/*/summary.json"))
        for number in range(options.runs):
            copy = outputs / "copies" / f"run{number}"
            shutil.copytree(runs[number % len(runs)], copy, ignore=shutil.ignore_patterns("checkpoints", "plots"))
        print(f"{options.runs} runs collected in {home.collect('copies/*'):.2f} s", flush=True)


if __name__ == "__main__":
    main()
