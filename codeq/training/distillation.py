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
from codeq.quantizer.attach import detach_weight_quantizers
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointName, recorded_input_size
from codeq.training.folding import folded


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
    """

    models: Sequence[nn.Module]
    alpha: float
    temperature: float

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
    settings: DistillationConfig, num_classes: int, input_size: tuple[int, int, int], device: torch.device
) -> Teacher:
    """Load all teachers onto `device`: the best checkpoint where validation images chose it, else the last one.

    Without a validation split the best epoch is chosen on the test images, which must not reach another training.

    Raises
    ------
    CodeqError
        If there is no such run, or its model has weights that are not finite, does not map inputs of `input_size` to
        `num_classes` logits, or was trained on inputs of another size, on which its predictions say little.
    """
    models = [_load_model(folder, num_classes, input_size, device) for folder in settings.teachers]
    return Teacher(models, settings.alpha, settings.temperature)


def _load_model(folder: str, num_classes: int, input_size: tuple[int, int, int], device: torch.device) -> nn.Module:
    named = f"distillation.teacher={quote(folder)}"
    try:
        run = Run.open(folder)
        checkpoint: CheckpointName = "best" if run.config.validation else "last"
        model = run.load_model(checkpoint)
        broken = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
        if broken:  # which quantization would hide
            raise CodeqError(f"{broken} of the {checkpoint} checkpoint has values that are not finite")
        detach_weight_quantizers(model)  # its weights stay as they are: quantized once instead of at every step
        model = folded(model, input_size).to(device)
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
    trained = recorded_input_size(run.checkpoints)
    if trained not in (None, input_size):
        raise CodeqError(f"{named} was trained on images of {trained}, the data set has {input_size}")
    return model
