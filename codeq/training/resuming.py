"""What a training must remember so that, killed at any moment and started again, it ends with the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.config import ExperimentConfig
from codeq.runs import Run
from codeq.runs.checkpoints import go_back_to, load_checkpoint, save_checkpoint
from codeq.runs.tracking import Tracker

# Keys that say where and how a training runs, not what it computes: a resumed one may change them.
FREE_KEYS = frozenset(
    {"device", "workers", "save_dir", "run_dir", "data_dir", "viz_interval", "checkpoint_interval", "use_compile"}
    | {"wandb_mode", "wandb_project", "tensorboard"}
)


@dataclass
class Progress:
    """Where a training stands between two batches.

    Parameters
    ----------
    losses : Tensor
        Sums over the images of this epoch of the parts of the loss.
    right : Tensor
        Images of this epoch whose class was predicted, `[]`.
    epoch : int
        0-based epoch that is due.
    batch : int
        Batches of it that are done.
    seconds : float
        Time spent so far, in earlier processes, too.
    collapsed : set of str
        Layers whose collapsed scale was told.
    """

    losses: Tensor
    right: Tensor
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    collapsed: set[str] = field(default_factory=set)

    def start_epoch(self, epoch: int) -> None:
        """Begin `epoch` with empty sums."""
        self.epoch, self.batch = epoch, 0
        self.losses.zero_()
        self.right.zero_()


class Memory:
    """Saves and restores everything that the rest of a training follows from.

    Parameters
    ----------
    run : Run
        Whose folder holds the checkpoints.
    tracker : Tracker
        Whose tables must end where the checkpoint was made.
    model : Module
        With its quantizers.
    optimizer : Optimizer
        With its state.
    num_classes : int
        Of the model.
    writes : bool
        Whether this process writes; of several that train together only one does.
    """

    def __init__(
        self,
        run: Run,
        tracker: Tracker,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        num_classes: int,
        writes: bool,
    ) -> None:
        self.run = run
        self.tracker = tracker
        self.model = model
        self.optimizer = optimizer
        self.num_classes = num_classes
        self.writes = writes

    def save(self, progress: Progress, *, step: int, accuracy: float | None) -> None:
        """Write a checkpoint; `accuracy` (fraction) is that of the epoch which ended, `None` in the middle of one."""
        if not self.writes:
            return
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        state = {
            "model": self.model.state_dict(),
            "num_classes": self.num_classes,
            "optimizer": self.optimizer.state_dict(),
            "epoch": progress.epoch,
            "batch": progress.batch,
            "losses": progress.losses,
            "right": progress.right,
            "seconds": progress.seconds,
            "collapsed": sorted(progress.collapsed),
            "random": {"cpu": torch.get_rng_state(), "cuda": gpus},
            "tables": self.tracker.sizes(),
            "config": _decisive(self.run.config),
        }
        epoch = progress.epoch - 1 if accuracy is not None else progress.epoch
        save_checkpoint(self.run.folder / "checkpoints", state, epoch=epoch, step=step, accuracy=accuracy)

    def restore(self, progress: Progress, checkpoint: str) -> None:
        """Take up the training where the checkpoint `checkpoint` left it.

        Raises
        ------
        CodeqError
            If there is no intact checkpoint, it belongs to another configuration, or rows of the tables are lost.
        """
        folder = self.run.folder / "checkpoints"
        state, entry = load_checkpoint(folder, checkpoint)
        _same_config(state["config"], _decisive(self.run.config), f"{folder / entry.file} was made by")
        if self.writes:
            self.tracker.rewind(state["tables"])
            go_back_to(folder, entry)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        progress.epoch, progress.batch = state["epoch"], state["batch"]
        progress.losses.copy_(state["losses"])
        # The writer saved what all counted together, so it alone goes on from that.
        progress.right.copy_(state["right"] * self.writes)
        progress.seconds, progress.collapsed = state["seconds"], set(state["collapsed"])
        torch.set_rng_state(state["random"]["cpu"])
        if len(state["random"]["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(state["random"]["cuda"])


def find_resumable(path: str | os.PathLike[str]) -> tuple[Run, str]:
    """Return the run in `path`, and which of its checkpoints to take: that of a ``.pt`` file, else the last.

    Relative paths start here, or else in the project's folder.

    Raises
    ------
    CodeqError
        If there is no run.
    """
    found = Path(path).absolute() if Path(path).exists() else resolve(path)
    if found.suffix == ".pt":
        return Run.open(found.parent.parent), found.name
    return Run.open(found), "last"


def check_resumable(run: Run, config: ExperimentConfig) -> None:
    """Raise a `CodeqError` if `run` cannot go on with `config`."""
    _same_config(_decisive(run.config), _decisive(config), f"{run.folder} was trained with")
    manifest = (run.folder / "checkpoints" / "manifest.json").exists()
    if not manifest and (run.folder / "metrics.csv").exists():
        raise CodeqError(f"{run.folder} has results but no checkpoints/manifest.json, so nothing tells where to go on")


@contextmanager
def sole_writer(run: Run) -> Iterator[None]:
    """Hold the run's lock: of two processes that train into one folder, the second is refused.

    Raises
    ------
    CodeqError
        If another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(run.folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CodeqError(f"{run.folder} is being trained by another process") from None
        except OSError:  # a file system without locks
            pass
        yield


def _decisive(config: ExperimentConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in FREE_KEYS}


def _same_config(stored: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    names = sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key))
    if names:
        pairs = "; ".join(f"{key}={stored.get(key)!r} instead of {wanted.get(key)!r}" for key in names)
        raise CodeqError(f"{what} {pairs}: a resumed run keeps its configuration")
