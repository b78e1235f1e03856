"""Validation split: a stratified part of the training images that is set aside to select checkpoints and settings."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import numpy as np
import torch

from codeq.common.checks import at_least, is_number
from codeq.common.default_device import cpu_by_default
from codeq.common.errors import CodeqError, quote
from codeq.data.base import BaseDataset, ImageSplit

D = TypeVar("D", bound=BaseDataset)
S = TypeVar("S", bound=ImageSplit)


def hold_out(dataset: D, fraction: float, seed: int) -> tuple[D, D]:
    """Split the training images of `dataset` into training and validation images.

    Every class has the same share in both parts, up to one image. The normalization remains that of `dataset`.

    Parameters
    ----------
    dataset : Dataset or StreamedDataset
        Its test images are not touched.
    fraction : float
        Validation images / training images of `dataset`, above 0 and below 1.
    seed : int
        At least 0; it determines the split.

    Returns
    -------
    tuple
        `dataset` with the remaining training images; and a data set of the validation images alone, as test images.

    Raises
    ------
    CodeqError
        For another fraction, and if one of the parts would have fewer images than there are classes, or a class has a
        single image.

    Examples
    --------
    >>> from codeq.data import load_dataset
    >>> train, validation = hold_out(load_dataset("digits"), 0.1, seed=0)
    >>> len(train.train), len(validation.test), len(train.test)
    (1293, 144, 360)
    """
    what = f"validation={fraction}: the {len(dataset.train)} training images of dataset {dataset.name!r}"
    remaining, validation = stratified_split(dataset.train, fraction, seed, what)
    return dataclasses.replace(dataset, train=remaining), dataclasses.replace(
        dataset, train=validation, test=validation
    )


def training_part(dataset: D, fraction: float | None, seed: int) -> D:
    """Return `dataset` with the images that a training sees: without those that `hold_out` sets aside, if any.

    Examples
    --------
    >>> from codeq.data import load_dataset
    >>> [len(training_part(load_dataset("digits"), fraction, seed=0).train) for fraction in (None, 0.1)]
    [1437, 1293]
    """
    return hold_out(dataset, fraction, seed)[0] if fraction else dataset


@cpu_by_default()
def stratified_split(whole: S, fraction: float, seed: int, what: str) -> tuple[S, S]:
    """Split images so that every class has the same share in both parts, up to one image.

    Parameters
    ----------
    whole : ImageSplit
        Images and labels.
    fraction : float
        Images of the second part / all images, above 0 and below 1.
    seed : int
        At least 0; it determines the split.
    what : str
        Name of the images in the message of an error.

    Returns
    -------
    tuple
        The two parts, both in the order of `whole`.

    Raises
    ------
    CodeqError
        For another fraction, and if one of the parts would have fewer images than there are classes, or a class has a
        single image.
    """
    if not is_number(fraction) or not 0 < fraction < 1:  # scikit-learn takes integers as numbers of images
        raise CodeqError(f"fraction={quote(fraction)}: must be a number above 0 and below 1")
    from sklearn.model_selection import train_test_split  # takes a second to import

    entropy = np.random.SeedSequence(at_least("seed", seed, 0))
    try:
        rest, held = train_test_split(
            torch.arange(len(whole)),
            test_size=fraction,
            random_state=np.random.RandomState(np.random.MT19937(entropy)),  # takes seeds of 64 bits
            stratify=whole.labels.cpu(),
        )
    except ValueError as error:
        classes, counts = whole.labels.unique(return_counts=True)
        held_count = math.ceil(fraction * len(whole))
        parts = f"{len(classes)} classes need more than {len(whole) - held_count} and {held_count} images"
        reason = f"class {int(classes[counts == 1][0])} has a single image" if (counts == 1).any() else parts
        raise CodeqError(f"{what} cannot be split with every class in both parts: {reason}") from error
    # In the order of the data set: files that lie beside each other are read one after the other.
    return whole.subset(rest.sort().values), whole.subset(held.sort().values)
