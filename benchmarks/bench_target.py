"""Cost targets: relative BOPs reached over seeds, and their accuracy beside plain bisection over λ.

    python benchmarks/bench_target.py [--targets 0.03 0.06] [--seeds 3] [--epochs 20] [--bisections 0]

ResNet-20 on the handwritten digits at their own 8 × 8 pixels. [deviation at most 5 % in every run]
"""

from __future__ import annotations

import argparse
import math
import time
from tempfile import TemporaryDirectory
from typing import Any

from _common import describe_machine

from codeq import ExperimentConfig, Run, run_experiment


def train(folder: str, seed: int, epochs: int, **settings: Any) -> Run:
    config = ExperimentConfig(
        "target", dataset="digits", img_size=8, epochs=epochs, batch_size=32, device="cpu", seed=seed, run_dir=folder,
        exclude_layers=[], lr_dz=7e-3, lr_bit=7e-3, recalibrate_batchnorm=16, viz_interval=1000,
        **({"weight_decay_dz": 0.03, "weight_decay_bit": 0.02} | settings),
    )  # fmt: skip
    return run_experiment(config)


def report(kind: str, target: float, seed: int, run: Run, seconds: float) -> None:
    history = run.history
    reached = 1 / history["compression/unstructured_bops_ratio"]
    print(
        f"| {kind} | {target:.0%} | {seed} | {reached.iloc[-1]:.2%} | {reached.iloc[-1] / target:.3f} | "
        f"{reached.min() / target:.3f} | {history['eval/accuracy'].iloc[-1]:.2%} | {seconds:.0f} |",
        flush=True,
    )


def bisect(home: str, target: float, seed: int, epochs: int, steps: int) -> None:
    """Halve the interval of a common factor of λ, on a logarithmic scale, once a training."""
    low, high = math.log(1 / 30), math.log(30)
    for step in range(steps):
        began, factor = time.perf_counter(), math.exp((low + high) / 2)
        settings = {"weight_decay_dz": 0.03 * factor, "weight_decay_bit": 0.02 * factor}
        run = train(f"{home}/bisect-{target}-{seed}-{step}", seed, epochs, **settings)
        report(f"bisection {step + 1}, λ × {factor:.2f}", target, seed, run, time.perf_counter() - began)
        if 1 / run.summary["unstructured_bops_ratio"] > target:
            low = math.log(factor)
        else:
            high = math.log(factor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.03, 0.06])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--bisections", type=int, default=0, help="trainings of a bisection for seed 0 of each target")
    options = parser.parse_args()
    print(describe_machine())
    print("| | target | seed | reached | reached / target | lowest / target | accuracy | s |")
    print("|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as home:
        for target in options.targets:
            for seed in range(options.seeds):
                began = time.perf_counter()
                run = train(f"{home}/{target}-{seed}", seed, options.epochs, target={"relative_bops": target})
                report("steered", target, seed, run, time.perf_counter() - began)
            if options.bisections:
                bisect(home, target, 0, options.epochs, options.bisections)


if __name__ == "__main__":
    main()
