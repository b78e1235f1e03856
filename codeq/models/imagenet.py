"""ImageNet ResNets of torchvision, with or without its pretrained weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from codeq.models.weights import checkpoint_path, loading_weights


def resnet18(num_classes: int = 1000, pretrained: bool = False) -> nn.Module:
    """Build torchvision's ResNet-18: 1,814,073,344 MACs at 224×224 with 1000 classes.

    Parameters
    ----------
    num_classes : int
        Number of outputs; with pretrained weights and another number than 1000, the classifier is a new one.
    pretrained : bool
        Whether to start from the ImageNet weights ``IMAGENET1K_V1``.

    Raises
    ------
    CodeqError
        If the pretrained weights are missing and cannot be downloaded, or their file is damaged.

    Examples
    --------
    >>> import torch
    >>> resnet18(num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    from torchvision import models  # takes a second to import, needed by these networks only

    return _build(models.resnet18, models.ResNet18_Weights.IMAGENET1K_V1, num_classes, pretrained)


def resnet50(num_classes: int = 1000, pretrained: bool = False) -> nn.Module:
    """Build torchvision's ResNet-50: 4,089,184,256 MACs at 224×224 with 1000 classes; see `resnet18`."""
    from torchvision import models

    return _build(models.resnet50, models.ResNet50_Weights.IMAGENET1K_V1, num_classes, pretrained)


def _build(architecture: Any, weights: Any, num_classes: int, pretrained: bool) -> nn.Module:
    if not pretrained:
        return architecture(num_classes=num_classes)
    with loading_weights(weights.url, checkpoint_path(weights.url)):
        model = architecture()
        state = weights.get_state_dict(map_location="cpu", weights_only=True)  # from the file, which is there
        model.load_state_dict(state)
    if num_classes != model.fc.out_features:
        model.fc = nn.Linear(model.fc.in_features, num_classes)
    return model
