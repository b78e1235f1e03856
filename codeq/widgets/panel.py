"""Base of all widgets: controls at the top, below them a figure beside its text summary."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
import traitlets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE_WIDTH = 640  # pixels; fits beside the summary on a laptop
DESCRIPTION = {"description_width": "120px"}


def png(figure: Figure) -> bytes:
    """Render `figure` as PNG; equal figures give equal bytes.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> png(Figure())[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    # Fastest compression: an image is sent once, usually to a browser on the same machine.
    figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def render(draw: Callable[..., Figure], *state: Any) -> bytes:
    """Return `png` of the figure ``draw(*state)``, without interruption by the garbage collector.

    A figure consists of thousands of objects in reference cycles. Collecting the young generations right away takes
    some milliseconds; otherwise about every tenth redraw waits half a second for a full collection.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> render(lambda width: Figure((width, 1)), 2) == png(Figure((2, 1)))
    True
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return png(draw(*state))
    finally:
        gc.collect(1)  # the figure is no longer referenced
        if enabled:
            gc.enable()


def paragraphs(lines: Sequence[str], table: str = "") -> str:
    """Return lines of plain text as HTML, the first one bold, followed by an HTML table.

    Examples
    --------
    >>> paragraphs(["a < b", "c"])
    '<div style="line-height:1.5"><b>a &lt; b</b><p style="margin:6px 0">c</p></div>'
    """
    first, *rest = map(escape, lines)
    below = "".join(f'<p style="margin:6px 0">{line}</p>' for line in rest)
    return f'<div style="line-height:1.5"><b>{first}</b>{below}{table}</div>'


def slider(kind: type[Any], description: str, **settings: Any) -> Any:
    """Return a slider that reports its value on release only."""
    layout = ipywidgets.Layout(width="440px", max_width="100%")
    return kind(description=description, continuous_update=False, style=DESCRIPTION, layout=layout, **settings)


class Picture(ipywidgets.Image):
    """PNG with an alternative text.

    `ipywidgets.Image` has no text for screen readers: its tooltip becomes the title of the picture, by which they name
    it, but only if the widget has a description.

    Parameters
    ----------
    layout : Layout
        As of all widgets.
    """

    description = traitlets.Unicode("").tag(sync=True)

    def __init__(self, layout: ipywidgets.Layout) -> None:
        super().__init__(format="png", layout=layout)

    def show(self, image: bytes, text: str) -> None:
        """Show a PNG with its alternative text, or hide the picture if the PNG is empty."""
        self.value, self.tooltip = image, text
        self.layout.display = "" if image else "none"


class Panel(ipywidgets.VBox):
    """Controls, and below them a figure beside its text summary.

    Parameters
    ----------
    controls, below : sequence of widgets
        Above and below figure and summary, from top to bottom.

    Attributes
    ----------
    image : Picture
        The figure, as PNG.
    text : HTML
        Text summary of the figure.
    """

    def __init__(self, controls: Sequence[Any], below: Sequence[Any] = ()) -> None:
        wide = ipywidgets.Layout(width=f"{IMAGE_WIDTH}px", max_width="100%", flex="0 1 auto", object_fit="contain")
        # Beside the figure where there is room, else below it.
        narrow = ipywidgets.Layout(flex="1 1 220px", min_width="220px", max_width="640px", margin="0 0 0 12px")
        self.image = Picture(wide)
        self.image.add_class("codeq-figure")
        self.text = ipywidgets.HTML(layout=narrow)
        self.text.add_class("codeq-summary")
        row = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="flex-start", width="100%")
        super().__init__([*controls, ipywidgets.HBox([self.image, self.text], layout=row), *below])

    def show(self, image: bytes, summary: Sequence[str], table: str = "") -> None:
        """Show a figure beside its summary and an HTML table, or these alone if the figure is empty.

        The first line of the summary is the alternative text of the figure, too.
        """
        self.image.show(image, summary[0])
        self.text.value = paragraphs(summary, table)
