"""Services that log a run beside its files: Weights & Biases and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codeq.runs.sinks.base import RunSink
from codeq.runs.sinks.tensorboard_sink import TensorboardSink, check_tensorboard
from codeq.runs.sinks.wandb_mode import WandbMode, resolve_wandb_mode
from codeq.runs.sinks.wandb_sink import WandbSink


def open_sinks(
    folder: Path,
    *,
    project: str,
    name: str,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    wandb_mode: WandbMode,
    tensorboard: bool = False,
    first_epoch: int = 0,
) -> list[RunSink]:
    """Open the sinks of the run in `folder`; each must be closed when the run ends.

    Parameters
    ----------
    folder : Path
        The run's folder, which exists; logs of an earlier part of the run are continued.
    project, name : str
        Project and name of the run on W&B.
    config, environment : mapping
        Configuration and environment of the run, as plain values.
    wandb_mode : {"disabled", "offline", "online"}
        From `resolve_wandb_mode`.
    tensorboard : bool
        Whether to write event files for TensorBoard; `check_tensorboard` checks beforehand that it is installed.
    first_epoch : int
        Epoch from which a run is resumed (0-based).

    Raises
    ------
    CodeqError
        If `tensorboard` is true and TensorBoard is not installed.

    Examples
    --------
    >>> open_sinks(Path("run"), project="codeq", name="demo", config={}, environment={}, wandb_mode="disabled")
    []
    """
    sinks: list[RunSink] = []
    if tensorboard:
        sinks.append(TensorboardSink(folder, first_epoch))
    if wandb_mode != "disabled":
        sinks.append(WandbSink(folder, project, name, config, environment, wandb_mode))
    return sinks


__all__ = [
    "open_sinks",
    "RunSink",
    "WandbMode",
    "resolve_wandb_mode",
    "WandbSink",
    "TensorboardSink",
    "check_tensorboard",
]
