"""Multi-layer perceptron for images of 32×32 pixels."""

from __future__ import annotations

from torch import Tensor, nn


class CifarMLP(nn.Module):
    """Fully connected network 3072 → 120 → 84 → 10 with ReLU.

    Parameters
    ----------
    num_classes : int
        Number of outputs.

    Examples
    --------
    >>> import torch
    >>> CifarMLP()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3 * 32 * 32, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[N, 3, 32, 32]` to logits `[N, num_classes]`."""
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x.flatten(1))))))
