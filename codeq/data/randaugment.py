"""RandAugment (arXiv 1909.13719) on whole batches: the 14 operations of torchvision's class, with its magnitudes.

torchvision draws from the global random state, and applies the same operations to all images of a batch. Here each
image has operations of its own, and the caller draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from codeq.data.images import on_device

BINS = 30  # largest magnitude

Operation = Callable[[Tensor, float], Tensor]  # uint8 images `[B, C, H, W]`, signed share of the largest magnitude


def _affine(images: Tensor, translate: list[int], shear: list[float], center: list[float] | None) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    return F.affine(images, angle=0.0, translate=translate, scale=1.0, shear=shear, center=center)


def _shear(axis: int) -> Operation:
    def apply(images: Tensor, share: float) -> Tensor:
        angle = math.degrees(math.atan(0.3 * share))
        return _affine(images, [0, 0], [angle if axis == k else 0.0 for k in (0, 1)], center=[0.0, 0.0])

    return apply


def _translate(axis: int) -> Operation:
    def apply(images: Tensor, share: float) -> Tensor:
        pixels = int(150 / 331 * images.shape[3 - axis] * share)
        return _affine(images, [pixels if axis == k else 0 for k in (0, 1)], [0.0, 0.0], center=None)

    return apply


def _functional(name: str, argument: Callable[[float], float] | None = None) -> Operation:
    """Return the operation that the function `name` of torchvision makes with `argument(share)`."""

    def apply(images: Tensor, share: float) -> Tensor:
        from torchvision.transforms.v2 import functional as F  # a second to import, needed by few trainings

        function = getattr(F, name)
        return function(images) if argument is None else function(images, argument(share))

    return apply


def _unchanged(images: Tensor, share: float) -> Tensor:  # noqa: ARG001
    return images


OPERATIONS: dict[str, Operation] = {
    "identity": _unchanged,
    "shear_x": _shear(0),
    "shear_y": _shear(1),
    "translate_x": _translate(0),
    "translate_y": _translate(1),
    "rotate": _functional("rotate", lambda share: 30.0 * share),
    "brightness": _functional("adjust_brightness", lambda share: 1.0 + 0.9 * share),
    "color": _functional("adjust_saturation", lambda share: 1.0 + 0.9 * share),
    "contrast": _functional("adjust_contrast", lambda share: 1.0 + 0.9 * share),
    "sharpness": _functional("adjust_sharpness", lambda share: 1.0 + 0.9 * share),
    "posterize": _functional("posterize", lambda share: 8 - round(4 * abs(share))),
    "solarize": _functional("solarize", lambda share: 255.0 * (1.0 - abs(share))),
    "autocontrast": _functional("autocontrast"),
    "equalize": _functional("equalize"),
}
CHOICES = 2 * len(OPERATIONS)  # each with a positive and with a negative sign, which four of them ignore


def randaugment(images: Tensor, choices: Tensor, magnitude: int) -> Tensor:
    """Apply random operations to each image, one after another.

    Parameters
    ----------
    images : Tensor
        uint8 `[B, C, H, W]`, grey or RGB.
    choices : Tensor
        int64 `[rounds, B]` on the CPU: which operation, in the order of `OPERATIONS`, with a positive sign, or, plus
        14, with a negative one.
    magnitude : int
        0 … 30, of every operation.

    Returns
    -------
    Tensor
        uint8 `[B, C, H, W]`.

    Examples
    --------
    >>> images = torch.full((2, 1, 1, 1), 100, dtype=torch.uint8)
    >>> brightness = list(OPERATIONS).index("brightness")
    >>> randaugment(images, torch.tensor([[brightness, brightness + 14]]), magnitude=10).flatten().tolist()
    [130, 70]
    """
    operations = list(OPERATIONS.values())
    for row in choices:
        result = torch.empty_like(images)
        for choice in row.unique().tolist():
            index = on_device((row == choice).nonzero().flatten(), images.device)
            negative, kind = divmod(choice, len(operations))
            share = (-1 if negative else 1) * magnitude / BINS
            result[index] = operations[kind](images[index], share)
        images = result
    return images
