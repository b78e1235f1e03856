"""Accuracy and loss of a classifier; a shape that broadcasts, or a label of no class, is never counted as right."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeq.common.batches import check_batches, described, labelled_batch, prepared
from codeq.common.errors import CodeqError
from codeq.common.forward import forward
from codeq.quantizer.functions import widen
from codeq.quantizer.layers import reference_tensor

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
        raise CodeqError(f"the model returns {described(scores)}: accuracy takes class scores [N, classes]")
    integer = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not isinstance(labels, Tensor) or not integer or labels.shape != scores.shape[:1]:
        raise CodeqError(
            f"labels are {described(labels)}: accuracy takes integer class numbers [{len(scores)}], one for each input"
        )


def check_classes(impossible: int, count: int, classes: int) -> None:
    """Refuse labels some of which, `impossible` of `count`, are none of the classes of the model.

    Examples
    --------
    >>> check_classes(1, 64, classes=10)
    Traceback (most recent call last):
    ...
    codeq.CodeqError: 1 of 64 labels are none of the 10 classes of the model: must be integers 0 … 9
    """
    if impossible:
        raise CodeqError(
            f"{impossible} of {count} labels are none of the {classes} classes of the model: must be integers "
            f"0 … {classes - 1}"
        )


def score_batch(logits: Tensor, labels: Tensor) -> Tensor:
    """Return correct predictions, summed cross-entropy, inputs, and labels of no class of a batch, `[4]`.

    Such labels are counted instead of refused, which would make the host wait for a GPU in every batch: `mean_scores`
    refuses them.

    Parameters
    ----------
    logits, labels : Tensor
        As `check_labels` accepts them.

    Examples
    --------
    >>> score_batch(torch.tensor([[9.0, 0.0], [float("nan"), 0.0]]), torch.tensor([0, 0]))[[0, 2, 3]].tolist()
    [1.0, 2.0, 0.0]
    """
    check_labels(logits, labels)
    labels = labels.long()  # unsigned ones of 16 bits and more cannot be compared with others
    logits = widen(logits)
    known = labels.clamp(0, logits.shape[1] - 1)
    loss = F.cross_entropy(logits, known, reduction="sum")
    # The largest logit of a row with NaN is the NaN, which predicts nothing.
    correct = ((logits.argmax(1) == labels) & ~logits.isnan().any(1)).sum()
    return torch.stack([correct.to(loss), loss, torch.full_like(loss, len(labels)), (known != labels).sum().to(loss)])


def mean_scores(sums: Tensor, classes: int) -> tuple[float, float]:
    """Return accuracy (fraction) and mean cross-entropy (nats) from sums of `score_batch`.

    Parameters
    ----------
    sums : Tensor
        `[4]`.
    classes : int
        Classes of the model.

    Raises
    ------
    CodeqError
        Without inputs, and for labels of no class.

    Examples
    --------
    >>> mean_scores(torch.tensor([3.0, 2.0, 4.0, 0.0]), classes=10)
    (0.75, 0.5)
    """
    correct, loss, count, impossible = sums.tolist()
    if not count:
        raise CodeqError("loader has no batches; accuracy needs at least one input")
    check_classes(round(impossible), round(count), classes)
    return correct / count, loss / count


def measure_accuracy(
    model: nn.Module, loader: Loader, total: Callable[[Tensor], Tensor] | None = None
) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of a model in evaluation mode, as `Evaluator.accuracy`.

    Parametrized weights are computed anew for each batch, where the caller does not cache them.
    """
    check_batches(loader)
    reference, classes = reference_tensor(model), 0
    device = reference.device
    # float64 counts inputs exactly, where the device has it.
    sums = torch.zeros(4, device=device, dtype=torch.double if device.type in ("cpu", "cuda") else torch.float)
    for batch in loader:
        x, y = labelled_batch(batch)
        logits = forward(model, prepared(x, reference))
        sums += score_batch(logits, y.to(device))
        classes = logits.shape[1]
    return mean_scores(total(sums) if total else sums, classes)
