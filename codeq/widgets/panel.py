"""What all widgets share: controls above, a picture and its summary in words side by side below."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_WIDTH = 640  # pixels; with the summary beside it, it fits the width of a laptop
DESCRIPTION = {"description_width": "120px"}


def png(figure: Figure) -> bytes:
    """Return `figure` as the bytes of a PNG; the same figure gives the same bytes.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> png(Figure())[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    # The fastest compression: a picture goes to a browser once, usually on the same machine.
    figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def drawn(draw: Callable[..., Figure], *state: Any) -> bytes:
    """Return `png` of what `draw` makes of `state`, without a pause for garbage collection.

    A figure is thousands of objects in circles. Collected while still young they cost some milliseconds; left to
    Python, each tenth redraw or so waits half a second while everything that was ever imported is looked through.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> drawn(lambda width: Figure((width, 1)), 2) == png(Figure((2, 1)))
    True
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return png(draw(*state))
    finally:
        gc.collect(1)  # the figure is no longer in use here
        if enabled:
            gc.enable()


def paragraphs(lines: Sequence[str], table: str = "") -> str:
    """Return lines of plain text as HTML, the first one bold, and after them a table that is HTML already.

    Examples
    --------
    >>> paragraphs(["a < b", "c"])
    '<div style="line-height:1.5"><b>a &lt; b</b><p style="margin:6px 0">c</p></div>'
    """
    first, *rest = map(escape, lines)
    below = "".join(f'<p style="margin:6px 0">{line}</p>' for line in rest)
    return f'<div style="line-height:1.5"><b>{first}</b>{below}{table}</div>'


def slider(kind: type[Any], description: str, **settings: Any) -> Any:
    """Return a slider that reports where it was let go, not every place on the way."""
    layout = ipywidgets.Layout(width="440px", max_width="100%")
    return kind(description=description, continuous_update=False, style=DESCRIPTION, layout=layout, **settings)


class Panel(ipywidgets.VBox):
    """Controls, and below them a picture beside its summary.

    Parameters
    ----------
    controls : sequence of widgets
        From top to bottom.

    Attributes
    ----------
    image : Image
        The picture, as PNG.
    text : HTML
        The summary in words of what the picture shows.
    """

    def __init__(self, controls: Sequence[Any]) -> None:
        wide = ipywidgets.Layout(width=f"{PICTURE_WIDTH}px", max_width="100%", flex="0 1 auto", object_fit="contain")
        # Beside the picture where there is room, else below it.
        narrow = ipywidgets.Layout(flex="1 1 220px", min_width="220px", max_width="640px", margin="0 0 0 12px")
        self.image = ipywidgets.Image(format="png", layout=wide)
        self.text = ipywidgets.HTML(layout=narrow)
        self.text.add_class("codeq-summary")
        row = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="flex-start", width="100%")
        super().__init__([*controls, ipywidgets.HBox([self.image, self.text], layout=row)])

    def show(self, picture: bytes, summary: str) -> None:
        """Show a picture and its summary."""
        self.image.value, self.text.value = picture, summary
        self.image.layout.display = "" if picture else "none"
