"""CIFAR ResNets of He et al. (arXiv 1512.03385, §4.2): three stages of 16, 32 and 64 channels."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from codeq.common.errors import CodeqError, quote

Shortcut = Literal["A", "B"]
# Written by docs/make_pretrained.py; its metadata say what it was trained on, how, and its accuracy.
RESNET20_WEIGHTS = Path(__file__).with_name("resnet20_cifar10.safetensors")


class ChannelPadShortcut(nn.Module):
    """Parameter-free shortcut (option A): every second pixel, with zero channels added on both sides.

    Parameters
    ----------
    pad : int
        Number of zero channels on each side, a quarter of the output channels.
    """

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to `[N, C + 2·pad, H/2, W/2]`."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut around them.

    Parameters
    ----------
    c_in, c_out : int
        Number of input and output channels.
    stride : int
        Stride of the first convolution.
    shortcut : {"A", "B"}
        Shortcut where the shape changes: channel padding (A) or a 1×1 convolution (B).
    """

    def __init__(self, c_in: int, c_out: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = (
                ChannelPadShortcut((c_out - c_in) // 2)
                if shortcut == "A"
                else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), nn.BatchNorm2d(c_out))
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, c_in, H, W]` to `[N, c_out, H/stride, W/stride]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of depth ``6 n + 2`` for small images.

    Parameters
    ----------
    blocks : int
        Number of blocks `n` in each of the three stages.
    num_classes : int
        Number of outputs.
    shortcut : {"A", "B"}
        See `BasicBlock`.

    Raises
    ------
    CodeqError
        For an unknown `shortcut`.

    Examples
    --------
    >>> import torch
    >>> resnet20()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, blocks: int, num_classes: int = 10, shortcut: Shortcut = "A") -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise CodeqError(f"shortcut={quote(shortcut)}: must be 'A' (channel padding) or 'B' (1×1 convolution)")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(blocks, 16, 16, 1, shortcut)
        self.layer2 = self._stage(blocks, 16, 32, 2, shortcut)
        self.layer3 = self._stage(blocks, 32, 64, 2, shortcut)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(blocks: int, c_in: int, c_out: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
        first = BasicBlock(c_in, c_out, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(c_out, c_out, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[N, 3, H, W]` to logits `[N, num_classes]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def resnet20(num_classes: int = 10, shortcut: Shortcut = "A", pretrained: bool = False) -> CifarResNet:
    """Build the CIFAR ResNet-20: 40,551,040 MACs at 32×32 with option-A shortcuts.

    Parameters
    ----------
    num_classes : int
        Number of outputs; with pretrained weights and another number than 10, the classifier is a new one.
    shortcut : {"A", "B"}
        See `BasicBlock`.
    pretrained : bool
        Whether to load the float weights that codeq contains, which were trained on the training images of CIFAR-10.

    Raises
    ------
    CodeqError
        For an unknown `shortcut`, and for pretrained weights with another one than "A".

    Examples
    --------
    >>> sum(p.numel() for name, p in resnet20().named_parameters() if p.ndim > 1)
    268336
    """
    model = CifarResNet(3, num_classes, shortcut)
    if pretrained:
        if shortcut != "A":
            raise CodeqError(f"shortcut={quote(shortcut)}: the pretrained ResNet-20 has shortcuts 'A'")
        from safetensors.torch import load_file  # `import codeq` does without it

        weights = load_file(RESNET20_WEIGHTS)
        if num_classes != len(weights["linear.bias"]):
            weights |= {f"linear.{name}": tensor for name, tensor in model.linear.state_dict().items()}
        model.load_state_dict(weights)
    return model


def resnet32(num_classes: int = 10, shortcut: Shortcut = "A") -> CifarResNet:
    """Build the CIFAR ResNet-32, see `resnet20`."""
    return CifarResNet(5, num_classes, shortcut)


def resnet44(num_classes: int = 10, shortcut: Shortcut = "A") -> CifarResNet:
    """Build the CIFAR ResNet-44, see `resnet20`."""
    return CifarResNet(7, num_classes, shortcut)


def resnet56(num_classes: int = 10, shortcut: Shortcut = "A") -> CifarResNet:
    """Build the CIFAR ResNet-56, see `resnet20`."""
    return CifarResNet(9, num_classes, shortcut)


def resnet110(num_classes: int = 10, shortcut: Shortcut = "A") -> CifarResNet:
    """Build the CIFAR ResNet-110, see `resnet20`."""
    return CifarResNet(18, num_classes, shortcut)
