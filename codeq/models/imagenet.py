"""The ImageNet ResNets of torchvision, with or without its pretrained weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from codeq.common.errors import CodeqError
from codeq.models.weights import weights_file


def resnet18(num_classes: int = 1000, pretrained: bool = False) -> nn.Module:
    """Build torchvision's ResNet-18: 1,814,073,344 MACs at 224×224 with 1000 classes.

    Parameters
    ----------
    num_classes : int
        Outputs; other than 1000, pretrained weights get a new classifier.
    pretrained : bool
        Whether to start from the ImageNet weights ``IMAGENET1K_V1``.

    Raises
    ------
    CodeqError
        If the pretrained weights can neither be found nor downloaded, or their file is damaged.

    Examples
    --------
    >>> resnet18(num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    from torchvision import models  # a second, which `import codeq` does not pay

    return _build(models.resnet18, models.ResNet18_Weights.IMAGENET1K_V1, num_classes, pretrained)


def resnet50(num_classes: int = 1000, pretrained: bool = False) -> nn.Module:
    """Build torchvision's ResNet-50: 4,089,184,256 MACs at 224×224 with 1000 classes; see `resnet18`."""
    from torchvision import models

    return _build(models.resnet50, models.ResNet50_Weights.IMAGENET1K_V1, num_classes, pretrained)


def _build(architecture: Any, weights: Any, num_classes: int, pretrained: bool) -> nn.Module:
    if not pretrained:
        return architecture(num_classes=num_classes)
    # torchvision names its files <architecture>-<first digits of the checksum>.pth.
    path = weights_file(weights.url, sha256=weights.url.rpartition("-")[2].removesuffix(".pth"))
    model = architecture()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a cut or foreign file makes torch.load stumble over
        raise CodeqError(
            f"{path} does not hold the weights of {weights.url} ({type(error).__name__}); delete it"
        ) from error
    if num_classes != model.fc.out_features:
        model.fc = nn.Linear(model.fc.in_features, num_classes)
    return model
