"""Time of the comparison report of several small runs: figures of the first one, comparison, files and HTML page.

python benchmarks/bench_report.py [RUNS]

Makes RUNS (default 12) copies of a ResNet-20 that was trained for two epochs on 8 × 8 digits, with other seeds in their
configurations, and does what the notebook `compression_analysis` does with them: tables, figures as PNG and SVG, the
report. The start of the process is included, that of the notebook's kernel is not.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import describe_machine

from codeq import ExperimentConfig, run_experiment

COMPARE = """
import sys
from codeq import analysis
runs = analysis.find_runs(sys.argv[1])
figures = analysis.draw_figures(runs[0], compared=runs)
analysis.readable_summary(analysis.summary_table(runs))
for figure in figures.values():
    figure._repr_png_()
analysis.save_drawings(figures, runs[0].folder / "plots")
print(analysis.write_report(runs, runs[0].folder, drawings=figures).stat().st_size, "bytes,", len(figures), "figures")
"""


def main() -> None:
    """Print the time and the size of the report."""
    print(describe_machine())
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "runs")
        settings = {"dataset": "digits", "img_size": 8, "batch_size": 128, "epochs": 2, "exclude_layers": []}
        config = ExperimentConfig("bench", run_dir=str(folder / "seed=0"), device="cpu", **settings)
        first = run_experiment(config)
        text = (first.folder / "config.yaml").read_text()
        assert "\nseed: 0\n" in text
        for seed in range(1, count):
            copied = folder / f"seed={seed}"
            shutil.copytree(first.folder, copied)
            (copied / "config.yaml").write_text(text.replace("\nseed: 0\n", f"\nseed: {seed}\n"))
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", COMPARE, str(folder)], check=True)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        print(f"{count} runs compared in {wall:.1f} s, {cpu:.1f} s of CPU time")


if __name__ == "__main__":
    main()
