"""A part of a run's test images for quick accuracies: the same ones every time, spread over the whole set."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from codeq.config import ExperimentConfig
from codeq.data import FileSplit, Split, load_dataset

BATCH = 125  # small, so that progress shows


def spread_subset(config: ExperimentConfig, most: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of at most `most` test images of the data set that a run was trained on.

    Raises
    ------
    CodeqError
        If the data set is not here.

    Examples
    --------
    >>> [len(y) for _, y in spread_subset(ExperimentConfig("x", dataset="synthetic"), most=150)]
    [125, 25]
    """
    dataset: Any = load_dataset(config.dataset, config.data_dir, config.img_size, workers=0)
    count = min(most, len(dataset.test))
    # Evenly spread: the files of an image folder lie class by class.
    index = torch.arange(count) * len(dataset.test) // count
    test = dataset.test
    if isinstance(test, Split):
        part: Split | FileSplit = Split(test.images[index], test.labels[index])
    else:
        part = FileSplit(test.paths[index.numpy()], test.labels[index])
    return list(dataclasses.replace(dataset, test=part).test_batches(BATCH))
