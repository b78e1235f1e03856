"""Interface of the services that log a run, and conversion of figures to images."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from codeq.runs.tracking import Sink

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunSink(Sink, Protocol):
    """A `Sink` with resources that stay open from before the first epoch until the run ends, in whatever state."""

    def close(self, exit_code: int) -> None:
        """Flush pending data and close the sink; `exit_code` is 0 for a finished run. A second call does nothing."""


def picture(figure: Figure) -> Image.Image:
    """Render `figure` as an RGB image, as it would be saved.

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
