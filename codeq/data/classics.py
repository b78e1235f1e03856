"""MNIST, Fashion-MNIST and SVHN in their official files, from the addresses and with the checksums of torchvision."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.data.augmentation import Augmentation
from codeq.data.dataset import Dataset, Split, check_resident
from codeq.data.downloads import fetch
from codeq.data.images import resize

DEFAULT_SIZE = 32  # pixels, to which 28 are resized
DIGITS = tuple("0123456789")
UINT8 = b"\0\0\x08"  # start of an IDX file of bytes; the number of its axes and their lengths follow


def load_mnist(data_dir: Path | None, img_size: int | None) -> Dataset:
    """Load MNIST, 60,000 + 10,000 handwritten digits, see `load_idx`; a mirrored digit is not a digit."""
    from torchvision.datasets import MNIST  # takes longer to import than the rest of codeq

    return load_idx("mnist", MNIST, DIGITS, Augmentation(crop_padding=4, flip=False), data_dir, img_size)


def load_fashion_mnist(data_dir: Path | None, img_size: int | None) -> Dataset:
    """Load Fashion-MNIST, 60,000 + 10,000 pictures of clothes, see `load_idx`."""
    from torchvision.datasets import FashionMNIST

    classes = tuple(FashionMNIST.classes)
    return load_idx("fashion_mnist", FashionMNIST, classes, Augmentation(), data_dir, img_size)


def load_idx(
    name: str, source: Any, classes: tuple[str, ...], augment: Augmentation, data_dir: Path | None, img_size: int | None
) -> Dataset:
    """Load a data set of IDX files from ``<data_dir>/<class of torchvision>/raw``; download what is missing.

    The grey images of 28×28 pixels are resized bilinearly to `img_size` (default 32; 28 keeps the pixels) and repeated
    on three channels.

    Parameters
    ----------
    name, source : str, type
        Name of the data set, and ``torchvision.datasets.MNIST`` or one derived from it.
    classes : tuple of str
        Names of the classes.
    augment : Augmentation
        Augmentation of training images.
    data_dir : Path or None
        Default ``data`` in the project.
    img_size : int or None
        Height and width, in pixels.

    Raises
    ------
    CodeqError
        If a file is missing and cannot be downloaded, or is damaged.
    """
    size = img_size or DEFAULT_SIZE
    check_resident(name, 70_000, size, size)
    folder = resolve(data_dir or "data") / source.__name__ / "raw"
    arrays = []
    for file, md5 in source.resources:
        fetch(name, folder / file, [mirror + file for mirror in source.mirrors], md5)
        arrays.append(_read_idx(folder / file))
    images, labels = arrays[::2], arrays[1::2]
    train, test = (_grey_split(x, y, size) for x, y in zip(images, labels, strict=True))
    return Dataset.from_splits(name, classes, train, test, augment)


def _read_idx(path: Path) -> Tensor:
    """Return the array of bytes in a gzipped IDX file."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != UINT8:
        raise CodeqError(f"{path} is not an IDX file of bytes")
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def _grey_split(images: Tensor, labels: Tensor, size: int) -> Split:
    grey = images.unsqueeze(1)
    grey = grey if images.shape[-1] == size else resize(grey, size)
    return Split(grey.expand(-1, 3, -1, -1), labels.long())


def load_svhn(data_dir: Path | None, img_size: int | None) -> Dataset:
    """Load SVHN, 73,257 + 26,032 house numbers of 32×32 pixels without the extra images, from two files in `data_dir`.

    Raises
    ------
    CodeqError
        If a file is missing and cannot be downloaded, or is damaged.
    """
    from torchvision.datasets import SVHN

    size = img_size or DEFAULT_SIZE
    check_resident("svhn", 99_289, size, size)
    folder = resolve(data_dir or "data")

    def split(part: str) -> Split:
        url, file, md5 = SVHN.split_list[part]
        fetch("svhn", folder / file, [url], md5)
        data = SVHN(str(folder), part)
        images = torch.from_numpy(np.ascontiguousarray(data.data))
        return Split(images if images.shape[-1] == size else resize(images, size), torch.from_numpy(data.labels))

    augment = Augmentation(crop_padding=4, flip=False)
    return Dataset.from_splits("svhn", DIGITS, split("train"), split("test"), augment)
