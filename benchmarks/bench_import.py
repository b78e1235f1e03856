"""Start-up of the command line, each command in fresh processes taken in turn, before and after a change.

python benchmarks/bench_import.py [CHECKOUT ...]

Each CHECKOUT is a folder with another version of codeq to compare with; its column is named after the folder.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import describe_machine

HERE = Path(__file__).resolve().parents[1]
ROUNDS = 5
RUNS, EPOCHS, LAYERS = 200, 300, 20
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import codeq": ["-c", "import codeq"],
    "from codeq import run_experiment": ["-c", "from codeq import run_experiment"],
    "codeq --help": ["-m", "codeq", "--help"],
    f"codeq runs, {RUNS} finished runs": ["-m", "codeq", "runs"],
    "codeq train, wrong configuration": ["-m", "codeq", "train", "--config", "wrong.yaml"],
}


def write_runs(home: Path) -> None:
    """Write the folders of finished runs of a ResNet-20, and a configuration with a mistake."""
    (home / "wrong.yaml").write_text("model: resnet20\ndataset: digits\nepoch: 3\n")
    ratios = [f"{a}_{b}_ratio" for a in ("structured", "unstructured") for b in ("bops", "mac")]
    keys = ["lr", "train/ce_loss", "train/accuracy", "eval/accuracy", "eval/loss", "sparsity/structured"]
    keys += ["sparsity/unstructured", "quantizer/mean_bits", *(f"compression/{ratio}" for ratio in ratios)]
    keys += [f"layers/layer{k}.conv/{name}" for k in range(LAYERS) for name in ("bitwidth", "structured_pruning")]
    table = [",".join(["epoch", *keys])]
    table += [",".join([str(epoch), *(f"{0.5 + k / 1000 + epoch / 1e6:.17g}" for k in range(len(keys)))])
              for epoch in range(EPOCHS)]  # fmt: skip
    summary = {"epochs": EPOCHS, "accuracy_last": 0.9, "accuracy_best": 0.91, "mean_bits": 4.0}
    summary |= {"structured_sparsity": 0.1, "unstructured_sparsity": 0.5} | dict.fromkeys(ratios, 12.0)
    for k in range(RUNS):
        run = home / "outputs" / f"run-{k:03d}"
        (run / "plots").mkdir(parents=True)
        (run / "config.yaml").write_text(f"name: run-{k}\nmodel: resnet20\ndataset: cifar10\nepochs: {EPOCHS}\n")
        (run / "metrics.csv").write_text("\n".join(table) + "\n")
        (run / "summary.json").write_text(json.dumps(summary))
        status = {"status": "done", "message": "", "started": f"2026-01-01T00:00:{k:03d}", "host": "x", "pid": 1}
        (run / "status.json").write_text(json.dumps(status))


def seconds(checkout: Path, arguments: list[str], home: Path) -> float:
    """Return how long a fresh interpreter takes for `arguments` with the codeq of `checkout`."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "CODEQ_HOME": str(home)}
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    checkouts = [*(Path(name).resolve() for name in sys.argv[1:]), HERE]
    print(describe_machine())
    print(f"| s, median of {ROUNDS} | {' | '.join(path.name for path in checkouts)} |")
    print(f"|---|{'---|' * len(checkouts)}")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_runs(home)
        for name, arguments in COMMANDS.items():
            rounds = [[seconds(path, arguments, home) for path in checkouts] for _ in range(ROUNDS)]
            medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
            print(f"| {name} | {' | '.join(f'{median:.2f}' for median in medians)} |", flush=True)


if __name__ == "__main__":
    main()
