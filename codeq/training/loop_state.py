"""State of the training loop: its position, its sums over the epoch so far, and its elapsed time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from codeq.training.objective import LossParts


class Stopwatch:
    """Elapsed time of a training in seconds, earlier processes included.

    Examples
    --------
    >>> stopwatch = Stopwatch()
    >>> stopwatch.start(after=60.0)
    >>> stopwatch.seconds >= 60.0
    True
    """

    def __init__(self) -> None:
        self.start(after=0.0)

    def start(self, after: float) -> None:
        """Start, with `after` seconds elapsed before."""
        self._began = time.perf_counter() - after

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._began


@dataclass
class LoopState:
    """Position of a training between two batches, and its sums over the epoch so far.

    Parameters
    ----------
    losses : LossParts
        Sums over the images of this epoch of the parts of the loss.
    num_correct : Tensor
        Correctly classified images of this epoch, of this process, `[]`.
    epoch : int
        0-based epoch to train next.
    batch : int
        Batches of it that are done.
    batch_on_device : Tensor
        The same number, `[]`, for what runs on the device.
    stopwatch : Stopwatch
        Elapsed time.
    collapsed : set of str
        Layers whose collapsed scale was reported.
    """

    losses: LossParts
    num_correct: Tensor
    epoch: int = 0
    batch: int = 0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    collapsed: set[str] = field(default_factory=set)
    batch_on_device: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.batch_on_device = torch.zeros_like(self.num_correct)

    def start_epoch(self, epoch: int) -> None:
        """Begin `epoch` with empty sums."""
        self.epoch, self.batch = epoch, 0
        self.losses.values.zero_()
        self.num_correct.zero_()
