"""Byte-by-byte comparison of CPU trainings that are killed at random moments and resumed with an uninterrupted one.

    python benchmarks/bench_kills.py [--kills 50] [--writing 10] [--signal KILL]

Most kills come at a moment drawn uniformly over the training's time; `--writing` of them wait for a checkpoint that is
just being written. Every run is killed once and resumed until it is done.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _common import describe_machine

from codeq import Run
from codeq.runs.checkpoints import CheckpointName

SETTINGS = [
    "model=resnet20", "dataset=synthetic", "epochs=2", "batch_size=64", "device=cpu", "quantizer.name=deadzone",
    "optimizer.param_groups.dz.lr=0.01", "checkpoint_interval=2",
]  # fmt: skip


def start(folder: Path, config: Path) -> subprocess.Popen[bytes]:
    """Start the training in `folder`, or resume it if it was started before."""
    command = [sys.executable, "-m", "codeq", "train"]
    if (folder / "status.json").exists():
        command += ["--resume", str(folder)]
    else:
        command += ["--config", str(config), "--set", *SETTINGS, f"run_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def comparable_state(folder: Path) -> dict[str, bytes]:
    """Return the files and weights that are equal in two equal trainings."""
    run = Run.open(folder)
    assert run.status == "done", run
    files = {name: (folder / name).read_bytes() for name in ("metrics.csv", "layers.csv")}
    checkpoint: CheckpointName
    for checkpoint in ("last", "best"):
        state = run.load_model(checkpoint).state_dict()
        files |= {f"{checkpoint}/{name}": value.numpy().tobytes() for name, value in state.items()}
    return files


def writing(folder: Path) -> bool:
    """Return whether a checkpoint or its manifest is being written at this moment."""
    return any((folder / "checkpoints").glob(".*.tmp"))


def kill_once(folder: Path, config: Path, how: int, seconds: float, at_write: bool, random_: random.Random) -> str:
    """Start the training and kill it; return the place of the kill, or an empty string if it finished before."""
    process = start(folder, config)
    began = time.perf_counter()
    moment = random_.uniform(0, seconds)
    while process.poll() is None:
        late = time.perf_counter() - began >= moment
        if late and (not at_write or writing(folder)):
            process.send_signal(how)
            process.wait()
            return "in a checkpoint's write" if list((folder / "checkpoints").glob(".*.tmp")) else "elsewhere"
        time.sleep(0.0005)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--writing", type=int, default=10, help="kills that wait for a checkpoint's write")
    parser.add_argument("--signal", choices=("KILL", "TERM", "USR1"), default="KILL")
    options = parser.parse_args()
    how, random_ = signal.Signals[f"SIG{options.signal}"], random.Random(0)
    print(describe_machine())
    with TemporaryDirectory() as home:
        config = Path(home, "config.yaml")
        config.write_text("model: resnet20\n")
        began = time.perf_counter()
        start(Path(home, "whole"), config).wait()
        seconds = time.perf_counter() - began
        whole = comparable_state(Path(home, "whole"))
        print(f"uninterrupted: {seconds:.1f} s, {len(whole)} files and tensors to compare, torch {torch.__version__}")
        places: dict[str, int] = {}
        same = 0
        for k in range(options.kills):
            folder = Path(home, f"killed-{k}")
            place = kill_once(folder, config, how, seconds, k < options.writing, random_)
            while not place:  # it finished before the kill: try again
                folder = Path(home, f"killed-{k}-again-{random_.random()}")
                place = kill_once(folder, config, how, seconds, k < options.writing, random_)
            places[place] = places.get(place, 0) + 1
            tries = 0
            while start(folder, config).wait() != 0:
                tries += 1
                assert tries < 5, f"{folder} cannot be resumed"
            equal = comparable_state(folder) == whole
            same += equal
            print(f"kill {k + 1}: {place}; {'same bytes' if equal else 'DIFFERENT'}", flush=True)
        print(f"{same} of {options.kills} byte-identical after SIG{options.signal}; hit: {places}")


if __name__ == "__main__":
    main()
