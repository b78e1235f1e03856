"""Data sets that stay in memory as uint8 tensors, and their batches."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from codeq.common.errors import CodeqError
from codeq.data.augmentation import Augmentation, draw_epoch
from codeq.data.base import BaseDataset, Batch, Batches
from codeq.data.images import channel_statistics, crop_and_flip, cut_out, normalize, on_device
from codeq.data.randaugment import randaugment

RESIDENT_BUDGET = 10 * 2**30  # bytes of uint8 pixels, both splits together
GIB = 2**30


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Parameters
    ----------
    images : Tensor
        uint8 `[N, C, H, W]`.
    labels : Tensor
        int64 `[N]`, indices of classes.

    Raises
    ------
    CodeqError
        For other dtypes or shapes, and without images.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or 0 in self.images.shape:
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise CodeqError(
                f"images of a data set are {found}: must be torch.uint8 [N, C, H, W] without an empty axis"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise CodeqError(
                f"labels of {len(self.images)} images are {found}: must be torch.int64 [{len(self.images)}]"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Tensor) -> Split:
        """Return the images at the positions `index`, int64 `[n]`."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> Split:
        """Return the split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset(BaseDataset):
    """Classification data set in the memory of one device.

    Parameters
    ----------
    name, classes, mean, std
        As in `BaseDataset`.
    train, test : Split
        Images of one size and their labels.
    augment : Augmentation
        Augmentation of training images.

    Raises
    ------
    CodeqError
        If the parts do not fit together, or the augmentation not the images.

    Examples
    --------
    >>> from codeq.data import load_dataset
    >>> dataset = load_dataset("synthetic")
    >>> dataset.num_classes, dataset.input_size, len(dataset.train)
    (10, (3, 32, 32), 512)
    >>> [len(y) for x, y in dataset.train_batches(200, seed=0, epoch=0)]
    [200, 200, 112]
    """

    train: Split
    test: Split
    augment: Augmentation = field(default_factory=Augmentation)

    evaluation_batch: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            shapes = f"{list(self.train.images.shape[1:])} and {list(self.test.images.shape[1:])}"
            raise CodeqError(f"dataset {self.name!r}: training and test images differ in shape, {shapes}")
        channels = self.train.images.shape[1]
        if self.mean.shape != (channels,) or self.std.shape != (channels,):
            raise CodeqError(f"dataset {self.name!r}: mean and std must have one value for each of {channels} channels")
        for label in (int(f) for split in (self.train, self.test) for f in split.labels.aminmax()):
            if not 0 <= label < len(self.classes):
                raise CodeqError(f"dataset {self.name!r}: label {label} is none of its {len(self.classes)} classes")
        self._check_augmentation()

    def _check_augmentation(self) -> None:
        channels, *size = self.input_size
        cutout, randaugment = self.augment.cutout, self.augment.randaugment
        if cutout > min(size):
            raise CodeqError(f"cutout={cutout}: images of dataset {self.name!r} have {size[0]}×{size[1]} pixels")
        if randaugment and channels not in (1, 3):
            raise CodeqError(f"randaugment={randaugment}: images of dataset {self.name!r} have {channels} channels")

    @classmethod
    def from_splits(
        cls, name: str, classes: tuple[str, ...], train: Split, test: Split, augment: Augmentation | None = None
    ) -> Dataset:
        """Return a data set normalized by the statistics of its training images."""
        return cls(name, classes, train, test, *channel_statistics(train.images), augment or Augmentation())

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def augmented(self, *, cutout: int, randaugment: int, magnitude: int) -> Dataset:
        """Return the data set with these augmentations beside its own, of which they replace those of the same kind.

        Raises
        ------
        CodeqError
            For a square larger than the images, and for RandAugment on images that are neither grey nor RGB.
        """
        augment = dataclasses.replace(self.augment, cutout=cutout or self.augment.cutout)
        if randaugment:
            augment = dataclasses.replace(augment, randaugment=randaugment, magnitude=magnitude)
        return dataclasses.replace(self, augment=augment)

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on `device`."""
        mean, std = self.mean.to(device), self.std.to(device)
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device), mean=mean, std=std)

    def _train(self, parts: list[slice], seed: int, epoch: int) -> Batches:
        device = self.train.images.device
        plan = draw_epoch(len(self.train), self.augment, self.input_size[1:], seed, epoch)
        # RandAugment's choices stay on the CPU, which starts the operations.
        plan, choices = plan[: len(plan) - self.augment.randaugment], plan[len(plan) - self.augment.randaugment :]
        # A blocking copy would make the host wait for all steps that the GPU still has to do.
        plan = on_device(plan, device)
        return (self._train_batch(plan[:, part], choices[:, part]) for part in parts)

    def _train_batch(self, plan: Tensor, choices: Tensor) -> Batch:
        order, top, left, flip, *centre = plan
        images = crop_and_flip(self.train.images[order], top, left, flip.bool(), self.augment.crop_padding)
        images = normalize(randaugment(images, choices, self.augment.magnitude), self.mean, self.std)
        if centre:
            row, column = centre
            cut_out(images, row, column, self.augment.cutout)
        return images, self.train.labels[order]

    def _test(self, parts: list[slice]) -> Batches:
        images, labels = self.test.images, self.test.labels
        return ((normalize(images[part], self.mean, self.std), labels[part]) for part in parts)


def fits_in_memory(count: int, height: int, width: int) -> bool:
    """Return whether `count` RGB images of `height` × `width` pixels fit in the memory budget.

    Examples
    --------
    >>> fits_in_memory(60_000, 32, 32), fits_in_memory(1_281_167, 224, 224)
    (True, False)
    """
    return count * 3 * height * width <= RESIDENT_BUDGET


def check_resident(name: str, count: int, height: int, width: int, advice: str | None = None) -> None:
    """Raise a `CodeqError` if `count` RGB images of `height` × `width` pixels exceed the memory budget.

    The message ends with `advice`, by default the largest size that fits.
    """
    if not fits_in_memory(count, height, width):
        needed = count * 3 * height * width
        largest = math.isqrt(RESIDENT_BUDGET // (3 * count))
        raise CodeqError(
            f"dataset {name!r}: {count:,} images of 3×{height}×{width} pixels need {needed / GIB:.1f} GiB of memory, "
            f"the budget is {RESIDENT_BUDGET / GIB:.1f} GiB. {advice or f'Set img_size to {largest} or less'}"
        )
