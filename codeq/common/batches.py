"""Batches of the user's own loaders: inputs and labels, or a refusal that says what they are instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codeq.common.errors import CodeqError, quote


def check_batches(batches: object) -> None:
    """Raise a `CodeqError` if one batch, the rows of which would be taken for batches, or nothing iterable is given.

    Examples
    --------
    >>> import torch
    >>> check_batches((torch.zeros(2, 3), torch.tensor([0, 1])))
    Traceback (most recent call last):
    ...
    codeq.CodeqError: batches: one batch of float32 [2, 3] and labels int64 [2]: must be a list, [(inputs, labels)]
    """
    if isinstance(batches, Tensor):
        raise CodeqError(f"batches: one tensor, {described(batches)}: must be a list of batches, e.g. [images]")
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise CodeqError(f"batches={quote(batches)}: must be a list of batches or a loader")
    if isinstance(batches, tuple | list) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches):
        inputs, labels = batches
        if labels.ndim == 1 < inputs.ndim and not (labels.is_floating_point() or labels.is_complex()):
            raise CodeqError(
                f"batches: one batch of {described(inputs)} and labels {described(labels)}: must be a list, "
                "[(inputs, labels)]"
            )


def split_batch(batch: object) -> tuple[Tensor, Any]:
    """Return the inputs and the labels of a batch of a loader; no labels are `None`.

    Parameters
    ----------
    batch : Tensor or sequence
        Inputs `[N, …]`, or a tuple or list that begins with inputs and labels. Labels are returned as they are.

    Raises
    ------
    CodeqError
        For anything else, such as arrays of NumPy and dictionaries.

    Examples
    --------
    >>> import torch
    >>> split_batch([torch.zeros(1), torch.ones(1)])
    (tensor([0.]), tensor([1.]))
    >>> split_batch({"pixel_values": torch.zeros(1)})
    Traceback (most recent call last):
    ...
    codeq.CodeqError: a batch of the loader is a value of type dict: must be inputs or (inputs, labels), Tensors
    """
    if isinstance(batch, (tuple, list)) and batch:
        verb, inputs, labels = "begins with", batch[0], batch[1] if len(batch) > 1 else None
    else:
        verb, inputs, labels = "is", batch, None
    if not isinstance(inputs, Tensor):
        raise CodeqError(
            f"a batch of the loader {verb} a value of type {described(inputs)}: must be inputs or (inputs, labels), "
            "Tensors"
        )
    return inputs, labels


def labelled_batch(batch: object) -> tuple[Tensor, Tensor]:
    """Return the inputs and the labels of a batch of a loader, as `split_batch`.

    Raises
    ------
    CodeqError
        Also for a batch whose labels are no Tensor.
    """
    inputs, labels = split_batch(batch)
    if not isinstance(labels, Tensor):
        found = "no labels" if labels is None else f"labels of type {described(labels)}"
        raise CodeqError(f"a batch of the loader has {found}: must be (inputs, labels), Tensors")
    return inputs, labels


def prepared(inputs: Tensor, like: Tensor) -> Tensor:
    """Return a copy of the inputs of a batch for a model, which may overwrite them: the loader may keep them.

    Parameters
    ----------
    inputs : Tensor
        `[N, …]`. As NumPy's floats are float64, these get the number format of the model, and those for a model in
        float64 get that.
    like : Tensor
        Parameter of the model; the copy is on its device.

    Examples
    --------
    >>> import torch
    >>> prepared(torch.zeros(2, dtype=torch.double), torch.zeros(1)).dtype
    torch.float32
    >>> prepared(torch.zeros(2, dtype=torch.long), torch.zeros(1)).dtype
    torch.int64
    """
    floating = inputs.is_floating_point() and like.is_floating_point()
    converted = floating and torch.float64 in (inputs.dtype, like.dtype)
    return inputs.to(like.device, like.dtype if converted else inputs.dtype, copy=True)


def described(value: object) -> str:
    """Return dtype and shape of a Tensor, the name of the type of anything else.

    Examples
    --------
    >>> described(["cat", "dog"])
    'list'
    """
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
