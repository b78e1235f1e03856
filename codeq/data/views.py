"""Decoding of one image file, and the square views of an image for training and for evaluation.

Both recipes are ImageNet's: torchvision's `RandomResizedCrop` with `RandomHorizontalFlip`, and `Resize` with
`CenterCrop`.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import numpy as np

from codeq.common.errors import CodeqError

if TYPE_CHECKING:  # Pillow and torchvision are imported where an image is read: checking a configuration needs none
    from PIL.Image import Image

SCALE = (0.08, 1.0)  # area of a training window / area of the image
RATIO = (3 / 4, 4 / 3)  # its width / its height
TRIES = 10  # windows drawn before the largest one in the centre is taken, for very long images
EVALUATION_ZOOM = 256 / 224  # shorter side of the resized image / side of the centre that is cropped from it

Window = tuple[int, int, int, int]


def printable(path: str) -> str:
    """Return a path that can be printed: bytes of its name that are not UTF-8 become ``�``.

    Examples
    --------
    >>> printable(os.fsdecode(bytes([99, 97, 102, 233])))  # café in Latin-1
    'caf�'
    """
    return os.fsencode(path).decode(errors="replace")


def decode(path: str) -> Image:
    """Return the image in the file `path`, converted to RGB.

    Raises
    ------
    CodeqError
        If it cannot be read, or has more than 8 bits per channel.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if has_wide_pixels(image):
                raise CodeqError(f"{printable(path)} has pixels of mode {image.mode}: only 8-bit images can be loaded")
            # Converted to RGBA first, because Pillow warns about a palette with transparency otherwise.
            return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    except CodeqError:
        raise
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error
        reason = str(error).encode(errors="replace").decode()
        raise CodeqError(f"{printable(path)} cannot be read as an image: {reason}") from error


def has_wide_pixels(image: Image) -> bool:
    """Return whether an image has pixels of 16 or 32 bits or floats, which Pillow would clip to white or black.

    Examples
    --------
    >>> from PIL import Image
    >>> [has_wide_pixels(Image.new(mode, (2, 2))) for mode in ("RGB", "I;16", "F")]
    [False, True, True]
    """
    return image.mode[0] in "IF"


def training_view(image: Image, size: int, random: np.random.Generator) -> Image:
    """Return a random window of `image`, resized to `size` × `size` pixels and mirrored with probability 1/2.

    Examples
    --------
    >>> from PIL import Image
    >>> training_view(Image.new("RGB", (30, 20)), 8, np.random.default_rng(0)).size
    (8, 8)
    """
    from torchvision.transforms.v2 import functional

    left, top, right, bottom = random_window(*image.size, random)
    view = functional.resized_crop(image, top, left, bottom - top, right - left, [size, size])
    return functional.horizontal_flip(view) if random.random() < 0.5 else view


def evaluation_view(image: Image, size: int) -> Image:
    """Return the centre of `image`, `size` × `size` pixels of a shorter side of `size` · 256 / 224.

    Examples
    --------
    >>> from PIL import Image
    >>> evaluation_view(Image.new("RGB", (30, 20)), 8).size
    (8, 8)
    """
    from torchvision.transforms.v2 import functional

    return functional.center_crop(functional.resize(image, [round(size * EVALUATION_ZOOM)]), [size, size])


def random_window(width: int, height: int, random: np.random.Generator) -> Window:
    """Draw a window of an image: its area uniformly, its shape uniformly on a logarithmic scale, then its position.

    torchvision's `RandomResizedCrop` draws in the same way, but from the global random state alone.

    Parameters
    ----------
    width, height : int
        Size of the image, in pixels.
    random : numpy.random.Generator
        Source of the random numbers.

    Returns
    -------
    tuple of int
        left, top, right, bottom

    Examples
    --------
    >>> random_window(1000, 10, np.random.default_rng(0))  # no legal window was drawn: the centre
    (493, 0, 506, 10)
    """
    # From `random()` alone, whose stream no version of NumPy changes.
    for _ in range(TRIES):
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * random.random())
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** random.random()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int((width - w + 1) * random.random()), int((height - h + 1) * random.random())
            return left, top, left + w, top + h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
