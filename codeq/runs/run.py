"""The folder of one run: written by the trainer, read by everything after it, on this machine or another."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from codeq.common.errors import CodeqError
from codeq.common.paths import CHECKOUT, project_home, resolve
from codeq.config import ExperimentConfig
from codeq.evaluator import decode_mask
from codeq.metrics import compression_ratio
from codeq.models import build_model
from codeq.runs.checkpoints import CheckpointName, load_checkpoint, write_atomically
from codeq.runs.tracking import Tracker

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Status = Literal["running", "done", "failed", "diverged", "preempted", "died"]


class Run:
    """One training, as a folder of plain files.

    Open a finished (or running, or failed) one with `Run.open`; the trainer makes new ones with `Run.create`.

    Parameters
    ----------
    folder : Path
        An existing run folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     run = Run.create(ExperimentConfig(name="demo", run_dir=f"{home}/demo"))
    ...     print(run.status, Run.open(f"{home}/demo").config.model)
    running resnet20
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, status={self.status!r})"

    @classmethod
    def create(cls, config: ExperimentConfig) -> Run:
        """Make the folder of a new run, with its configuration and environment, in status ``running``.

        Raises
        ------
        CodeqError
            If the chosen folder already holds a run, or is no folder.
        """
        folder = _folder_of(config)
        refuse_used_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config.to_yaml(folder / "config.yaml")
        write_atomically(folder / "environment.json", (json.dumps(_environment(config), indent=1) + "\n").encode())
        run = cls(folder)
        run.set_status("running")
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open the run folder `path` (relative paths start at the project's folder).

        Raises
        ------
        CodeqError
            If there is no run in `path`.
        """
        folder = resolve(path)
        if not (folder / "config.yaml").is_file():
            near = sorted(p.parent.name for p in folder.parent.glob("*/config.yaml"))[-5:]
            hint = f"; runs beside it: {', '.join(near)}" if near else ""
            raise CodeqError(f"{folder} holds no run (no config.yaml in it){hint}")
        return cls(folder)

    @classmethod
    def list(cls, root: str | os.PathLike[str] = "outputs") -> list[Run]:
        """Return all runs below `root`, oldest first."""
        folders = [path.parent for path in resolve(root).rglob("config.yaml") if (path.parent / "status.json").exists()]
        return sorted(map(cls, folders), key=lambda run: (run._status_file()["started"], run.folder.name))

    @property
    def config(self) -> ExperimentConfig:
        """What the run was asked to do."""
        return ExperimentConfig.from_yaml(self.folder / "config.yaml")

    @property
    def environment(self) -> dict[str, Any]:
        """Where the run began: commit, versions, hardware, seed, command."""
        return json.loads((self.folder / "environment.json").read_text())

    @property
    def status(self) -> Status:
        """How the run stands; ``died`` if it says ``running`` but its process on this machine is gone."""
        stored = self._status_file()
        here = stored["host"] == socket.gethostname()
        if stored["status"] == "running" and here and not _alive(stored["pid"]):
            return "died"
        return stored["status"]

    @property
    def message(self) -> str:
        """Why the run ended as it did; empty if there is nothing to say."""
        return self._status_file()["message"]

    def set_status(self, status: Status, message: str = "") -> None:
        """Write ``status.json``."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        started = self._status_file()["started"] if (self.folder / "status.json").exists() else now
        stored = {"status": status, "message": message, "started": started, "updated": now}
        stored |= {"host": socket.gethostname(), "pid": os.getpid()}
        write_atomically(self.folder / "status.json", (json.dumps(stored, indent=1) + "\n").encode())

    def _status_file(self) -> dict[str, Any]:
        path = self.folder / "status.json"
        try:
            return json.loads(path.read_text())
        except ValueError:
            return {"status": "died", "message": f"{path} is damaged", "started": "", "host": "", "pid": 0}

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch (0-based), the logged keys as columns; no rows before the first epoch ended."""
        return _read_table(self.folder / "metrics.csv")

    @property
    def layers(self) -> pd.DataFrame:
        """A row a layer and epoch: bits, logits, density, dead filters, null channels, MACs and BOPs."""
        return _read_table(self.folder / "layers.csv", text=["layer", "alive"])

    def last_layers(self) -> pd.DataFrame:
        """Return the rows of `layers` of the last epoch."""
        layers = self.layers
        return layers[layers["epoch"] == layers["epoch"].max()].reset_index(drop=True) if len(layers) else layers

    def liveness(self, epoch: int | None = None) -> dict[str, np.ndarray]:
        """Return which filters of each layer were alive after `epoch` (0-based; default the last).

        Returns
        -------
        dict of str to array of bool
            For each conv and linear layer `[c_out]`.

        Raises
        ------
        CodeqError
            If nothing was recorded for that epoch.
        """
        layers = self.layers
        epochs = layers["epoch"].unique().tolist() if len(layers) else []
        epoch = epochs[-1] if epoch is None and epochs else epoch
        if epoch not in epochs:
            raise CodeqError(f"epoch={epoch}: {self.folder.name} has recorded {len(epochs)} epochs (0-based)")
        rows = layers[layers["epoch"] == epoch]
        columns = zip(rows["layer"], rows["alive"], rows["filters"], strict=True)
        return {layer: decode_mask(digits, count) for layer, digits, count in columns}

    @property
    def summary(self) -> dict[str, Any]:
        """The figures of the finished run.

        Raises
        ------
        CodeqError
            If the run has not finished.
        """
        path = self.folder / "summary.json"
        if not path.is_file():
            raise CodeqError(f"{self.folder} has no summary; its status is {self.status!r}. {self.message}".strip())
        return json.loads(path.read_text())

    @property
    def compression(self) -> pd.DataFrame:
        """What the finished run saves: a row for each accounting, MACs and BOPs against the dense 32-bit network.

        ``×`` is baseline / compressed, ``%`` its inverse. Activations count as 32 bits in all rows.
        """
        import pandas as pd

        summary = self.summary
        table = pd.DataFrame(index=["dense, 32 bit", "unstructured", "structured"])
        for unit, key in (("MACs", "macs"), ("BOPs", "bops")):
            values = [summary[f"{accounting}_{key}"] for accounting in ("baseline", "unstructured", "structured")]
            table[unit] = values
            table[f"{unit} ×"] = [compression_ratio(values[0], value) for value in values]
            table[f"{unit} %"] = [100 * value / values[0] for value in values]
        return table

    def save_figure(self, name: str, figure: Figure) -> Path:
        """Save `figure` as ``plots/<name>.png`` in the run's folder and return the path."""
        return Tracker(self.folder).log_figure(name, figure)

    def load_model(self, checkpoint: CheckpointName = "last") -> nn.Module:
        """Return the trained model with its quantizers, in evaluation mode on the CPU.

        Parameters
        ----------
        checkpoint : {"last", "best"}
            Checkpoint of the last epoch, or of the one with the highest evaluation accuracy.

        Raises
        ------
        CodeqError
            If there is no intact checkpoint.
        """
        state, _ = load_checkpoint(self.folder / "checkpoints", checkpoint)
        config = self.config
        model = build_model(
            config.model,
            state["num_classes"],
            config.model_kwargs,
            img_size=config.img_size,
            quantizer=config.quantizer,
        )
        model.load_state_dict(state["model"])
        return model.eval()


def refuse_used_folder(folder: Path) -> None:
    """Raise a `CodeqError` if a new run cannot go into `folder`, because it holds one or is a file."""
    if folder.exists() and not folder.is_dir():
        raise CodeqError(f"run_dir={str(folder)!r} is a file; choose a folder")
    if any((folder / name).exists() for name in ("status.json", "metrics.csv", "checkpoints")):
        raise CodeqError(f"run_dir={str(folder)!r} already holds a run; choose another folder or remove it")


def _folder_of(config: ExperimentConfig) -> Path:
    if config.run_dir:
        return resolve(config.run_dir)
    name = re.sub(r"[^\w.+-]+", "-", config.name)
    parent = resolve(config.save_dir) if config.save_dir else project_home() / "outputs" / name
    stem = f"{datetime.now():%Y%m%d-%H%M%S}_{name}"
    candidates: Iterator[Path] = (parent / (stem if k == 1 else f"{stem}-{k}") for k in range(1, 1000))
    return next(folder for folder in candidates if not folder.exists())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read_table(path: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    import pandas as pd  # a third of a second, which `import codeq` does not pay

    return pd.read_csv(path, dtype=dict.fromkeys(text, str)) if path.is_file() else pd.DataFrame()


def _environment(config: ExperimentConfig) -> dict[str, Any]:
    packages = ("codeq", "torch", "torchvision", "numpy", "pandas")
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "seed": config.seed,
        "command": sys.argv,
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout codeq runs from, marked ``-dirty`` if files have changed since; or `None`."""
    if not CHECKOUT:
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
