"""Fixed subset of the evaluation images of a run, for fast accuracy estimates."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from codeq.common.checks import at_least
from codeq.config import ExperimentConfig
from codeq.data import hold_out, load_dataset

BATCH = 125  # small, so that progress bars move


def evaluation_subset(config: ExperimentConfig, max_images: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of at most `max_images` evaluation images of a run, evenly spaced in the order of the data set.

    They are of the images that select its best checkpoint, see `evaluation_images`.

    Raises
    ------
    CodeqError
        If the data set is missing, or `max_images` is no positive integer.

    Examples
    --------
    >>> [len(y) for _, y in evaluation_subset(ExperimentConfig("x", dataset="synthetic"), max_images=150)]
    [125, 25]
    """
    max_images = at_least("max_images", max_images, 1)
    dataset: Any = load_dataset(config.dataset, config.data_dir, config.img_size, workers=0)
    if config.validation:
        dataset = hold_out(dataset, config.validation, config.seed)[1]
    count = min(max_images, len(dataset.test))
    # Evenly spaced: the files of an image folder are sorted by class.
    index = torch.arange(count, device="cpu") * len(dataset.test) // count
    return list(dataclasses.replace(dataset, test=dataset.test.subset(index)).test_batches(BATCH))


def evaluation_images(config: ExperimentConfig) -> str:
    """Return the kind of images that select the best checkpoint of a run, ``validation`` or ``test``.

    Examples
    --------
    >>> evaluation_images(ExperimentConfig("x", validation=0.1))
    'validation'
    """
    return "validation" if config.validation else "test"
