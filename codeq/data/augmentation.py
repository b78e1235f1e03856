"""Random augmentation of data sets in memory.

Order and augmentation of an epoch are functions of (seed, epoch) alone, drawn at once on the CPU: every device gets the
same batches, and a run resumed in the middle of an epoch gets the same ones as without the interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from codeq.common.checks import at_least
from codeq.common.default_device import cpu_by_default
from codeq.common.errors import CodeqError, quote
from codeq.data.base import epoch_generator
from codeq.data.randaugment import BINS, CHOICES


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training images, in this order.

    Parameters
    ----------
    crop_padding : int
        Width in pixels of the black border around an image, from which a random window of the image's size is cropped;
        0 for no crop.
    flip : bool
        Whether images are mirrored left to right with probability 1/2.
    randaugment : int
        Random operations per image, see `codeq.data.randaugment`; 0 for none.
    magnitude : int
        Strength of these operations, 0 … 30.
    cutout : int
        Side in pixels of a square at a random place that is filled with the mean colour; 0 for none.

    Raises
    ------
    CodeqError
        For values out of these ranges.
    """

    crop_padding: int = 4
    flip: bool = True
    randaugment: int = 0
    magnitude: int = 9
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "randaugment", "magnitude", "cutout"):
            object.__setattr__(self, name, at_least(name, getattr(self, name), 0))
        if self.magnitude > BINS:
            raise CodeqError(f"magnitude={self.magnitude}: must be at most {BINS}")
        if not isinstance(self.flip, bool):
            raise CodeqError(f"flip={quote(self.flip)}: must be true or false")


@cpu_by_default()
def draw_epoch(count: int, augment: Augmentation, size: Sequence[int], seed: int, epoch: int) -> Tensor:
    """Draw all random numbers of an epoch of `count` images of `size` (H, W), as one tensor: a single copy moves them.

    Returns
    -------
    Tensor
        int64 `[rows, count]` on the CPU, one column per position in the epoch. Rows: index of the image, top and left
        of its window (0 … ``2 * crop_padding``), whether it is mirrored (0 or 1); with `cutout` row and column of the
        centre of its square; a choice (0 … 27) for each operation of `randaugment`.

    Examples
    --------
    >>> draw_epoch(5, Augmentation(crop_padding=0, flip=False), (8, 8), seed=0, epoch=0).tolist()[1:]
    [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    """
    generator = epoch_generator(seed, epoch)
    rows = [torch.randperm(count, generator=generator)]
    rows += torch.randint(2 * augment.crop_padding + 1, (2, count), generator=generator)
    rows += torch.randint(1 + augment.flip, (1, count), generator=generator)
    if augment.cutout:
        rows += [torch.randint(length, (count,), generator=generator) for length in size]
    rows += torch.randint(CHOICES, (augment.randaugment, count), generator=generator)
    return torch.stack(rows)
