"""Networks that codeq trains out of the box; `MODELS` maps names to factories ``(num_classes, ...) -> Module``."""

from codeq.models.build import MODELS, build_model
from codeq.models.cifar_resnet import CifarResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from codeq.models.imagenet import resnet18, resnet50
from codeq.models.lenet import LeNet5
from codeq.models.mlp import CifarMLP
from codeq.models.vit import vit

__all__ = [
    "MODELS", "CifarMLP", "CifarResNet", "LeNet5", "build_model", "resnet20", "resnet32", "resnet44", "resnet56",
    "resnet110", "resnet18", "resnet50", "vit",
]  # fmt: skip
