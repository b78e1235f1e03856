"""Data sets of users' images: arrays, tensors and any `torch.utils.data.Dataset`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from codeq.common.errors import CodeqError, quote
from codeq.common.progress import NOTICEABLE, counter
from codeq.data.augmentation import Augmentation
from codeq.data.dataset import Dataset, Split, check_resident
from codeq.data.images import resize
from codeq.data.sources import DATASETS
from codeq.data.validation import stratified_split
from codeq.data.views import has_wide_pixels

TEST_SHARE = 0.2  # of the images, where no test images are given
MAX_CHANNELS = 4


class Items(Protocol):
    """Images with labels by index, such as a `torch.utils.data.Dataset`."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> Any:
        """Return ``(image, label)``."""


Images: TypeAlias = tuple[Any, Any] | Items


def register_dataset(
    name: str,
    train: Images,
    test: Images | None = None,
    *,
    classes: Iterable[str] | None = None,
    augment: Augmentation | None = None,
) -> None:
    """Register images under a name for ``dataset:`` of configurations.

    They are read when the data set is first loaded, and then stay in memory as uint8: random transforms of a
    `torch.utils.data.Dataset` are drawn once, so augmentation is left to `augment`. With an image size (``img_size``,
    32 by default in a configuration) the central square of each image is resized to it.

    Parameters
    ----------
    name : str
        Name in `DATASETS`.
    train : tuple or Dataset
        ``(images, labels)``; or anything with a length whose items are ``(image, label)``, such as a
        `torch.utils.data.Dataset` and `torchvision.datasets.ImageFolder`. Images are NumPy arrays `[H, W]` or
        `[H, W, C]`, tensors `[C, H, W]`, or PIL images, with 1 to 4 channels; grey ones `[H, W]` are repeated on three.
        Values are uint8 0 … 255 or floats 0 … 1, which are rounded to uint8. Labels are integers 0 … K - 1, each of
        which occurs unless `classes` are given.
    test : tuple or Dataset, optional
        The same for the test images; their classes occur in `train` unless `classes` are given. By default a fifth of
        each class of `train`, always the same images.
    classes : iterable of str, optional
        Names of the classes; default: the attribute ``classes`` of `train`, else the numbers.
    augment : Augmentation, optional
        Augmentation of training images; default: none.

    Raises
    ------
    CodeqError
        For objects of another kind, also dictionaries of splits and an `IterableDataset`; when the data set is loaded,
        for images that cannot be read, and images and labels that do not fit together.

    Examples
    --------
    >>> from codeq.data import load_dataset
    >>> images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    >>> register_dataset("squares", (images, labels), classes=("even", "odd"))
    >>> dataset = load_dataset("squares", img_size=16)
    >>> dataset.input_size, len(dataset.train), len(dataset.test), dataset.classes
    ((3, 16, 16), 16, 4, ('even', 'odd'))
    """
    for what, part in [("train", train)] + ([] if test is None else [("test", test)]):
        if isinstance(part, list) and len(part) == 2 and any(not _is_pair(one) for one in part):
            raise CodeqError(f"dataset {quote(name)}: {what} is a list of two: must be the tuple (images, labels)")
        if not _is_readable(part):
            raise CodeqError(
                f"dataset {quote(name)}: {what} is a {type(part).__name__}, must be (images, labels) or have a length "
                "and items (image, label)"
            )
    if not isinstance(augment, Augmentation | None):
        raise CodeqError(
            f"dataset {quote(name)}: augment is a {type(augment).__name__}, must be a codeq.data.Augmentation"
        )
    names = _class_names(name, getattr(train, "classes", None) if classes is None else classes)

    @lru_cache(maxsize=1)
    def read(img_size: int | None) -> Dataset:
        whole = _read(name, train, img_size)
        if test is None:
            what = f"dataset {name!r}: {TEST_SHARE:.0%} of its {len(whole)} images"
            splits = stratified_split(whole, TEST_SHARE, seed=0, what=what)
        else:
            splits = whole, _read(name, test, img_size)
        found = torch.cat([split.labels for split in splits]).unique()
        count = 1 + int(found[-1])
        unseen = found[~torch.isin(found, splits[0].labels)]
        if not names and len(unseen):
            raise CodeqError(
                f"dataset {name!r}: no training image is of class {int(unseen[0])}, but test images are: number the "
                "classes of both alike, or name all of them by classes="
            )
        if not names and len(found) < count:
            missing = next(k for k in range(count) if k not in found)
            raise CodeqError(
                f"dataset {name!r} has labels up to {count - 1}, but no image of class {missing}: number the classes "
                "from 0 on without gaps, or name all of them by classes="
            )
        return Dataset.from_splits(
            name, names or tuple(map(str, range(count))), *splits, augment or Augmentation(crop_padding=0, flip=False)
        )

    def load(data_dir: Path | None, img_size: int | None) -> Dataset:  # noqa: ARG001  (nothing is read from a folder)
        return read(img_size)

    if names:
        vars(load)["num_classes"] = len(names)
    DATASETS[name] = load


def _is_readable(images: Images) -> bool:
    if isinstance(images, tuple):
        return len(images) == 2 and all(hasattr(part, "__len__") for part in images)
    by_index = not isinstance(images, Mapping | str | IterableDataset)  # these have both methods, but no item 0
    return by_index and hasattr(images, "__len__") and hasattr(images, "__getitem__")


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2


