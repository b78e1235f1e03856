"""What every follower of a run offers beyond the tracker's needs, and how figures reach it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from codeq.runs.tracking import Sink

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunSink(Sink, Protocol):
    """A `Sink` that holds something open, from before the first epoch until the run ends, however it ends."""

    def close(self, exit_code: int) -> None:
        """Hand over what is left and let go; `exit_code` is 0 for a finished run. A second call does nothing."""


def picture(figure: Figure) -> Image.Image:
    """Draw `figure` as it would be saved, in red, green and blue.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> image = picture(Figure(figsize=(2, 1), dpi=100))
    >>> image.size, image.mode
    ((200, 100), 'RGB')
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
