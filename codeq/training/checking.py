"""Checks before a training: whatever would stop it later is one error before its run folder exists."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.data.base import BaseDataset
from codeq.graph.tracing import evaluation_mode
from codeq.training.distributed import Ranks


def check_outputs(model: nn.Module, input_size: tuple[int, int, int], num_classes: int) -> None:
    """Raise a `CodeqError` unless `model` maps an image to logits `[1, num_classes]`."""
    with evaluation_mode(model):
        output = model(_images(1, input_size, model))
    if not isinstance(output, Tensor) or output.shape != (1, num_classes) or not output.is_floating_point():
        found = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise CodeqError(
            f"{type(model).__name__} returns {found} for one image: it must be a tensor of logits [1, {num_classes}]"
        )


def check_batches(
    model: nn.Module, dataset: BaseDataset, validation: BaseDataset | None, batch_size: int, ranks: Ranks
) -> None:
    """Raise a `CodeqError` for batches that `model` cannot train on, or that the processes cannot share.

    BatchNorm needs more than one value per channel. A batch of one image has a single one where a channel is one
    number, for example behind a linear layer.
    """
    dataset.train_batches(batch_size, seed=0, epoch=0, rank=ranks.rank, world=ranks.world).close()
    for evaluated in filter(None, (dataset, validation)):
        evaluated.test_batches(rank=ranks.rank, world=ranks.world)
    count = len(dataset.train)
    last = count - (dataset.num_train_batches(batch_size) - 1) * batch_size
    share = 1 if ranks.device.type == "cuda" else ranks.world  # SyncBatchNorm sees the whole batch
    if min(batch_size, last) // share > 1:
        return
    trial = copy.deepcopy(model).train()
    try:
        with torch.no_grad():
            trial(_images(1, dataset.input_size, model))
    except (ValueError, RuntimeError) as error:
        processes = f" shared by {ranks.world} processes" if ranks.world > 1 else ""
        raise CodeqError(
            f"batch_size={batch_size}: of {count} training images{processes}, a batch is left with one image, on which "
            f"{type(model).__name__} cannot train ({error})"
        ) from error


def _images(count: int, input_size: tuple[int, int, int], model: nn.Module) -> Tensor:
    return torch.zeros(count, *input_size, device=next(model.parameters()).device)
