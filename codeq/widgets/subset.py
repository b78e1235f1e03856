"""Fixed subset of the test images of a run, for fast accuracy estimates."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from codeq.config import ExperimentConfig
from codeq.data import load_dataset

BATCH = 125  # small, so that the progress bar moves


def evaluation_subset(config: ExperimentConfig, max_images: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of at most `max_images` test images of the data set of a run, evenly spaced in its order.

    Raises
    ------
    CodeqError
        If the data set is missing.

    Examples
    --------
    >>> [len(y) for _, y in evaluation_subset(ExperimentConfig("x", dataset="synthetic"), max_images=150)]
    [125, 25]
    """
    dataset: Any = load_dataset(config.dataset, config.data_dir, config.img_size, workers=0)
    count = min(max_images, len(dataset.test))
    # Evenly spaced: the files of an image folder are sorted by class.
    index = torch.arange(count) * len(dataset.test) // count
    return list(dataclasses.replace(dataset, test=dataset.test.subset(index)).test_batches(BATCH))
