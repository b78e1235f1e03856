"""Knowledge distillation: a training imitates the predictions of trained runs in addition to the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeq.common.errors import CodeqError, quote
from codeq.config.parts import DistillationConfig
from codeq.data.base import BaseDataset
from codeq.quantizer.attach import detach_weight_quantizers
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointEntry, peek_checkpoint
from codeq.training.folding import folded
from codeq.training.source_data import check_classes, renormalized
from codeq.training.teacher_checkpoints import teaching_checkpoints


@dataclass(frozen=True)
class Teacher:
    """Trained networks whose predictions serve as additional labels (Hinton et al., arXiv 1503.02531).

    Parameters
    ----------
    models : sequence of Module
        In evaluation mode, at least one.
    alpha : float
        Share of the imitation in the loss.
    temperature : float
        ``T`` of ``T² KL(softmax(teacher / T) ‖ softmax(logits / T))``.
    checkpoints : sequence of CheckpointEntry
        Where the networks come from.
    """

    models: Sequence[nn.Module]
    alpha: float
    temperature: float
    checkpoints: Sequence[CheckpointEntry] = ()

    def predict(self, x: Tensor) -> Tensor:
        """Return the logits `[B, classes]` for the inputs `x`, the mean over the networks, without gradients.

        They have at least 32 bits, also where the networks compute with fewer.
        """
        with torch.no_grad():
            # Each reads its own copy: a model may overwrite its input.
            logits = torch.stack([cast(Tensor, model(x.clone())) for model in self.models])
            return logits.mean(0, dtype=torch.promote_types(logits.dtype, torch.float32))

    def loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return ``T² KL`` of the logits against the teacher's, both `[B, classes]`, the mean over the batch."""
        target = F.log_softmax(teacher_logits / self.temperature, dim=1)
        log_probs = F.log_softmax(logits / self.temperature, dim=1)
        return self.temperature**2 * F.kl_div(log_probs, target, reduction="batchmean", log_target=True)


def load_teacher(
    settings: DistillationConfig,
    dataset: BaseDataset,
    device: torch.device,
    checkpoints: Sequence[CheckpointEntry] | None = None,
) -> Teacher:
    """Load all teachers onto `device`, from their `checkpoints` if given, or those of `teaching_checkpoints`.

    Raises
    ------
    CodeqError
        If there is no such run, or its model has weights that are not finite, does not map images of `dataset` to a
        logit for each of its classes, or was trained on images of another size, on which its predictions say little,
        or on other classes.
    """
    if checkpoints is None:
        checkpoints = teaching_checkpoints(settings)
    models = [
        _load_model(folder, checkpoint.file, dataset, device)
        for folder, checkpoint in zip(settings.teachers, checkpoints, strict=True)
    ]
    return Teacher(models, settings.alpha, settings.temperature, checkpoints)


def _load_model(folder: str, checkpoint: str, dataset: BaseDataset, device: torch.device) -> nn.Module:
    num_classes, input_size = dataset.num_classes, dataset.input_size
    named = f"distillation.teacher={quote(folder)}"
    try:
        run = Run.open(folder)
        model = run.load_model(checkpoint)
        broken = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
        if broken:  # which quantization would hide
            raise CodeqError(f"{broken} of {checkpoint} has values that are not finite")
        detach_weight_quantizers(model)  # its weights stay as they are: quantized once instead of at every step
        theirs = peek_checkpoint(run.checkpoints) or {}
        model = renormalized(folded(model, input_size), theirs, dataset).to(device)
    except CodeqError as error:
        raise CodeqError(f"{named}: {error}") from error
    try:
        with torch.no_grad():
            output = model(torch.zeros(1, *input_size, device=device))
    except Exception as error:  # a model refuses other sizes in its own way
        raise CodeqError(f"{named} cannot take {input_size}: {error}") from error
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise CodeqError(f"{named} returns {found}: must be logits [1, {num_classes}]")
    classes = output.shape[1]
    if classes != num_classes:
        raise CodeqError(f"{named} has {classes} classes, the data set {num_classes}")
    if not output.isfinite().all():  # because of its buffers, such as the statistics of a BatchNorm
        raise CodeqError(f"{named} returns logits that are not finite")
    if (trained := theirs.get("input_size")) and tuple(trained) != input_size:
        raise CodeqError(f"{named} was trained on images of {tuple(trained)}, the data set has {input_size}")
    check_classes(theirs, run.config.dataset == dataset.name, dataset, named)
    return model
