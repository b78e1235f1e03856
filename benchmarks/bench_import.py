"""How much `import codeq` costs on top of `import torch`, each in fresh processes taken in turn.

python benchmarks/bench_import.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from _common import describe_machine


def seconds(statement: str) -> float:
    """Return how long a fresh interpreter takes for `statement`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    statements = ("import torch", "import codeq")
    for statement in statements:
        seconds(statement)
    rounds = [[seconds(statement) for statement in statements] for _ in range(7)]
    torch_only, with_codeq = (statistics.median(column) for column in zip(*rounds, strict=True))
    extra = statistics.median(b - a for a, b in rounds)
    print(describe_machine())
    print("| statement | s |\n|---|---|")
    print(f"| import torch | {torch_only:.2f} |\n| import codeq | {with_codeq:.2f} |\n| difference | {extra:.2f} |")


if __name__ == "__main__":
    main()
