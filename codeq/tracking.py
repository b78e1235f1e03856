"""Records a training as it happens: plain files in the run folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeq.checkpoints import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Tracker:
    """Writes ``metrics.csv`` (a row an epoch), ``layers.csv`` (a row a layer and epoch), pictures and the summary.

    Parameters
    ----------
    folder : Path
        The run's folder, which exists.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Tracker(Path(folder)).log_epoch({"epoch": 0, "eval/accuracy": 0.5}, pd.DataFrame({"layer": ["conv1"]}))
    ...     print(Path(folder, "metrics.csv").read_text() + Path(folder, "layers.csv").read_text())
    epoch,eval/accuracy
    0,0.5
    epoch,layer
    0,conv1
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log_epoch(self, metrics: Mapping[str, Any], layers: pd.DataFrame) -> None:
        """Append one epoch: `metrics` with the key ``epoch``, and the table of its layers."""
        _append(self.folder / "metrics.csv", [dict(metrics)])
        rows = layers.assign(epoch=metrics["epoch"])[["epoch", *layers.columns]]
        _append(self.folder / "layers.csv", rows.to_dict("records"))

    def log_figure(self, name: str, figure: Figure) -> Path:
        """Save `figure` as ``plots/<name>.png`` and return the path."""
        path = self.folder / "plots" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        return path

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, replacing an earlier one."""
        write_atomically(self.folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())


def _append(path: Path, rows: list[dict[Any, Any]]) -> None:
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
