"""One image file: how it is decoded, and the squares that are cut out of it for training and for evaluation.

Both recipes are ImageNet's, the ones that torchvision calls RandomResizedCrop, and Resize with CenterCrop.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from codeq.common.errors import CodeqError

SCALE = (0.08, 1.0)  # area of a training window / area of the image
RATIO = (3 / 4, 4 / 3)  # its width / its height
TRIES = 10  # windows drawn before the largest one in the centre is taken, for very long images
EVALUATION_ZOOM = 256 / 224  # shorter side of the resized image / side of the centre that is cut out of it

Window = tuple[int, int, int, int]


def decode(path: str) -> Image.Image:
    """Return the image in the file `path`, converted to RGB.

    Raises
    ------
    CodeqError
        If it cannot be read, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # 16 bits or float: Pillow would clip them to white
                raise CodeqError(f"{path} has pixels of mode {image.mode}: only 8-bit images can be loaded")
            # By way of RGBA, because Pillow warns about a palette with transparency otherwise.
            return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    except CodeqError:
        raise
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error
        raise CodeqError(f"{path} cannot be read as an image: {error}") from error


def training_view(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Return a random window of `image`, resized to `size` × `size` pixels and mirrored in one case of two.

    Examples
    --------
    >>> training_view(Image.new("RGB", (30, 20)), 8, np.random.default_rng(0)).size
    (8, 8)
    """
    window = random_window(*image.size, random)
    view = image.crop(window).resize((size, size), Image.Resampling.BILINEAR)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else view


def evaluation_view(image: Image.Image, size: int) -> Image.Image:
    """Return the centre of `image`, `size` × `size` pixels out of a shorter side of `size` · 256 / 224.

    Examples
    --------
    >>> evaluation_view(Image.new("RGB", (30, 20)), 8).size
    (8, 8)
    """
    shorter = round(size * EVALUATION_ZOOM)
    width, height = (int(shorter * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def random_window(width: int, height: int, random: np.random.Generator) -> Window:
    """Draw a window of an image: its area uniformly, its shape uniformly on a logarithmic scale, then its place.

    Parameters
    ----------
    width, height : int
        Of the image, in pixels.
    random : numpy.random.Generator
        What it is drawn from.

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
