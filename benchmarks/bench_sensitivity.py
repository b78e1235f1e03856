"""Time of the sensitivity scan of a ResNet-20 on digits: all layers, default grid and images of `scan_run`.

python benchmarks/bench_sensitivity.py [THREADS]

The complete scan is timed. For comparison, one complete forward pass per cell, as without `PrefixCache`, is timed on
some cells and extrapolated. Weights are initial ones: the time does not depend on them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from _common import describe_machine

from codeq import ExperimentConfig, attach_weight_quantizers
from codeq.analysis.scan import IMAGES
from codeq.analysis.sensitivity import BITS, DEAD_ZONES, sensitivity
from codeq.analysis.subset import evaluation_subset
from codeq.graph.baking import baked_copy
from codeq.models import resnet20

PASSES = 8


def seconds(fn: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of `fn()`."""
    wall, cpu = time.perf_counter(), time.process_time()
    fn()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(describe_machine())
    model = resnet20()
    attach_weight_quantizers(model, [], "deadzone", {"max_bits": 8})
    batches = evaluation_subset(ExperimentConfig("bench", dataset="digits", img_size=32), IMAGES)
    probe = baked_copy(model)
    cells = len(BITS) * len(DEAD_ZONES) * 20

    def passes() -> None:
        with torch.no_grad():
            for _ in range(PASSES):
                for x, _y in batches:
                    probe(x)

    passes()
    wall, cpu = (value * cells / PASSES for value in seconds(passes))
    print(f"| {IMAGES} images, {cells} cells | wall s | CPU s |\n|---|---|---|")
    print(f"| a complete pass per cell (from {PASSES} passes) | {wall:.1f} | {cpu:.1f} |")
    wall, cpu = seconds(lambda: sensitivity(model, batches))
    print(f"| `sensitivity` | {wall:.1f} | {cpu:.1f} |")


if __name__ == "__main__":
    main()
