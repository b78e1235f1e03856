"""Any data set of image files with one folder a class.

Small images are decoded once into memory; large ones, and more than fit, are read from their files in every epoch.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from codeq.common.console import counter
from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.data.base import BaseDataset
from codeq.data.dataset import Augmentation, Dataset, Split, check_resident, fits_in_memory
from codeq.data.streamed import FileSplit, StreamedDataset
from codeq.data.views import decode

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TEST_FOLDERS = ("test", "val", "valid", "validation")
TEST_SHARE = 0.2
LARGEST_CROPPED = 64  # pixels; larger images need crops of differing sizes, a border of 4 means nothing to them
CHUNK = 64  # files a task of the thread pool; single ones cost as much to schedule as to decode

ClassFiles = dict[str, list[str]]


def load_imagefolder(data_dir: Path | None, img_size: int | None) -> BaseDataset:
    """Load a tree of image files with one folder a class.

    Either ``train`` and ``test`` (or ``val``, ``valid``, ``validation``) hold class folders, or `data_dir` itself does
    and is split 80 / 20 within each class, always in the same way. Labels count the class folders in sorted order.
    Images are converted to RGB.

    Parameters
    ----------
    data_dir : Path or None
        The tree; default ``data`` in the project.
    img_size : int or None
        Up to 64, and if all images then fit into memory: the shorter side is resized to it, the centre cut out, and
        the result kept. Beyond, a `StreamedDataset` of that size. `None` keeps images as they are, all of one size.

    Raises
    ------
    CodeqError
        For a tree that is not of this kind; for images that are kept also if a file is not an image, sizes differ, or
        images as they are do not fit into memory.
    """
    train, test = _find(resolve(data_dir or "data"))
    classes = tuple(train)
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


def _find(root: Path) -> tuple[ClassFiles, ClassFiles]:
    if not root.exists():
        raise CodeqError(f"data_dir={str(root)!r} does not exist")
    if not root.is_dir():
        raise CodeqError(f"data_dir={str(root)!r} is not a folder")
    tests = [root / name for name in TEST_FOLDERS if _subfolders(root / name)]
    # A folder `train` that holds images and no folders is a class of that name (CIFAR-100 has one).
    if not _subfolders(root / "train"):
        if tests:
            raise CodeqError(f"data_dir={str(root)!r} has {tests[0].name}/ but no train/ with class folders")
        return _split(_scan(root))
    if not tests:
        expected = ", ".join(f"{name}/" for name in TEST_FOLDERS)
        raise CodeqError(f"data_dir={str(root)!r} has train/ but no test split with class folders: one of {expected}")
    train, test = _scan(root / "train"), _scan(tests[0])
    if train.keys() != test.keys():
        only = [
            f"{name!r} is only in {train_or_test}"
            for name, train_or_test in (
                *((name, "train") for name in sorted(train.keys() - test.keys())),
                *((name, tests[0].name) for name in sorted(test.keys() - train.keys())),
            )
        ]
        raise CodeqError(f"data_dir={str(root)!r}: the splits differ in classes: {', '.join(only)}")
    return train, test


def _subfolders(folder: Path) -> list[str]:
    # Hidden ones are no classes: Jupyter leaves `.ipynb_checkpoints` wherever it was.
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".") if folder.is_dir() else []


def _scan(folder: Path) -> ClassFiles:
    names = _subfolders(folder)
    if len(names) < 2:
        found = f"only one class folder, {names[0]!r}" if names else "no class folders"
        raise CodeqError(f"{folder} holds {found}: expected a folder of images for each of at least two classes")
    files = {name: _image_files(folder / name) for name in names}
    for name, of_class in files.items():
        if not of_class:
            raise CodeqError(f"class folder {folder / name} holds no images ({', '.join(SUFFIXES)})")
    return files


def _image_files(folder: Path) -> list[str]:
    walk = os.walk(folder, followlinks=True)
    return sorted(os.path.join(at, name) for at, _, names in walk for name in names if name.lower().endswith(SUFFIXES))


def _split(files: ClassFiles) -> tuple[ClassFiles, ClassFiles]:
    # The legacy generator: its stream is frozen, so the split is the same under every version of NumPy.
    random = np.random.RandomState(0)
    train, test = {}, {}
    for name, of_class in files.items():
        if len(of_class) < 2:
            raise CodeqError(
                f"class folder {Path(of_class[0]).parent} holds one image: two are needed to split off a test set"
            )
        shuffled = random.permutation(len(of_class))
        held_out = max(1, round(TEST_SHARE * len(of_class)))
        test[name] = [of_class[i] for i in sorted(shuffled[:held_out])]
        train[name] = [of_class[i] for i in sorted(shuffled[held_out:])]
    return train, test


def _decode_all(paths: list[str], img_size: int | None, into: np.ndarray) -> None:
    """Decode `paths` into the uint8 array `into` `[N, 3, H, W]`."""
    height, width = into.shape[2:]

    def work(start: int) -> int:
        chunk = paths[start : start + CHUNK]
        for i, path in enumerate(chunk, start):
            image = decode(path)
            if img_size is not None:
                image = ImageOps.fit(image, (img_size, img_size), Image.Resampling.BILINEAR)
            if image.size != (width, height):
                found = f"{image.width}×{image.height} pixels and {paths[0]} {width}×{height}"
                raise CodeqError(f"{path} has {found}: set img_size to bring all images to one size")
            into[i] = np.asarray(image).transpose(2, 0, 1)
        return len(chunk)

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        counter(len(paths), "decoding images", "image") as bar,
    ):
        for done in pool.map(work, range(0, len(paths), CHUNK)):
            bar.update(done)
