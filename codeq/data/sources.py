"""Registry of data sets, and the loaders of those that come with codeq."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from codeq.common.checks import at_least
from codeq.common.default_device import cpu_by_default
from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.common.registry import Registry
from codeq.data.augmentation import Augmentation
from codeq.data.base import BaseDataset
from codeq.data.cifar import load_cifar10, load_cifar100
from codeq.data.classics import DEFAULT_SIZE, DIGITS, load_fashion_mnist, load_mnist, load_svhn
from codeq.data.dataset import Dataset, Split, check_resident
from codeq.data.imagefolder import load_imagefolder
from codeq.data.images import resize
from codeq.data.streamed import StreamedDataset

Loader = Callable[[Path | None, int | None], BaseDataset]

DATASETS: Registry[Loader] = Registry("dataset")


@cpu_by_default()
def load_dataset(
    name: str, data_dir: str | os.PathLike[str] | None = None, img_size: int | None = None, workers: int = 2
) -> BaseDataset:
    """Load a data set into memory, or find its files if it is read from them in every epoch.

    Parameters
    ----------
    name : str
        A name in `DATASETS`.
    data_dir : path, optional
        Folder of its files, also for downloads; default ``data``. Relative paths start at the project.
    img_size : int, optional
        Height and width to resize the images to, in pixels; default: their original size.
    workers : int
        Number of worker processes for a data set that is not kept in memory; 0 reads in this process.

    Returns
    -------
    Dataset or StreamedDataset
        On the CPU.

    Raises
    ------
    CodeqError
        For an unknown name, an illegal `img_size` or `workers`, missing or damaged files, and images that exceed the
        memory budget.

    Examples
    --------
    >>> dataset = load_dataset("digits")
    >>> len(dataset.train), len(dataset.test), dataset.input_size
    (1437, 360, (3, 32, 32))
    >>> x, y = next(dataset.train_batches(128, seed=0, epoch=0))
    >>> x.shape, x.dtype, y.shape
    (torch.Size([128, 3, 32, 32]), torch.float32, torch.Size([128]))
    """
    loader = DATASETS[name]
    workers = at_least("workers", workers, 0)
    img_size = None if img_size is None else at_least("img_size", img_size, 1)
    dataset = loader(resolve("data" if data_dir is None else data_dir), img_size)
    if not isinstance(dataset, BaseDataset):
        raise CodeqError(
            f"dataset {name!r}: its loader returned a {type(dataset).__name__}, must be a codeq.data.Dataset or "
            "StreamedDataset"
        )
    return dataclasses.replace(dataset, workers=workers) if isinstance(dataset, StreamedDataset) else dataset


def known_num_classes(name: str) -> int | None:
    """Return the number of classes of a data set if it is known before loading, else `None`.

    It is the attribute ``num_classes`` of the loader, which user-defined loaders may set too.

    Raises
    ------
    CodeqError
        For a name that is not in `DATASETS`.

    Examples
    --------
    >>> known_num_classes("cifar100"), known_num_classes("imagefolder")
    (100, None)
    """
    return getattr(DATASETS[name], "num_classes", None)


def load_digits(data_dir: Path | None, img_size: int | None) -> Dataset:  # noqa: ARG001  (part of this package)
    """Load scikit-learn's 1797 handwritten digits, 8×8 pixels of 17 grey levels.

    They are resized bilinearly to `img_size` (default 32) and repeated on three channels, with a fixed stratified split
    into 1437 + 360, and never mirrored, because a mirrored digit is not a digit.

    ``digits.npz`` holds them in the order of the split, because importing scikit-learn takes two seconds. The source is
    the test set of E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning
    Repository, 1998, doi:10.24432/C50P49, CC BY 4.0.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        raw, labels = file["images"], torch.from_numpy(file["labels"]).long()
    size = img_size or DEFAULT_SIZE
    check_resident("digits", len(raw), size, size)
    colour = resize(torch.from_numpy(raw).double().unsqueeze(1) * (255 / 16), size).expand(-1, 3, -1, -1)
    return Dataset.from_splits(
        "digits",
        DIGITS,
        Split(colour[:1437], labels[:1437]),
        Split(colour[1437:], labels[1437:]),
        Augmentation(crop_padding=4, flip=False),
    )


def load_synthetic(data_dir: Path | None, img_size: int | None) -> Dataset:  # noqa: ARG001  (nothing is stored)
    """Generate 512 + 256 images of ten classes, each a smooth random pattern with noise; always the same images.

    For tests and benchmarks: learnable within one or two epochs, at any `img_size` (default 32).
    """
    size = img_size or DEFAULT_SIZE
    check_resident("synthetic", 768, size, size)
    generator = torch.Generator().manual_seed(0)
    patterns = resize(torch.rand(10, 3, 4, 4, generator=generator) * 255, size)

    def split(count: int) -> Split:
        labels = torch.arange(count) % 10
        images = torch.empty(count, 3, size, size, dtype=torch.uint8)
        for image, label in zip(images, labels, strict=True):
            noise = 40 * torch.randn(3, size, size, generator=generator)
            image.copy_((patterns[label] + noise).clamp_(0, 255))
        return Split(images, labels)

    return Dataset.from_splits("synthetic", DIGITS, split(512), split(256))


def _add(name: str, loader: Loader, num_classes: int) -> None:
    vars(loader)["num_classes"] = num_classes
    DATASETS[name] = loader


_add("cifar10", load_cifar10, 10)
_add("cifar100", load_cifar100, 100)
_add("mnist", load_mnist, 10)
_add("fashion_mnist", load_fashion_mnist, 10)
_add("svhn", load_svhn, 10)
_add("digits", load_digits, 10)
_add("synthetic", load_synthetic, 10)
DATASETS["imagefolder"] = load_imagefolder
