"""Base class of data sets, and the partition of their batches among the processes of a distributed training.

A global batch is divided into nearly equal consecutive parts, one for each process. Concatenated, the parts are the
batch of a training in a single process, image by image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from codeq.common.checks import at_least
from codeq.common.errors import CodeqError

Batch = tuple[Tensor, Tensor]
Batches = Generator[Batch, None, None]


class ImageSplit(Protocol):
    """Images and their labels, wherever the images are."""

    @property
    def labels(self) -> Tensor:
        """int64 `[N]`, indices of classes."""

    def __len__(self) -> int:
        """Return the number of images."""

    def subset(self, index: Tensor) -> Self:
        """Return the images at the positions `index`, int64 `[n]`."""


@dataclass(frozen=True, eq=False)
class BaseDataset(ABC):
    """Base class of classification data sets.

    Parameters
    ----------
    name : str
        Name in figures and error messages.
    classes : tuple of str
        Names; a label is an index into them.
    train, test : ImageSplit
        Images of each split and their labels.
    mean, std : Tensor
        float32 `[C]`, of pixel values in 0 … 1, for normalization. Batches come from their device.

    Examples
    --------
    Two processes get the two parts of each batch:

    >>> from codeq.data import load_dataset
    >>> dataset = load_dataset("synthetic")
    >>> _, labels = next(dataset.train_batches(5, seed=0, epoch=0))
    >>> parts = [next(dataset.train_batches(5, seed=0, epoch=0, rank=rank, world=2))[1] for rank in (0, 1)]
    >>> [len(part) for part in parts], bool((torch.cat(parts) == labels).all())
    ([2, 3], True)
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSplit
    test: ImageSplit
    mean: Tensor
    std: Tensor

    evaluation_batch: ClassVar[int]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Return the data set with its batches on `device`."""

    def augmented(self, *, cutout: int, randaugment: int, magnitude: int) -> Self:
        """Return the data set with further augmentations, or raise a `CodeqError` if it has none."""
        raise CodeqError(
            f"augmentation (cutout={cutout}, randaugment={randaugment}, magnitude={magnitude}): dataset {self.name!r} "
            "has no further augmentation, which is for data sets in memory alone"
        )

    def num_train_batches(self, batch_size: int) -> int:
        """Return the number of batches per epoch, the last and perhaps shorter one included."""
        return len(_cut(slice(0, len(self.train)), batch_size))

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Batches:
        """Return the shuffled, augmented, normalized batches `start`, `start + 1`, … of an epoch.

        Parameters
        ----------
        batch_size : int
            Images per batch, of all processes together; the last batch may be smaller.
        seed, epoch : int
            Both at least 0; they determine order and augmentation. The global random state is neither used nor changed.
        start : int
            Number of batches to skip, for resuming in the middle of an epoch.
        rank, world : int
            Index of this process and number of processes: part `rank` of `world` consecutive parts of each batch is
            returned. The sizes of the parts differ by at most one.

        Returns
        -------
        generator of (Tensor, Tensor)
            float32 `[B, C, H, W]` and int64 `[B]`, on the device of the data set. Call `close` on a generator that is
            not exhausted: it may have worker processes.

        Raises
        ------
        CodeqError
            For illegal numbers, and if the last batch has fewer images than there are processes.
        """
        rank, world = _checked_rank(rank, world)
        start = at_least("start", start, 0)
        batches = _cut(slice(0, len(self.train)), batch_size)
        smallest = batches[-1].stop - batches[-1].start
        if smallest < world:
            raise CodeqError(
                f"batch_size={batch_size}: the last batch has {smallest} of the {len(self.train)} training images, "
                f"fewer than {world} processes can share. Choose one that leaves at least {world}"
            )
        return self._train([_part(batch, rank, world) for batch in batches[start:]], seed, epoch)

    def first_images(self, batch_size: int, number: int, *, seed: int) -> list[Tensor]:
        """Return the images `[B, C, H, W]` of the first `number` training batches, or of all if there are fewer."""
        with closing(self.train_batches(batch_size, seed=seed, epoch=0)) as batches:
            return [images for images, _ in islice(batches, number)]

    def test_batches(self, batch_size: int | None = None, *, rank: int = 0, world: int = 1) -> EvaluationBatches:
        """Return the test images in order, normalized and not augmented, to be iterated any number of times.

        Parameters
        ----------
        batch_size : int, optional
            Images per batch, of this process; default `evaluation_batch`.
        rank, world : int
            Part `rank` of `world` consecutive parts of the test images is returned. Each image is in exactly one part.

        Raises
        ------
        CodeqError
            For illegal numbers, and if there are fewer images than processes.
        """
        rank, world = _checked_rank(rank, world)
        if len(self.test) < world:
            raise CodeqError(f"world={world}: dataset {self.name!r} has only {len(self.test)} test images")
        share = _part(slice(0, len(self.test)), rank, world)
        return EvaluationBatches(self, _cut(share, self.evaluation_batch if batch_size is None else batch_size))

    @abstractmethod
    def _train(self, parts: list[slice], seed: int, epoch: int) -> Batches:
        """Return a batch for each of `parts`, ranges of positions in the epoch."""

    @abstractmethod
    def _test(self, parts: list[slice]) -> Batches:
        """Return a batch for each of `parts`, ranges of test images."""


@dataclass(frozen=True, eq=False)
class EvaluationBatches:
    """Test batches in order; can be iterated any number of times.

    Parameters
    ----------
    dataset : BaseDataset
        Source of the batches.
    parts : list of slice
        The test images of each batch.
    """

    dataset: BaseDataset
    parts: list[slice]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Batches:
        return self.dataset._test(self.parts)


def mixed(seed: int, epoch: int, *more: int) -> np.random.SeedSequence:
    """Return the entropy of an epoch, or of a part of it that `more` identifies."""
    # Mixed rather than added: epochs of neighbouring seeds must differ.
    return np.random.SeedSequence((at_least("seed", seed, 0), at_least("epoch", epoch, 0), *more))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the random generator of an epoch.

    Examples
    --------
    >>> torch.randperm(4, generator=epoch_generator(seed=0, epoch=1)).tolist()
    [0, 2, 3, 1]
    """
    return torch.Generator().manual_seed(int(mixed(seed, epoch).generate_state(1, np.uint64)[0]))


def _checked_rank(rank: int, world: int) -> tuple[int, int]:
    """Return the index of a process and their number, or raise a `CodeqError`."""
    rank, world = at_least("rank", rank, 0), at_least("world", world, 1)
    if rank >= world:
        raise CodeqError(f"rank={rank}: must be less than world={world}")
    return rank, world


def _cut(images: slice, batch_size: int) -> list[slice]:
    step = at_least("batch_size", batch_size, 1)
    return [slice(first, min(first + step, images.stop)) for first in range(images.start, images.stop, step)]


def _part(images: slice, rank: int, world: int) -> slice:
    count = images.stop - images.start
    return slice(images.start + count * rank // world, images.start + count * (rank + 1) // world)
