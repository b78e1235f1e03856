"""Comparison of the images of a run with those that it is resumed with: folders and registered data sets can change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from codeq.common.errors import CodeqError
from codeq.data.base import BaseDataset

SPLITS = ("training", "validation", "test")


def describe_data(dataset: BaseDataset, validation: BaseDataset | None) -> dict[str, Any]:
    """Return the number of images of each split and a checksum of all labels in their order.

    Pixels are left out: those of a large data set are read anew in every epoch.

    Parameters
    ----------
    dataset : BaseDataset
        Without the validation images.
    validation : BaseDataset, optional
        Whose test images are the validation images.

    Examples
    --------
    >>> from codeq.data import load_dataset
    >>> describe_data(load_dataset("digits"), None)
    {'training': 1437, 'validation': 0, 'test': 360, 'labels': '...'}
    """
    splits = [dataset.train, validation.test if validation else None, dataset.test]
    checksum = hashlib.sha256()
    for split in filter(None, splits):
        checksum.update(split.labels.cpu().numpy().tobytes())
    counts = dict(zip(SPLITS, (len(split) if split else 0 for split in splits), strict=True))
    return counts | {"labels": checksum.hexdigest()}


def check_same_data(stored: Mapping[str, Any] | None, found: Mapping[str, Any], what: str) -> None:
    """Raise a `CodeqError` if a checkpoint was written for other images; an older version did not record its own.

    Otherwise positions in the epoch would name other images, and images that were trained on could be held out.

    Examples
    --------
    >>> stored = {"training": 80, "validation": 0, "test": 20, "labels": "0a"}
    >>> check_same_data(stored, stored | {"training": 90}, "step-8.pt")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: step-8.pt was written for other images: 80 training, 0 validation and 20 test images, now 90, 0
    and 20. A resumed run keeps its data
    """
    if stored is None or stored == found:
        return
    before, now = ([data[split] for split in SPLITS] for data in (stored, found))
    images = "{} training, {} validation and {} test images".format(*before)
    change = f"{images}, now {now[0]}, {now[1]} and {now[2]}" if before != now else f"{images} with other labels"
    raise CodeqError(f"{what} was written for other images: {change}. A resumed run keeps its data")