def _class_names(name: str, classes: Any) -> tuple[str, ...]:
    """Return the names in `classes`, which may be an array; none if it is `None`."""
    if isinstance(classes, str) or not isinstance(classes, Iterable | None):
        raise CodeqError(f"dataset {quote(name)}: classes={quote(classes)}: must be the names of all classes")
    return tuple(map(str, () if classes is None else classes))


def _read(name: str, given: Images, img_size: int | None) -> Split:
    """Return all images of one split, of one size."""
    count, item = _items(name, given)
    images = torch.empty(0)
    labels = torch.empty(count, dtype=torch.int64)
    with counter(count, f"reading {name}", "image", NOTICEABLE) as bar:
        for i in range(count):
            where = f"dataset {name!r}: image {i}"
            with _naming_errors(where):
                found = item(i)
                if not _is_pair(found):
                    raise CodeqError(f"{where} is {_described(found)}: must be (image, label)")
                image = _pixels(found[0], where)
            if img_size is not None:
                image = resize(_central_square(image)[None], img_size)[0]
            if not i:
                check_resident(name, count, *image.shape[1:])
                images = torch.empty(count, *image.shape, dtype=torch.uint8)
            if image.shape != images.shape[1:]:
                shapes = f"{list(image.shape)}, the first {list(images.shape[1:])}"
                raise CodeqError(
                    f"{where} has the shape {shapes} [C, H, W]: set img_size, and use one number of channels"
                )
            images[i], labels[i] = image, _label(found[1], where)
            bar.update()
    return Split(images, labels)


@contextmanager
def _naming_errors(where: str) -> Iterator[None]:
    """Name the image that the user's code, or the library that decodes it, cannot read."""
    try:
        yield
    except CodeqError:
        raise
    except Exception as error:
        raise CodeqError(f"{where} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error


def _described(found: object) -> str:
    """Return what a user's object is: the shape of an array in place of its pixels."""
    if hasattr(found, "shape"):
        return f"a {type(found).__name__} of shape {list(found.shape)}"
    return quote(found)


def _items(name: str, given: Images) -> tuple[int, Callable[[int], Any]]:
    """Return the number of images and a function from an index to ``(image, label)``."""
    if isinstance(given, tuple):
        images, labels = given
        if len(images) != len(labels):
            raise CodeqError(f"dataset {name!r} has {len(images)} images and {len(labels)} labels")
        images, labels = _by_position(images), _by_position(labels)
        count, item = len(given[0]), lambda i: (images[i], labels[i])
    else:
        count, item = len(given), _by_position(given).__getitem__
    if not count:
        raise CodeqError(f"dataset {name!r} has no images")
    return count, item


def _by_position(values: Any) -> Any:
    """Return `values` as what position `i` selects from: of pandas, ``values[i]`` is the row labelled `i`."""
    return getattr(values, "iloc", values)


def _pixels(image: Any, where: str) -> Tensor:
    """Return an image as uint8 `[C, H, W]`."""
    if hasattr(image, "convert"):  # of PIL
        if has_wide_pixels(image):
            raise CodeqError(f"{where} has pixels of mode {image.mode}: give arrays of uint8 0 … 255 or floats 0 … 1")
        image = np.asarray(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB"))
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
    else:
        array = np.asarray(image)
        if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
            raise CodeqError(
                f"{where} is a {type(image).__name__} of {array.dtype}: must be an array, a tensor or a PIL image of "
                "uint8 0 … 255 or floats 0 … 1"
            )
        pixels = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))  # a copy: strides may be negative
        pixels = pixels.permute(2, 0, 1) if pixels.dim() == 3 else pixels
    if pixels.dim() == 2:
        pixels = pixels.expand(3, -1, -1)
    if pixels.dim() != 3 or not 1 <= len(pixels) <= MAX_CHANNELS or 0 in pixels.shape:
        raise CodeqError(
            f"{where} has the shape {list(np.shape(image))}: must be [H, W] or, with 1 to {MAX_CHANNELS} channels, "
            "[H, W, C] as an array and [C, H, W] as a tensor"
        )
    if pixels.dtype == torch.uint8:
        return pixels
    values = pixels.abs().double() if pixels.is_complex() else pixels.double()
    if broken := int((~values.isfinite()).sum()):
        raise CodeqError(f"{where} has {broken} of {values.numel()} values that are NaN or infinite")
    levels = (255 * values).round()  # float rounding of a user's own steps, such as 1.0000001, is no mistake
    if not pixels.is_floating_point() or levels.min() < 0 or levels.max() > 255:
        low, high = float(values.min()), float(values.max())
        raise CodeqError(
            f"{where} has {pixels.dtype} values {low:g} … {high:g}: must be uint8 0 … 255 or floats 0 … 1, "
            "without normalization, which is done by the data set"
        )
    return levels.to(torch.uint8)


def _central_square(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def _label(label: Any, where: str) -> int:
    value = label.item() if hasattr(label, "item") and math.prod(label.shape) == 1 else label
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CodeqError(f"{where} has the label {quote(value)}: must be the number of a class, 0 … K - 1")
    return value
