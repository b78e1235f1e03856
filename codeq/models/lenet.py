"""LeNet-5, the smallest convolutional network of the literature on compression."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from codeq.common.errors import CodeqError

SMALLEST = 16  # pixels that two convolutions and two poolings reduce to one


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and maximum pooling, for colour images.

    Convolutions of 5×5 to 6 and 16 channels, each with pooling to half, then fully connected layers to 120, 84 and the
    classes. At 32 pixels these are the sizes of the original, except for the three channels of its input and for the
    second convolution, which is complete.

    Parameters
    ----------
    num_classes : int
        Number of outputs.
    img_size : int
        Height and width of the images, in pixels, at least 16.

    Raises
    ------
    CodeqError
        For smaller images.

    Examples
    --------
    >>> import torch
    >>> model = LeNet5()
    >>> model(torch.zeros(2, 3, 32, 32)).shape, model.fc1.in_features
    (torch.Size([2, 10]), 400)
    """

    def __init__(self, num_classes: int = 10, img_size: int = 32) -> None:
        super().__init__()
        if img_size < SMALLEST:
            raise CodeqError(f"img_size={img_size}: lenet5 needs images of at least {SMALLEST} pixels")
        side = ((img_size - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[N, 3, img_size, img_size]` to logits `[N, num_classes]`."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))
        return self.fc3(x)
