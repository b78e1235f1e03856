"""Logging of a training to files of the run folder and to further sinks."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from codeq.common.atomic import write_atomically
from codeq.common.errors import CodeqError, quote
from codeq.common.paths import make_folder, writing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


STEERING = "steering.csv"
TABLES = ("metrics.csv", "layers.csv", STEERING)


class Sink(Protocol):
    """Destination of a training's log beside the files."""

    def log_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of one epoch."""

    def log_figure(self, name: str, figure: Figure, epoch: int) -> None:
        """Log a figure of the state after `epoch`."""

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Log the figures of the finished run."""


class Tracker:
    """Writer of ``metrics.csv`` (a row per epoch), ``layers.csv`` (a row per layer and epoch), figures and summary.

    A training with a cost target also has ``steering.csv``, a row per update of λ. What cannot be written, because the
    disk is full, is a `CodeqError` with the name of the file.

    Parameters
    ----------
    folder : Path
        The run's folder, which exists.
    sinks : sequence of Sink
        Further destinations, after the files.

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
        """Append the `metrics` of one epoch, which contain the key ``epoch``, and the table of its layers."""
        _append(self.folder / "metrics.csv", [dict(metrics)])
        rows = layers.assign(epoch=metrics["epoch"])[["epoch", *layers.columns]]
        _append(self.folder / "layers.csv", rows.to_dict("records"))
        for sink in self.sinks:
            sink.log_epoch(metrics)

    def log_steering(self, row: Mapping[str, float]) -> None:
        """Append an update of λ to ``steering.csv``."""
        _append(self.folder / STEERING, [dict(row)])

    def log_figure(self, name: str, figure: Figure, epoch: int | None = None) -> Path:
        """Save `figure` as ``plots/<name>.png`` and return the path; with an `epoch` the sinks log it, too.

        Raises
        ------
        CodeqError
            If `name` is no name of a file or `figure` no figure, and if it cannot be written.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]+", name) or name.lower().endswith(".png"):
            raise CodeqError(f"name={quote(name)}: must be the name of a file without its folder and without .png")
        if not hasattr(figure, "savefig"):
            raise CodeqError(f"figure={quote(figure)}: must be a Figure of matplotlib")
        path = make_folder(self.folder / "plots") / f"{name}.png"
        with writing(path):
            figure.savefig(path)
        if epoch is not None:
            for sink in self.sinks:
                sink.log_figure(name, figure, epoch)
        return path

    def sizes(self) -> dict[str, int]:
        """Return the sizes of the tables in bytes, which a checkpoint stores for `rewind`."""
        paths = [self.folder / name for name in TABLES]
        return {path.name: path.stat().st_size if path.exists() else 0 for path in paths}

    def check_rows(self, sizes: Mapping[str, int]) -> None:
        """Raise a `CodeqError` if a table is shorter than at the checkpoint with these `sizes`: rows are lost."""
        for name, size in sizes.items():
            path = self.folder / name
            found = path.stat().st_size if path.exists() else 0
            if found < size:
                raise CodeqError(f"{path} has {found} bytes, but {size} at its checkpoint: rows are lost")

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Truncate the tables to the `sizes` of a checkpoint, accepted by `check_rows`; a resumed training appends."""
        for name, size in sizes.items():
            if size == 0:
                (self.folder / name).unlink(missing_ok=True)
            else:
                os.truncate(self.folder / name, size)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, replacing an earlier one; numbers that are not finite become null, as in all JSON."""
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in summary.items()}
        path = self.folder / "summary.json"
        with writing(path):
            write_atomically(path, (json.dumps(finite, indent=1, allow_nan=False) + "\n").encode())
        for sink in self.sinks:
            sink.log_summary(finite)


def _append(path: Path, rows: list[dict[Any, Any]]) -> None:
    """Append rows to a table; one that an earlier version of codeq began keeps its columns."""
    with writing(path), open(path, "a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        columns = next(csv.reader(file), None)
        writer = csv.DictWriter(file, columns or list(rows[0]), extrasaction="ignore", lineterminator="\n")
        if not columns:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())  # before the checkpoint that stores the table's size
