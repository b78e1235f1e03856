"""Pure functions on batches of images; those for training need no synchronization with a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # images per step where a float copy of a whole data set would not fit into memory


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`; a CUDA GPU copies it when it comes to it, and the host does not wait.

    Examples
    --------
    >>> on_device(torch.tensor([1, 2]), torch.device("cpu")).tolist()
    [1, 2]
    """
    # Apple's GPU would read memory that Python may have freed by then, and compute with wrong numbers; CUDA has taken
    # what is not pinned when the call returns.
    return tensor.to(device, non_blocking=device.type == "cuda")


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad images with black, crop a window of the original size from each, and mirror some of the windows.

    Parameters
    ----------
    images : Tensor
        `[B, C, H, W]`.
    top, left : Tensor
        int64 `[B]`: upper left corner of each window in its padded image, 0 … ``2 * padding`` (pixels).
    flip : Tensor
        bool `[B]`: which windows are mirrored left to right.
    padding : int
        Width of the black border on each side, in pixels.

    Returns
    -------
    Tensor
        `[B, C, H, W]`, of the dtype of `images`.

    Examples
    --------
    >>> image = torch.tensor([[1, 2], [3, 4]]).view(1, 1, 2, 2)
    >>> one = torch.tensor([1])
    >>> crop_and_flip(image, top=one, left=2 * one, flip=one.bool(), padding=1).tolist()
    [[[[0, 2], [0, 4]]]]
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    # A view of every possible window, `[B, C, 2p+1, 2p+1, H, W]`: one indexing operation picks a window per image,
    # with no copy but the result. torchvision's `crop` takes one window for the whole batch.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(len(images), device=images.device), :, top, left]
    return torch.where(flip.view(-1, 1, 1, 1), cropped.flip(3), cropped)


def cut_out(images: Tensor, row: Tensor, column: Tensor, side: int) -> None:
    """Set a square of each image to 0, in place: cutout, arXiv 1708.04552.

    Parameters
    ----------
    images : Tensor
        Normalized, `[B, C, H, W]`: 0 is the mean of the training images.
    row, column : Tensor
        int64 `[B]`: centre of each square, 0 … H - 1 and 0 … W - 1. What lies outside of its image is cut off.
    side : int
        Of the squares, in pixels. The centre of an even one is the pixel below and right of its middle.

    Examples
    --------
    >>> images = torch.ones(1, 1, 3, 4)
    >>> cut_out(images, torch.tensor([0]), torch.tensor([2]), 2)
    >>> images[0, 0].tolist()
    [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """

    def inside(length: int, centre: Tensor) -> Tensor:
        distance = torch.arange(length, device=images.device) - (centre[:, None] - side // 2)
        return (distance >= 0) & (distance < side)

    rows, columns = inside(images.shape[2], row), inside(images.shape[3], column)
    images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return float32 ``(images / 255 - mean) / std`` of uint8 `images` `[B, C, H, W]`, with `mean` and `std` `[C]`.

    Examples
    --------
    >>> normalize(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), torch.tensor([0.5]), torch.tensor([0.25])).item()
    2.0
    """
    return images.float().sub_((255 * mean).view(-1, 1, 1)).div_((255 * std).view(-1, 1, 1))


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of uint8 `images` `[N, C, H, W]`.

    Both are float32 `[C]`, of pixel values in 0 … 1, on the device of `images`.

    Examples
    --------
    >>> mean, std = channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    >>> mean.tolist(), std.tolist()
    ([0.5], [0.5])
    """
    # From the histogram: exact, and therefore bitwise the same for every number of threads. On the CPU, because Apple's
    # GPU has no float64.
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64, device="cpu")
    for chunk in images.cpu().split(CHUNK):
        counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in chunk.unbind(1)])
    share = counts / counts.sum(1, keepdim=True)
    level = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    mean = share @ level
    variance = (share * (level - mean[:, None]) ** 2).sum(1)
    std = variance.sqrt().clamp(min=1 / 255)  # no division by zero for a constant channel
    return mean.float().to(images.device), std.float().to(images.device)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize square `images` `[N, C, H, H]` (values 0 … 255) bilinearly to uint8 `[N, C, size, size]`.

    Shrinking averages over the source pixels of each result (antialiasing).

    Examples
    --------
    >>> resize(torch.tensor([0.0, 100.0, 0.0, 100.0]).view(1, 1, 2, 2), 4)[0, 0, 0].tolist()
    [0, 25, 75, 100]
    """
    resized = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8, device="cpu")
    for source, target in zip(images.split(CHUNK), resized.split(CHUNK), strict=True):
        target.copy_(
            F.interpolate(source.float(), (size, size), mode="bilinear", antialias=True).round_().clamp_(0, 255)
        )
    return resized
