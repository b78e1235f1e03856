"""Checks before a training: whatever would stop it later is one error before its run folder exists."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.common.forward import forward
from codeq.common.modes import evaluation_mode
from codeq.data.base import BaseDataset
from codeq.training.distributed import Ranks


def check_outputs(model: nn.Module, input_size: tuple[int, int, int], num_classes: int) -> None:
    """Raise a `CodeqError` unless `model` maps images to logits `[N, num_classes]`, also in training mode.

    Where only deterministic algorithms are allowed, a backward pass is tried as well: many operations, such as
    interpolations, have none for it on a GPU.
    """
    with evaluation_mode(model):
        _check_logits(forward(model, _images(1, input_size, model)), model, 1, num_classes, "")
    trial = copy.deepcopy(model).train()  # whose running statistics may change
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    backward = torch.are_deterministic_algorithms_enabled()
    with torch.set_grad_enabled(backward), torch.random.fork_rng(devices=devices):
        output = forward(trial, _images(2, input_size, model), " in training mode")
    advice = " in training mode (for models of torchvision, model_kwargs: {aux_logits: false} may leave out the others)"
    _check_logits(output, model, 2, num_classes, advice)
    if backward and output.requires_grad:
        output.sum().backward()


def _check_logits(output: object, model: nn.Module, images: int, num_classes: int, mode: str) -> None:
    if not isinstance(output, Tensor) or output.shape != (images, num_classes) or not output.is_floating_point():
        found = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        of, wanted = ("one image", "a tensor") if images == 1 else (f"{images} images", "one tensor")
        raise CodeqError(
            f"{type(model).__name__} returns {found} for {of}{mode}: it must be {wanted} of logits "
            f"[{images}, {num_classes}]"
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
    # Data sets give float32 whatever the default dtype is, in which a model is made.
    return torch.zeros(count, *input_size, dtype=torch.float32, device=next(model.parameters()).device)
