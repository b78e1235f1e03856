"""Cost targets: relative BOPs reached over seeds, and accuracy beside a grid over λ and bisection over λ.

    python benchmarks/bench_target.py                                        # handwritten digits, on the CPU
    python benchmarks/bench_target.py --dataset imagefolder --data-dir DIR --device cuda --workers 6

ResNet-20, all layers quantized. Every training has the same settings, but for one factor of λ_dz and λ_bit:

steered
    `target: {relative_bops: …}`, for each target and seed.
grid
    The factors of `--factors`, seed 0.
bisection
    Seed 0, `--bisections` trainings one after the other, each at the middle of the interval of factors that is left,
    on a logarithmic scale: with all epochs each, and, for the compute of one steered training, with a part of them.

Results are stored after every training, as `results.json` and `results.md` in `--out`; started again with the same
settings, the script skips what is stored there. [deviation at most 5 % in every steered run]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _common import describe_machine

from codeq import ExperimentConfig, run_experiment
from codeq.data import DATASETS, load_dataset

# λ and the rates of θ suit the number of steps: a logit that falls from 3 to 0 needs some 1 / rate of them.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"img_size": 8, "epochs": 20, "batch_size": 32, "lr": 1e-3, "lr_dz": 7e-3, "lr_bit": 7e-3},
    "images": {"img_size": 32, "epochs": 12, "batch_size": 256, "lr": 4e-3, "lr_dz": 4e-3, "lr_bit": 4e-3},
}
LAMBDAS = {"weight_decay_dz": 0.03, "weight_decay_bit": 0.02}
LARGEST_FACTOR = 30.0  # of λ in the bisection, which begins with the interval [1/30, 30]
COLUMNS = ("kind", "target", "seed", "factor", "epochs", "reached", "lowest", "accuracy", "seconds")

Row = dict[str, Any]
Train = Callable[..., Row]


def start_worker(dataset: str, data_dir: str | None, img_size: int, log: str) -> None:
    """Send the output of this process to a file, and load the images once for all of its trainings."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    torch.set_num_threads(1)
    images = load_dataset(dataset, data_dir, img_size)
    DATASETS["images"] = lambda data_dir, img_size: images  # noqa: ARG005  (a loader's arguments)


def train(folder: str, settings: dict[str, Any]) -> Row:
    """Train once, in a worker, and return the relative BOPs and the accuracy."""
    began = time.perf_counter()
    run = run_experiment(
        ExperimentConfig(
            "target", dataset="images", run_dir=folder, exclude_layers=[], recalibrate_batchnorm=16, viz_interval=1000,
            cuda_graph=settings["device"] == "cuda", amp="auto", wandb_mode="disabled", **settings,
        )
    )  # fmt: skip
    relative = 1 / run.history["compression/unstructured_bops_ratio"]
    return {
        "reached": float(relative.iloc[-1]),
        "lowest": float(relative.min()),
        "accuracy": float(run.history["eval/accuracy"].iloc[-1]),
        "seconds": time.perf_counter() - began,
    }


def bisect(train_once: Train, target: float, steps: int, kind: str, **settings: Any) -> None:
    """Halve the interval of the factor, on a logarithmic scale, once a training."""
    low, high = -math.log(LARGEST_FACTOR), math.log(LARGEST_FACTOR)
    for step in range(steps):
        middle = (low + high) / 2
        row = train_once(f"{kind} {step + 1}", target=target, seed=0, factor=math.exp(middle), **settings)
        low, high = (middle, high) if row["reached"] > target else (low, middle)


