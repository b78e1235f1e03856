"""Data sets of image files with one folder per class.

Small images are decoded once into memory; large ones, and more than fit, are read from their files in every epoch.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve, short_path
from codeq.common.progress import NOTICEABLE, announced, counter
from codeq.data.augmentation import Augmentation
from codeq.data.base import BaseDataset
from codeq.data.dataset import Dataset, Split, check_resident, fits_in_memory
from codeq.data.image_files import find_images
from codeq.data.streamed import FileSplit, StreamedDataset
from codeq.data.views import decode, printable

LARGEST_CROPPED = 64  # pixels; larger images need crops of varying size, a shift by 4 pixels hardly changes them
CHUNK = 64  # files per task of the thread pool; scheduling single ones takes as long as decoding them


def load_imagefolder(data_dir: Path | None, img_size: int | None) -> BaseDataset:
    """Load a tree of image files with one folder per class.

    Either ``train`` (or ``training``) and ``test`` (or ``testing``, ``val``, ``valid``, ``validation``), in capitals or
    not, hold class folders, or `data_dir` itself does and is split 80 / 20 within each class, always in the same way.
    Labels count the class folders in sorted order. Images are converted to RGB, as they are stored: like torchvision,
    this ignores the orientation in the EXIF data of photos, and transparency. Hidden files and folders are skipped;
    links are followed, and a file that several links lead to is read once.

    Parameters
    ----------
    data_dir : Path or None
        The tree; default ``data`` in the project.
    img_size : int or None
        Up to 64, and if all images then fit into memory: the shorter side is resized to it, the centre cropped, and
        the result kept. Beyond, a `StreamedDataset` of that size. `None` keeps images as they are, all of one size.

    Raises
    ------
    CodeqError
        For a tree of another structure, see `find_images`; for images that are kept in memory also if a file is not an
        image, sizes differ, or images in their own size do not fit into memory.
    """
    root = resolve(data_dir or "data")
    with announced(f"listing the images in {short_path(root)} ..."):
        train, test = find_images(root)
    classes = tuple(map(printable, train))
    paths = [path for files in (train, test) for of_class in files.values() for path in of_class]
    labels = [
        torch.arange(len(classes)).repeat_interleave(torch.tensor([len(f) for f in files.values()]))
        for files in (train, test)
    ]
    if img_size is None:
        width, height = decode(paths[0]).size
        check_resident(
            "imagefolder", len(paths), height, width, "Set img_size, and they are read from their files if need be"
        )
    elif img_size > LARGEST_CROPPED or not fits_in_memory(len(paths), img_size, img_size):
        splits = FileSplit.of(paths[: len(labels[0])], labels[0]), FileSplit.of(paths[len(labels[0]) :], labels[1])
        return StreamedDataset.from_files("imagefolder", classes, *splits, img_size)
    else:
        width = height = img_size
    images = torch.empty(len(paths), 3, height, width, dtype=torch.uint8)
    _decode_all(paths, img_size, images.numpy())
    train_images, test_images = images.split([len(part) for part in labels])
    augment = Augmentation(crop_padding=4 if max(height, width) <= LARGEST_CROPPED else 0)
    return Dataset.from_splits(
        "imagefolder", classes, Split(train_images, labels[0]), Split(test_images, labels[1]), augment
    )


def _decode_all(paths: list[str], img_size: int | None, into: np.ndarray) -> None:
    """Decode `paths` into the uint8 array `into` `[N, 3, H, W]`."""
    from PIL import Image, ImageOps

    height, width = into.shape[2:]

    def work(start: int) -> int:
        chunk = paths[start : start + CHUNK]
        for i, path in enumerate(chunk, start):
            image = decode(path)
            if img_size is not None:
                image = ImageOps.fit(image, (img_size, img_size), Image.Resampling.BILINEAR)
            if image.size != (width, height):
                found = f"{image.width}×{image.height} pixels and {printable(paths[0])} {width}×{height}"
                raise CodeqError(f"{printable(path)} has {found}: set img_size to bring all images to one size")
            into[i] = np.asarray(image).transpose(2, 0, 1)
        return len(chunk)

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        counter(len(paths), "decoding images", "image", NOTICEABLE) as bar,
    ):
        for done in pool.map(work, range(0, len(paths), CHUNK)):
            bar.update(done)
