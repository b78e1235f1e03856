"""Accuracy and loss of a classifier; a shape that broadcasts, or a label of no class, is never counted as right."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeq.common.errors import CodeqError

Loader = Iterable[tuple[Tensor, Tensor]]


def check_labels(scores: object, labels: object) -> None:
    """Refuse scores and labels from which no accuracy follows; only their types and shapes are read.

    Parameters
    ----------
    scores : Tensor
        `[N, classes]`, floating point.
    labels : Tensor
        `[N]`, integer class numbers.

    Raises
    ------
    CodeqError
        For anything else: `[N, 1]` and `[N]` would broadcast to `[N, N]` when compared.

    Examples
    --------
    >>> import torch
    >>> check_labels(torch.zeros(2, 10), torch.tensor([[3], [1]]))
    Traceback (most recent call last):
    ...
    codeq.CodeqError: labels are int64 [2, 1]: accuracy takes integer class numbers [2], one for each input
    """
    if not isinstance(scores, Tensor) or scores.ndim != 2 or not scores.is_floating_point():
        raise CodeqError(f"the model returns {_described(scores)}: accuracy takes class scores [N, classes]")
    integer = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not isinstance(labels, Tensor) or not integer or labels.shape != scores.shape[:1]:
        raise CodeqError(
            f"labels are {_described(labels)}: accuracy takes integer class numbers [{len(scores)}], one for each input"
        )


def measure_accuracy(
    model: nn.Module, loader: Loader, total: Callable[[Tensor], Tensor] | None = None
) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of a model in evaluation mode, as `Evaluator.accuracy`.

    Parametrized weights are computed anew for each batch, where the caller does not cache them.
    """
    device, classes = next(model.parameters()).device, 0
    # Correct predictions, loss, inputs and impossible labels; float64 counts them exactly, where the device has it.
    sums = torch.zeros(4, device=device, dtype=torch.double if device.type in ("cpu", "cuda") else torch.float)
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        logits = model(x)
        check_labels(logits, y)
        logits = logits.float() if logits.itemsize < 4 else logits
        # Counted instead of refused at once, which would make the host wait for a GPU in every batch.
        known = y.long().clamp(0, logits.shape[1] - 1)
        sums[3] += (known != y).sum()
        # The largest logit of a row with NaN is the NaN, which predicts nothing.
        sums[0] += ((logits.argmax(1) == y) & ~logits.isnan().any(1)).sum()
        sums[1] += F.cross_entropy(logits, known, reduction="sum")
        sums[2] += len(y)
        classes = logits.shape[1]
    num_correct, loss, count, impossible = (total(sums) if total else sums).tolist()
    if not count:
        raise CodeqError("loader has no batches; accuracy needs at least one input")
    if impossible:
        raise CodeqError(
            f"{impossible:.0f} of {count:.0f} labels are none of the {classes} classes of the model: must be integers "
            f"0 … {classes - 1}"
        )
    return num_correct / count, loss / count


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
