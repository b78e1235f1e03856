"""CIFAR-10 and CIFAR-100 as torchvision downloads them."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.data.dataset import Dataset, Split, check_resident
from codeq.data.downloads import fetch
from codeq.data.images import resize

NATIVE_SIZE = 32


def load_cifar10(data_dir: Path | None, img_size: int | None) -> Dataset:
    """Load CIFAR-10, 50,000 + 10,000 images of 32×32 pixels, see `load_cifar`."""
    import torchvision  # takes longer to import than the rest of codeq

    return load_cifar("cifar10", torchvision.datasets.CIFAR10, data_dir, img_size)


def load_cifar100(data_dir: Path | None, img_size: int | None) -> Dataset:
    """Load CIFAR-100, 50,000 + 10,000 images of 32×32 pixels, see `load_cifar`."""
    import torchvision

    return load_cifar("cifar100", torchvision.datasets.CIFAR100, data_dir, img_size)


def load_cifar(name: str, source: Any, data_dir: Path | None, img_size: int | None) -> Dataset:
    """Load a CIFAR data set from `data_dir`; download it to there first and check its md5 if it is missing.

    Parameters
    ----------
    name : str
        Name of the data set.
    source : type
        ``torchvision.datasets.CIFAR10`` or ``CIFAR100``.
    data_dir : Path or None
        Folder of the archive and of its contents; default ``data`` in the project.
    img_size : int or None
        Images are resized to it (bilinear); `None` keeps their 32 pixels.

    Raises
    ------
    CodeqError
        If the data set is missing and cannot be downloaded, or is damaged.
    """
    size = img_size or NATIVE_SIZE
    check_resident(name, 60_000, size, size)
    folder = resolve(data_dir or "data")
    try:
        train, test = _read(source, folder)
    except RuntimeError:  # raised by torchvision if files are missing or their md5 differs
        _fetch(name, source, folder)
        try:
            train, test = _read(source, folder)
        except RuntimeError as error:
            unpacked = folder / source.base_folder
            raise CodeqError(f"dataset {name!r}: {unpacked} is damaged although just unpacked: {error}") from error
    return Dataset.from_splits(name, tuple(train.classes), _split(train, size), _split(test, size))


def _read(source: Any, folder: Path) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 warn about what NumPy of 2009 pickled.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align")
        return source(str(folder), train=True), source(str(folder), train=False)


def _split(part: Any, size: int) -> Split:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return Split(images if size == NATIVE_SIZE else resize(images, size), torch.tensor(part.targets))


def _fetch(name: str, source: Any, folder: Path) -> None:
    """Download the archive to `folder` unless it is there, and unpack it."""
    from torchvision.datasets.utils import extract_archive

    archive = folder / source.filename
    fetch(name, archive, [source.url], source.tgz_md5)
    try:
        # Elsewhere, then moved file by file: other processes may unpack the archive, or read its files, meanwhile.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacked-") as scratch:
            extract_archive(archive, scratch)
            for file in [path for path in Path(scratch).rglob("*") if path.is_file()]:
                target = folder / file.relative_to(scratch)
                target.parent.mkdir(exist_ok=True)
                file.replace(target)
    except (OSError, RuntimeError) as error:
        raise CodeqError(f"dataset {name!r}: {archive} cannot be unpacked: {error}") from error
