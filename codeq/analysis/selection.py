"""Labels of the runs of a selection."""

from __future__ import annotations

from collections.abc import Sequence

from codeq.runs import Run
from codeq.runs.references import require_runs


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Return a short unique label for each run: the name of its folder, with as many parent folders as needed.

    Examples
    --------
    >>> from pathlib import Path
    >>> run_labels([Run(Path("/x/seed0/resnet")), Run(Path("/x/seed1/resnet")), Run(Path("/x/mlp"))])
    ['seed0/resnet', 'seed1/resnet', 'x/mlp']
    """
    folders = [run.folder for run in require_runs(runs)]
    longest = max((len(folder.parts) for folder in folders), default=1)
    names = ["/".join(folder.parts[-depth:]) for depth in range(1, longest + 1) for folder in folders]
    tried = (names[k : k + len(folders)] for k in range(0, len(names), max(len(folders), 1)))
    return next((labels for labels in tried if len(set(labels)) == len(labels)), [str(folder) for folder in folders])
