"""Records a training as it happens: plain files in the run folder, and whoever else follows it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from codeq.common.errors import CodeqError
from codeq.runs.checkpoints import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


TABLES = ("metrics.csv", "layers.csv")


class Sink(Protocol):
    """Somewhere else that a training is followed, beside the files."""

    def log_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Take the row of one epoch."""

    def log_figure(self, name: str, figure: Figure, epoch: int) -> None:
        """Take a picture of the state after `epoch`."""

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Take the figures of the finished run."""


class Tracker:
    """Writes ``metrics.csv`` (a row an epoch), ``layers.csv`` (a row a layer and epoch), pictures and the summary.

    Parameters
    ----------
    folder : Path
        The run's folder, which exists.
    sinks : sequence of Sink
        Who gets everything, too, once it is in the files.

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

    def __init__(self, folder: Path, sinks: Sequence[Sink] = ()) -> None:
        self.folder = folder
        self.sinks = sinks

    def log_epoch(self, metrics: Mapping[str, Any], layers: pd.DataFrame) -> None:
        """Append one epoch: `metrics` with the key ``epoch``, and the table of its layers."""
        _append(self.folder / "metrics.csv", [dict(metrics)])
        rows = layers.assign(epoch=metrics["epoch"])[["epoch", *layers.columns]]
        _append(self.folder / "layers.csv", rows.to_dict("records"))
        for sink in self.sinks:
            sink.log_epoch(metrics)

    def log_figure(self, name: str, figure: Figure, epoch: int | None = None) -> Path:
        """Save `figure`, drawn after `epoch` if it is about one, as ``plots/<name>.png`` and return the path."""
        path = self.folder / "plots" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        if epoch is not None:
            for sink in self.sinks:
                sink.log_figure(name, figure, epoch)
        return path

    def sizes(self) -> dict[str, int]:
        """Return how long the tables are by now, in bytes; a checkpoint keeps it for `rewind`."""
        paths = [self.folder / name for name in TABLES]
        return {path.name: path.stat().st_size if path.exists() else 0 for path in paths}

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Cut the tables to the `sizes` they had, so that a resumed training appends where its checkpoint was.

        Raises
        ------
        CodeqError
            If a table is shorter than that: rows that the checkpoint knows of are lost.
        """
        for name, size in sizes.items():
            path = self.folder / name
            found = path.stat().st_size if path.exists() else 0
            if found < size:
                raise CodeqError(f"{path} has {found} bytes, its checkpoint knows of {size}: rows are lost")
            if size == 0:
                path.unlink(missing_ok=True)
            else:
                os.truncate(path, size)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, replacing an earlier one."""
        write_atomically(self.folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
        for sink in self.sinks:
            sink.log_summary(summary)


def _append(path: Path, rows: list[dict[Any, Any]]) -> None:
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())  # before the checkpoint that counts on these rows
