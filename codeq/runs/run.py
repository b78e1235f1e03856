"""Run folders: created by the trainer, read by everything else, on this machine or another."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from codeq.common.atomic import write_atomically
from codeq.common.errors import CodeqError
from codeq.common.paths import make_folder, resolve, writing
from codeq.runs.checkpoints import CHECKPOINTS, CheckpointName, load_checkpoint
from codeq.runs.creation import copy_sources, new_run_folder, refuse_used_folder
from codeq.runs.folders import oldest_first, run_folders, runs_near
from codeq.runs.provenance import describe_environment, with_resumption
from codeq.runs.status import Status, current_message, current_status, read_status, write_status
from codeq.runs.tables import read_json, read_table, require_columns
from codeq.runs.tracking import STEERING, Tracker

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from matplotlib.figure import Figure
    from torch import nn

    from codeq.config import ExperimentConfig

ENVIRONMENT = "environment.json"


class Run:
    """Folder of one training: plain files that are read without the process that wrote them.

    `Run.open` opens an existing run in any state; the trainer makes new ones with `Run.create`.

    Parameters
    ----------
    folder : Path
        An existing run folder.

    Examples
    --------
    >>> import tempfile
    >>> from codeq import ExperimentConfig
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
    def create(cls, config: ExperimentConfig, precision: str = "float32", device: torch.device | None = None) -> Run:
        """Create the folder of a new run with its configuration and environment, in status ``running``.

        The folder belongs to this run alone, however many processes create runs at the same time. `precision` is the
        number format of the training, ``float32`` or ``bf16``, and `device` the one that it runs on; default: the CPU.

        Raises
        ------
        CodeqError
            If the chosen folder already holds a run or other files, is a file or cannot be written.
        """
        from codeq.config.yaml import dump_yaml  # takes a quarter of a second to import

        folder = resolve(config.run_dir) if config.run_dir else new_run_folder(config)
        refuse_used_folder(folder)
        make_folder(folder)
        with writing(folder):
            write_status(folder, "running", new=True)
            _write_environment(folder, describe_environment(config.seed, precision, device))
            copy_sources(config.imports, folder)
            write_atomically(folder / "config.yaml", dump_yaml(config.to_dict()).encode())
        return cls(folder)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open the run folder `path`; relative paths start at the project's folder.

        Raises
        ------
        CodeqError
            If there is no run in `path`.
        """
        folder = resolve(path)
        if not (folder / "config.yaml").is_file():
            raise CodeqError(f"{folder} holds no run (no config.yaml in it){runs_near(folder)}")
        return cls(folder)

    @classmethod
    def list(cls, root: str | os.PathLike[str] = "outputs") -> list[Run]:
        """Return all runs below `root`, oldest first."""
        return [cls(folder) for folder in oldest_first(run_folders(resolve(root)))]

    @property
    def config(self) -> ExperimentConfig:
        """Configuration of the run; what it imports must have been imported before, see `codeq.import_parts`."""
        from codeq.config import ExperimentConfig

        return ExperimentConfig.from_yaml(self.folder / "config.yaml", trusted=False)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, see `codeq.runs.checkpoints`."""
        return self.folder / CHECKPOINTS

    @property
    def environment(self) -> dict[str, Any]:
        """Commit, versions, hardware, seed and command at the start; ``resumed_with`` lists what changed later."""
        return read_json(self.folder / ENVIRONMENT)

    def record_resumption(self, precision: str, device: torch.device, epoch: int) -> Sequence[str]:
        """Record what differs now from the environment in which the run was trained before, and return it as text."""
        found = describe_environment(self.config.seed, precision, device)
        content, changes = with_resumption(self.environment, found, epoch)
        if changes:
            with writing(self.folder / ENVIRONMENT):
                _write_environment(self.folder, content)
        return changes

    @property
    def status(self) -> Status:
        """State of the run; ``died`` if it is recorded as ``running`` but its process on this machine is gone.

        That of another machine cannot be looked up: its run stays ``running`` until it has written nothing for a day,
        and `message` says so.
        """
        return cast(Status, current_status(self.folder, read_status(self.folder)))

    @property
    def message(self) -> str:
        """Reason of the state, or the machine on which the run is said to be running; empty if there is none."""
        return current_message(self.folder, read_status(self.folder))

    def set_status(self, status: Status, message: str = "") -> None:
        """Write ``status.json``."""
        write_status(self.folder, status, message)

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch (0-based) with the logged keys as columns; no rows before the first epoch ended."""
        return read_table(self.folder / "metrics.csv")

    @property
    def layers(self) -> pd.DataFrame:
        """One row per layer and epoch: bits, logits, density, dead filters, norms, null channels, MACs, BOPs.

        An epoch whose rows are still being written is left out.
        """
        path = self.folder / "layers.csv"
        table = read_table(path, text=["layer", "alive", "norms"])
        if not len(table):
            return table
        require_columns(path, table, ["layer"])
        counts = table["epoch"].value_counts()
        last = table["epoch"].iloc[-1]
        return table[table["epoch"] != last] if counts[last] < counts.max() else table

    @property
    def steering(self) -> pd.DataFrame:
        """One row per update of λ on the way to a cost target; no rows without a target."""
        return read_table(self.folder / STEERING)

    def last_layers(self) -> pd.DataFrame:
        """Return the rows of `layers` of the last epoch."""
        layers = self.layers
        return layers[layers["epoch"] == layers["epoch"].max()].reset_index(drop=True) if len(layers) else layers

    def liveness(self, epoch: int | None = None) -> dict[str, np.ndarray]:
        """Return the liveness of the filters of each layer after `epoch` (0-based; default the last).

        Returns
        -------
        dict of str to array of bool
            For each conv and linear layer `[c_out]`.

        Raises
        ------
        CodeqError
            If that epoch was not recorded, or the table is damaged.
        """
        from codeq.metrics.encoding import decode_mask

        layers = self.layers
        epochs = layers["epoch"].unique().tolist() if len(layers) else []
        epoch = epochs[-1] if epoch is None and epochs else epoch
        if epoch not in epochs:
            raise CodeqError(f"epoch={epoch}: {self.folder.name} has recorded {len(epochs)} epochs (0-based)")
        path = self.folder / "layers.csv"
        require_columns(path, layers, ["layer", "alive", "filters"])
        rows = layers[layers["epoch"] == epoch]
        try:
            columns = zip(rows["layer"], rows["alive"], rows["filters"], strict=True)
            return {layer: decode_mask(digits, count) for layer, digits, count in columns}
        except (ValueError, TypeError) as error:
            raise CodeqError(f"{path} is damaged: {error}") from error

    @property
    def summary(self) -> dict[str, Any]:
        """Figures of the finished run; a compression ratio of a network with nothing left is ``inf``.

        Raises
        ------
        CodeqError
            If the run has not finished, or the file is damaged.
        """
        path = self.folder / "summary.json"
        if not path.is_file():
            raise CodeqError(f"{self.folder} has no summary; its status is {self.status!r}. {self.message}".strip())
        stored = read_json(path)
        infinite = [key for key, value in stored.items() if value is None and key.endswith("_ratio")]
        return stored | dict.fromkeys(infinite, math.inf)  # JSON has no infinity

    @property
    def compression(self) -> pd.DataFrame:
        """MACs and BOPs of the finished run: one row per accounting, against the dense 32-bit network.

        ``×`` is baseline / compressed, ``%`` its inverse. Activations count with their bits, 32 where they are float.
        """
        import pandas as pd

        from codeq.metrics import compression_ratio

        summary = self.summary
        table = pd.DataFrame(index=["dense, 32 bit", "unstructured", "structured"])
        for unit, key in (("MACs", "macs"), ("BOPs", "bops")):
            names = [f"{accounting}_{key}" for accounting in ("baseline", "unstructured", "structured")]
            if missing := [name for name in names if not isinstance(summary.get(name), int | float)]:
                raise CodeqError(f"{self.folder / 'summary.json'} has no number {', '.join(missing)}")
            values = [summary[name] for name in names]
            table[unit] = values
            table[f"{unit} ×"] = [compression_ratio(values[0], value) for value in values]
            table[f"{unit} %"] = [100 * value / values[0] for value in values]
        return table

    def save_figure(self, name: str, figure: Figure) -> Path:
        """Save `figure` as ``plots/<name>.png`` in the run's folder and return the path."""
        return Tracker(self.folder).log_figure(name, figure)

    def load_model(self, checkpoint: CheckpointName | str = "last") -> nn.Module:
        """Return the trained model with its quantizers, in evaluation mode on the CPU.

        Parameters
        ----------
        checkpoint : {"last", "best"} or str
            Checkpoint of the last epoch, or of the one with the highest evaluation accuracy; or the name of a file that
            the manifest lists.

        Raises
        ------
        CodeqError
            If there is no intact checkpoint, or it does not fit the model that the configuration describes today.
        """
        from codeq.runs.networks import load_saved_network

        state, entry = load_checkpoint(self.checkpoints, checkpoint)
        path = self.checkpoints / entry.file
        if not {"model", "num_classes"} <= state.keys():
            raise CodeqError(f"{path} holds no model")
        return load_saved_network(self.config, state, path)


def _write_environment(folder: Path, content: dict[str, Any]) -> None:
    write_atomically(folder / ENVIRONMENT, (json.dumps(content, indent=1) + "\n").encode())
