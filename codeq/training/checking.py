"""Checks before a training: whatever would stop it later is one error before its run folder exists."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError, listed
from codeq.common.forward import forward
from codeq.common.modes import evaluation_mode
from codeq.data.base import BaseDataset
from codeq.quantizer.layers import latent_weight, named_layers, weight_quantization
from codeq.training.distributed import Ranks

logger = logging.getLogger(__name__)

MAX_NAMES = 5  # layers in a message


def warn_of_blocked_gradients(model: nn.Module) -> None:
    """Warn of layers that no loss trains, because their quantizers pass no gradient to the latent weights.

    Each quantizer is tried alone: zero gradients of whole networks are common at the start, such as behind BatchNorms
    of residual branches that begin with a scale of 0.
    """
    if blocked := [name for name, layer in named_layers(model) if _blocks_gradient(layer)]:
        logger.warning(
            "%d layers will not train: their quantizers pass no gradient to the weights (%s). Rounding has none: "
            "w + (quantized - w).detach() gives it that of the identity (straight-through)",
            len(blocked), listed(blocked, MAX_NAMES),
        )  # fmt: skip


def _blocks_gradient(layer: nn.Module) -> bool:
    """Return whether the enabled quantizer of a layer that trains gives all of its weights a gradient of 0, or none."""
    quantization = weight_quantization(layer)
    latent = latent_weight(layer)
    if quantization is None or not quantization.enabled or not latent.requires_grad:
        return False
    trial = copy.deepcopy(quantization).train()  # which may change its state
    devices = {latent.device} if latent.device.type == "cuda" else set()
    with torch.enable_grad(), torch.random.fork_rng(devices=devices):
        w = latent.detach().clone().requires_grad_()
        quantized = trial(w)
        if not quantized.requires_grad:
            return True
        # Random factors: the sum of weights of mean 0, for example, is constant.
        (gradient,) = torch.autograd.grad(quantized, w, torch.randn_like(quantized), allow_unused=True)
    return gradient is None or not gradient.any()


def check_outputs(model: nn.Module, input_size: tuple[int, int, int], num_classes: int) -> None:
    """Raise a `CodeqError` unless `model` maps images to logits `[N, num_classes]`, which train its parameters.

    Both modes are tried, and probabilities in place of logits are warned of. Where only deterministic algorithms are
    allowed, a backward pass is tried as well: many operations, such as interpolations, have none for it on a GPU.
    """
    with evaluation_mode(model):
        first = _checked_logits(forward(model, _images(1, input_size, model)), model, 1, num_classes, "")
    trial = copy.deepcopy(model).train()  # whose running statistics may change
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    backward = torch.are_deterministic_algorithms_enabled()
    with torch.enable_grad(), torch.random.fork_rng(devices=devices):
        output = forward(trial, _images(2, input_size, model), " in training mode")
    advice = " in training mode (for models of torchvision, model_kwargs: {aux_logits: false} may leave out the others)"
    logits = _checked_logits(output, model, 2, num_classes, advice)
    if not logits.requires_grad and any(parameter.requires_grad for parameter in model.parameters()):
        raise CodeqError(
            f"{type(model).__name__} returns logits without a gradient in training mode, so it cannot be trained: its "
            "forward, or the quantizer of each layer, uses detach(), .data, item(), NumPy or torch.no_grad()"
        )
    if _are_probabilities(first) and _are_probabilities(logits):
        logger.warning(
            "%s returns probabilities (at least 0, with the sum 1), but cross-entropy takes logits and applies softmax "
            "itself: leave out the softmax at its end",
            type(model).__name__,
        )
    if backward and logits.requires_grad:
        logits.sum().backward()


def _are_probabilities(logits: Tensor) -> bool:
    sums = logits.detach().sum(1)
    return bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _checked_logits(output: object, model: nn.Module, images: int, num_classes: int, mode: str) -> Tensor:
    if not isinstance(output, Tensor) or output.shape != (images, num_classes) or not output.is_floating_point():
        found = f"{output.dtype} {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        of, wanted = ("one image", "a tensor") if images == 1 else (f"{images} images", "one tensor")
        raise CodeqError(
            f"{type(model).__name__} returns {found} for {of}{mode}: it must be {wanted} of logits "
            f"[{images}, {num_classes}]"
        )
    return output


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
