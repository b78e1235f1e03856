"""Checks of class scores and labels, so that a shape that broadcasts is never counted as right."""

from __future__ import annotations

from torch import Tensor

from codeq.common.errors import CodeqError


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


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
