"""Image files of a tree with one folder per class: which of them belong to which class and split.

Hidden files and what operating systems leave in folders are skipped, links are followed, and no image counts twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from codeq.common.errors import CodeqError
from codeq.data.views import printable

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")  # the first that is there is used
# Left behind by macOS, Synology, Windows and Linux; hidden ones like `.ipynb_checkpoints` begin with a dot.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
TEST_SHARE = 0.2

ClassFiles = dict[str, list[str]]


def find_images(root: Path) -> tuple[ClassFiles, ClassFiles]:
    """Return the training and the test images of the tree at `root`: for every class, in sorted order, its files.

    Raises
    ------
    CodeqError
        For a tree without two splits of the same classes or at least two class folders, a class without images, a
        folder that cannot be read, a link to nothing, and a file in two classes or splits.
    """
    if not root.exists():
        raise CodeqError(f"data_dir={str(root)!r} does not exist")
    if not root.is_dir():
        raise CodeqError(f"data_dir={str(root)!r} is not a folder")
    train_folder, test_folder = _split_folder(root, TRAIN_FOLDERS), _split_folder(root, TEST_FOLDERS)
    if train_folder is None:
        if test_folder:
            raise CodeqError(f"data_dir={str(root)!r} has {test_folder.name}/ but no train/ with class folders")
        return _split(_scan(root))
    if test_folder is None:
        expected = ", ".join(f"{name}/" for name in TEST_FOLDERS)
        raise CodeqError(
            f"data_dir={str(root)!r} has {train_folder.name}/ but no test split with class folders: one of {expected}"
        )
    seen: dict[str, str] = {}
    train, test = _scan(train_folder, seen), _scan(test_folder, seen)
    if train.keys() != test.keys():
        only = [f"{printable(name)!r} is only in {train_folder.name}" for name in train if name not in test]
        only += [f"{printable(name)!r} is only in {test_folder.name}" for name in test if name not in train]
        raise CodeqError(f"data_dir={str(root)!r}: the splits differ in classes: {', '.join(only):.200}")
    return train, test


def _split_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first folder called one of `names`, in capitals or not, that holds folders.

    One that holds images alone is a class of that name (CIFAR-100 has a class `train`).
    """
    folders = [root / name for name in _subfolders(root)]
    for name in names:
        found = [folder for folder in folders if folder.name.lower() == name and _subfolders(folder)]
        if len(found) > 1:
            raise CodeqError(f"data_dir={str(root)!r} has both {found[0].name}/ and {found[1].name}/: remove one")
        if found:
            return found[0]
    return None


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """List a folder by name, links last, without what is hidden or the system's."""
    try:
        with os.scandir(folder) as found:
            entries = [e for e in found if e.name[0] != "." and e.name not in SYSTEM_FOLDERS]
    except OSError as error:
        raise CodeqError(f"folder {printable(str(folder))} cannot be read: {error.strerror}") from error
    return sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if os.path.isdir(entry) and not _is_loop(entry))


def _is_loop(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder is a link to a folder that contains it."""
    target, parent = os.path.realpath(entry), os.path.realpath(os.path.dirname(entry.path))
    return entry.is_symlink() and Path(parent).is_relative_to(target)


def _scan(folder: Path, seen: dict[str, str] | None = None) -> ClassFiles:
    """Return the images of each class folder; `seen` maps the real paths of other splits to those found there."""
    seen = {} if seen is None else seen
    names = _subfolders(folder)
    if len(names) < 2:
        found = f"only one class folder, {printable(names[0])!r}" if names else "no class folders"
        raise CodeqError(f"{folder} holds {found}: expected a folder of images for each of at least two classes")
    files: ClassFiles = {}
    others: list[str] = []
    for name in names:
        images: dict[str, str] = {}
        for real, path in _images(str(folder / name), set(), others):
            images.setdefault(real, path)  # a link to a file of the same class adds nothing
        if not images:
            raise CodeqError(f"class folder {printable(str(folder / name))} holds no images ({', '.join(SUFFIXES)})")
        if twice := images.keys() & seen.keys():
            real = min(twice)
            both = f"{printable(images[real])} and {printable(seen[real])}"
            raise CodeqError(f"{both} are one file in two classes or splits: remove a link")
        seen |= images
        files[name] = sorted(images.values())
    if others:
        logger.warning(
            "%s: %d files are not read, because their names end in none of %s; the first is %s",
            folder, len(others), ", ".join(SUFFIXES), printable(others[0]),
        )  # fmt: skip
    return files


def _images(folder: str, visited: set[str], others: list[str]) -> Iterator[tuple[str, str]]:
    """Yield ``(real path, path)`` of each image in and below `folder`, and add what is no image to `others`."""
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    for entry in _entries(folder):
        if os.path.isdir(entry):
            if _is_loop(entry):
                logger.warning("%s is not read: it is a link to a folder that contains it", printable(entry.path))
            else:
                yield from _images(entry.path, visited, others)
        elif not entry.name.lower().endswith(SUFFIXES):
            others.append(entry.path)
        elif os.path.isfile(entry):
            yield os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name), entry.path
        elif entry.is_symlink():
            target = printable(os.readlink(entry))
            raise CodeqError(f"{printable(entry.path)} is a link to {target}: no such file")


def _split(files: ClassFiles) -> tuple[ClassFiles, ClassFiles]:
    # The legacy generator: its stream is frozen, so the split is the same under every version of NumPy.
    random = np.random.RandomState(0)
    train, test = {}, {}
    for name, of_class in files.items():
        if len(of_class) < 2:
            folder = printable(str(Path(of_class[0]).parent))
            raise CodeqError(f"class folder {folder} holds one image: two are needed to split off a test set")
        shuffled = random.permutation(len(of_class))
        count = max(1, round(TEST_SHARE * len(of_class)))
        test[name] = [of_class[i] for i in sorted(shuffled[:count])]
        train[name] = [of_class[i] for i in sorted(shuffled[count:])]
    return train, test
