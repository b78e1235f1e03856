"""Share of a training loop outside of forward, backward, optimizer and proximal step: data, guards, sums, bars.

    python benchmarks/bench_loop.py [--batch 128] [--images 12800]

Times a real `run_experiment` from inside, on random CIFAR-sized images. [at most 3 % on the CPU]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _common import describe_machine, device

from codeq import DATASETS, ExperimentConfig, run_experiment, trainer
from codeq.data import Dataset, Split
from codeq.training.objective import Objective


def timed(owner: object, name: str, spent: dict[str, float], key: str) -> None:
    """Add the seconds of the function `name` of `owner` to `spent`, the device's work included."""
    real: Callable[..., Any] = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = real(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent[key] = spent.get(key, 0.0) + time.perf_counter() - start
        return result

    setattr(owner, name, method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=12_800)
    options = parser.parse_args()

    def load(*_: Any) -> Dataset:
        images = torch.randint(256, (options.images, 3, 32, 32), dtype=torch.uint8)
        train = Split(images, torch.randint(10, (options.images,)))
        return Dataset.from_splits("noise", tuple("0123456789"), train, Split(images[:1000], train.labels[:1000]))

    DATASETS["noise"] = load
    spent: dict[str, float] = {}
    timed(Objective, "backward", spent, "forward and backward")
    timed(Objective, "proximal_steps", spent, "proximal step")
    timed(torch.optim.AdamW, "step", spent, "optimizer")
    timed(trainer, "train_epoch", spent, "loop")
    with TemporaryDirectory() as home:
        term = {"name": "coupled_group_lasso", "lambda": 1.0, "step": "proximal"}
        run_experiment(
            ExperimentConfig(
                "loop", dataset="noise", epochs=1, batch_size=options.batch, exclude_layers=[], loss_terms=[term],
                run_dir=home, device=str(device()),
            )
        )  # fmt: skip
    loop = spent.pop("loop")
    print(describe_machine())
    for key, seconds in spent.items():
        print(f"{key:22} {seconds:7.2f} s  {seconds / loop:6.1%}")
    print(f"{'everything else':22} {loop - sum(spent.values()):7.2f} s  {1 - sum(spent.values()) / loop:6.1%} [3 %]")


if __name__ == "__main__":
    main()
