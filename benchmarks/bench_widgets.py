"""Time to redraw each widget of a ResNet-20 when a slider moves, at new and at cached positions.

python benchmarks/bench_widgets.py [RUN_FOLDER]

Without a folder, a run of two epochs on synthetic images is made first. Times are those in the kernel, from setting the
value to the finished PNG; limits are 500 ms for a new position and 200 ms for a cached one.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from _common import describe_machine, once_ms

from codeq import ExperimentConfig, Run, run_experiment
from codeq.widgets import LivenessExplorer, RunComparer, WhatIf

POSITIONS = 40


def trained_run(folder: Path) -> Run:
    settings: dict[str, Any] = {"dataset": "synthetic", "batch_size": 128, "epochs": 2, "exclude_layers": []}
    return run_experiment(ExperimentConfig("bench", run_dir=str(folder), device="cpu", **settings))


def line(name: str, move: Callable[[Any], None], positions: list[Any]) -> str:
    """Visit every position twice, first uncached and then cached, and return a table row of the times."""
    cold = [once_ms(lambda place=place: move(place)) for place in positions]
    cached = [once_ms(lambda place=place: move(place)) for place in positions]

    def quantiles(times: list[float]) -> str:
        return f"{statistics.median(times):.0f} / {np.quantile(times, 0.95):.0f}"

    return f"| {name} | {quantiles(cold)} | {quantiles(cached)} |"


def main() -> None:
    print(describe_machine())
    with tempfile.TemporaryDirectory() as home:
        run = Run.open(sys.argv[1]) if len(sys.argv) > 1 else trained_run(Path(home, "bench"))
        explorer, what_if = LivenessExplorer(run), WhatIf(run)
        layers = list(islice(cycle(explorer.layer.options), POSITIONS))
        thresholds = [round(k / POSITIONS, 2) for k in range(1, POSITIONS + 1)]

        def explore(place: tuple[str, float]) -> None:
            explorer.layer.value, explorer.threshold.value = place

        twins = []
        for k in range(6):
            shutil.copytree(run.folder, Path(home, f"twin{k}"))
            twins.append(Run.open(Path(home, f"twin{k}")))
        comparer, pairs = RunComparer(twins), [(0, 1), (0, 2), (0, 3), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5)]
        print("| slider | new position, p50 / p95 ms | cached position, p50 / p95 ms |\n|---|---|---|")
        # Two of its controls move at each place, so this is two redraws.
        print(line("LivenessExplorer: layer and threshold (two)", explore, list(zip(layers, thresholds, strict=True))))
        print(line("WhatIf: dead-zone", lambda zone: setattr(what_if.dead_zone, "value", zone), thresholds))
        print(line("WhatIf: bits", lambda bits: setattr(what_if.bits, "value", bits), [2, 3, 4, 5, 6, 7, 8]))
        print(line("RunComparer: selected", lambda chosen: setattr(comparer.selected, "value", chosen), pairs))


if __name__ == "__main__":
    main()
