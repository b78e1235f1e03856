"""Images that the runs which a training builds on were trained on: their classes and their normalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError, listed, quote
from codeq.data.base import BaseDataset

NOTABLE = 0.1  # a shift in standard deviations, or a relative change of their size, that a network notices
SHOWN_CLASSES = 5  # in a message


def describe_images(dataset: BaseDataset) -> dict[str, Any]:
    """Return the names of the classes, and mean and standard deviation `[C]` of the normalization, as built-in types.

    Examples
    --------
    >>> from codeq.data import load_dataset
    >>> describe_images(load_dataset("digits"))
    {'classes': ['0', ...], 'normalization': {'mean': [0.30..., ...], 'std': [0.32..., ...]}}
    """
    statistics = {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
    return {"classes": list(dataset.classes), "normalization": statistics}


def check_classes(theirs: Mapping[str, Any], same_name: bool, dataset: BaseDataset, named: str) -> None:
    """Raise a `CodeqError` if a run with a checkpoint `theirs` has other classes under the labels of `dataset`.

    Data sets of other names may call the same classes otherwise; then only another order is known to be wrong.
    """
    found, wanted = theirs.get("classes"), list(dataset.classes)
    if found not in (None, wanted) and (same_name or sorted(found) == sorted(wanted)):
        raise CodeqError(
            f"{named} was trained on the classes {listed(found, SHOWN_CLASSES)}, the data set has, in this order, "
            f"{listed(wanted, SHOWN_CLASSES)}: its predictions would be those of other classes"
        )


class Renormalized(nn.Module):
    """A network behind a conversion of its inputs, from the normalization of one data set to that of another.

    Parameters
    ----------
    model : Module
        The network.
    scale, shift : Tensor
        ``scale · x + shift`` is its input, each `[C, 1, 1]`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Any:
        """Return the outputs of the network for the images `x`, `[B, C, H, W]`."""
        return self.model(x * self.scale + self.shift)


def renormalized(model: nn.Module, theirs: Mapping[str, Any], dataset: BaseDataset) -> nn.Module:
    """Return `model` for the normalized images of `dataset`, where a checkpoint `theirs` records another normalization.

    Examples
    --------
    >>> from codeq.data import load_dataset
    >>> dataset = load_dataset("digits")
    >>> model = renormalized(nn.Identity(), {"normalization": {"mean": [0.0] * 3, "std": [1.0] * 3}}, dataset)
    >>> pixels = torch.rand(2, 3, 8, 8)
    >>> normalized = (pixels - dataset.mean[:, None, None]) / dataset.std[:, None, None]
    >>> bool(torch.allclose(model(normalized), pixels, atol=1e-6))
    True
    """
    change = _change(theirs, dataset)
    return model if change is None else Renormalized(model, *change)


def normalization_warning(theirs: Mapping[str, Any], dataset: BaseDataset, named: str) -> str:
    """Return that a network starts on images normalized otherwise than those it was trained on; empty if it does not.

    A data set of a similar mean and deviation changes little.
    """
    change = _change(theirs, dataset)
    if change is None or all((value.abs() < NOTABLE).all() for value in (change[0] - 1, change[1])):
        return ""
    before, now = theirs["normalization"], describe_images(dataset)["normalization"]
    return (
        f"{named} was trained on images normalized by the mean {_shown(before['mean'])} and the standard deviation "
        f"{_shown(before['std'])}, those of the data set are {_shown(now['mean'])} and {_shown(now['std'])}: its "
        "accuracy begins lower than it was"
    )


def _change(theirs: Mapping[str, Any], dataset: BaseDataset) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift, `[C, 1, 1]`, from the normalization of `dataset` to a recorded one that differs."""
    recorded = theirs.get("normalization")
    if recorded is None:
        return None
    mean, std = (torch.tensor(recorded[name], device=dataset.mean.device) for name in ("mean", "std"))
    if mean.shape != dataset.mean.shape or (torch.equal(mean, dataset.mean) and torch.equal(std, dataset.std)):
        return None
    scale, shift = dataset.std / std, (dataset.mean - mean) / std
    return scale[:, None, None], shift[:, None, None]


def _shown(values: list[float]) -> str:
    return quote([round(value, 3) for value in values])
