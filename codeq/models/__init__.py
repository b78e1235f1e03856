"""Networks that codeq trains out of the box; `MODELS` maps names to factories ``(num_classes, ...) -> Module``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from codeq.common.registry import Registry
from codeq.models.cifar_resnet import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from codeq.models.imagenet import resnet18, resnet50
from codeq.models.mlp import CifarMLP
from codeq.models.vit import vit

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
MODELS["resnet20"] = resnet20
MODELS["resnet32"] = resnet32
MODELS["resnet44"] = resnet44
MODELS["resnet56"] = resnet56
MODELS["resnet110"] = resnet110
MODELS["resnet18"] = resnet18
MODELS["resnet50"] = resnet50
MODELS["vit"] = vit
MODELS["mlp"] = CifarMLP

__all__ = [
    "MODELS", "CifarMLP", "CifarResNet", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
    "resnet18", "resnet50", "vit",
]  # fmt: skip