class Results:
    """Rows by a key, stored as JSON and as a table after every training."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._settings = settings
        self._lock = threading.Lock()  # rows come from one thread per chain of trainings
        folder.mkdir(parents=True, exist_ok=True)
        stored = folder / "results.json"
        found = json.loads(stored.read_text()) if stored.exists() else {"settings": settings, "rows": {}}
        if found["settings"] != settings:
            sys.exit(f"{stored} has the settings {found['settings']}: choose another --out")
        self.rows: dict[str, Row] = found["rows"]

    def add(self, key: str, row: Row) -> None:
        """Add a row and store all of them."""
        with self._lock:
            self.rows[key] = row
            content = {"machine": describe_machine(), "settings": self._settings, "rows": self.rows}
            texts = {"results.json": json.dumps(content, indent=1), "results.md": "\n".join(self.tables())}
            for name, text in texts.items():
                part = self._folder / f"{name}.part"
                part.write_text(text)
                part.replace(self._folder / name)

    def tables(self) -> Iterator[str]:
        """Yield the lines of a table of all trainings, and of one with a row for each target."""
        yield "| training | target | seed | λ × | epochs | reached | ÷ target | lowest ÷ target | accuracy | s |"
        yield "|---" * 10 + "|"
        for row in sorted(self.rows.values(), key=lambda row: [str(row[c]) for c in ("kind", "target", "seed")]):
            target, factor = row["target"], row["factor"]
            cells = [row["kind"], f"{target:.0%}" if target else "", row["seed"], f"{factor:.2f}" if factor else ""]
            cells += [row["epochs"], f"{row['reached']:.2%}"]
            cells += [f"{row[c] / target:.3f}" if target else "" for c in ("reached", "lowest")]
            cells += [f"{row['accuracy']:.2%}", f"{row['seconds']:.0f}"]
            yield f"| {' | '.join(map(str, cells))} |"
        yield ""
        yield (
            "| target | steered: largest deviation | accuracy, mean ± std | grid at the same BOPs | "
            "bisection, the same compute: reached | accuracy | bisection, all epochs each: reached | accuracy |"
        )
        yield "|---" * 8 + "|"
        for target in sorted({row["target"] for row in self.rows.values() if row["target"]}):
            yield f"| {target:.0%} | {' | '.join(self._summary(target))} |"

    def _summary(self, target: float) -> Iterator[str]:
        steered = [row for row in self.rows.values() if row["kind"] == "steered" and row["target"] == target]
        accuracies = [row["accuracy"] for row in steered]
        if steered:
            yield f"{max(abs(row['reached'] / target - 1) for row in steered):.1%}"
            spread = f" ± {100 * np.std(accuracies, ddof=1):.2f}" if len(steered) > 1 else ""
            yield f"{100 * np.mean(accuracies):.2f}{spread} % (n = {len(steered)})"
        else:
            yield from ("", "")
        at_target = self._grid_accuracy(target)
        yield "outside of the grid" if at_target is None else f"{at_target:.2%}"
        for kind in ("short bisection", "bisection"):
            rows = [r for r in self.rows.values() if r["kind"].startswith(kind) and r["target"] == target]
            best = min(rows, key=lambda row: abs(row["reached"] / target - 1), default=None)
            yield from (f"{best['reached']:.2%} ({best['kind']})", f"{best['accuracy']:.2%}") if best else ("", "")

    def _grid_accuracy(self, target: float) -> float | None:
        """Interpolate the accuracy of the grid at a target, linearly in the logarithm of the BOPs."""
        points = sorted((row["reached"], row["accuracy"]) for row in self.rows.values() if row["kind"] == "grid")
        if not points or not points[0][0] <= target <= points[-1][0]:
            return None
        bops, accuracies = zip(*points, strict=True)
        return float(np.interp(math.log(target), np.log(np.maximum(bops, 1e-12)), accuracies))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.03, 0.06])
    parser.add_argument("--seeds", type=int, default=3, help="of each target")
    parser.add_argument("--factors", type=float, nargs="*", default=[0.03, 0.1, 0.3, 1.0], help="of λ, in the grid")
    parser.add_argument("--bisections", type=int, default=4, help="trainings of a bisection")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench-target"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    given = {key: getattr(options, key) for key in ("epochs", "img_size", "batch_size") if getattr(options, key)}
    settings = SETTINGS["digits" if options.dataset == "digits" else "images"] | given | {"device": options.device}
    results = Results(options.out, settings)
    context, log = multiprocessing.get_context("spawn"), str(options.out / "workers.log")
    loading = (options.dataset, options.data_dir, settings["img_size"], log)
    with TemporaryDirectory() as home, ProcessPoolExecutor(options.workers, context, start_worker, loading) as pool:

        def train_once(
            kind: str, *, seed: int, target: float | None = None, factor: float | None = None, epochs: int = 0
        ) -> Row:
            epochs = epochs or settings["epochs"]
            key = f"{kind}, target {target}, factor {factor}, seed {seed}, {epochs} epochs"
            if key not in results.rows:
                lambdas = {name: value * (factor or 1) for name, value in LAMBDAS.items()}
                aim = {} if factor else {"target": {"relative_bops": target}}
                varied = settings | lambdas | aim | {"seed": seed, "epochs": epochs}
                found = pool.submit(train, f"{home}/{key.replace(' ', '')}", varied).result()
                row = {"kind": kind, "target": target, "seed": seed, "factor": factor, "epochs": epochs} | found
                results.add(key, {column: row[column] for column in COLUMNS})
                print(f"{key}: {found['reached']:.2%}, {found['accuracy']:.2%}, {found['seconds']:.0f} s", flush=True)
            return results.rows[key]

        # The bisections first: their trainings wait for each other.
        jobs: list[Callable[[], object]] = []
        if options.bisections:
            part = max(settings["epochs"] // options.bisections, 1)
            for target in options.targets:
                jobs.append(partial(bisect, train_once, target, options.bisections, "bisection"))
                jobs.append(partial(bisect, train_once, target, options.bisections, "short bisection", epochs=part))
        jobs += [
            partial(train_once, "steered", target=t, seed=s) for s in range(options.seeds) for t in options.targets
        ]
        jobs += [partial(train_once, "grid", seed=0, factor=factor) for factor in options.factors]
        with ThreadPoolExecutor(len(jobs)) as threads:
            for job in [threads.submit(job) for job in jobs]:
                if error := job.exception():
                    print(f"failed: {error}", flush=True)
    print(describe_machine())
    print("\n".join(results.tables()))


if __name__ == "__main__":
    main()
