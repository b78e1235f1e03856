"""Networks for tests: with every kind of operation, for channel flow and compaction; and with an overwritten input."""

import torch
import torch.nn.functional as F
from torch import nn


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm shifts and statistics that no constant survives unnoticed, in float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.bias.data, -0.4)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model.double().eval()


class Doubling(nn.Module):
    """Two linear layers behind a flattening, on twice the input, which is overwritten."""

    def __init__(self, inputs: int, classes: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 6), nn.Linear(6, classes)

    def forward(self, x):
        return self.last(self.first(x.mul_(2).flatten(1)).tanh())


class TiedDecoder(nn.Module):
    """An autoencoder whose decoder uses the weights of the encoder."""

    def __init__(self):
        super().__init__()
        self.encoder, self.inner = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        return F.conv_transpose2d(self.inner(self.encoder(x).relu()).relu(), self.encoder.weight)


class MixedLayers(nn.Module):
    """The layers of a network with squeeze-and-excite, grouped, depthwise and transposed convolution and two branches.

    Derived classes say how they are called: on inputs `[N, 3, 8, 8]`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.side = nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")
        self.fc = nn.Linear(8 * 16, 5)


def shuffled(x: torch.Tensor) -> torch.Tensor:
    """Interleave two groups of channels, as ShuffleNet does."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class RunningMaximum(nn.Module):
    """A quantizer whose step follows the largest weight in training mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.tensor(1.0))

    def forward(self, w):
        if self.training:
            self.largest += 0.1 * (w.detach().abs().max() - self.largest)
        return (w / self.largest).round() * self.largest

    def get_bitwidth(self):
        return torch.tensor(3)


class Function(nn.Module):
    """A quantizer without bits that applies a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, w):
        return self.function(w)
