"""Base of all widgets: controls, a figure and its text summary."""

from __future__ import annotations

import base64
import gc
import io
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

import ipywidgets  # type: ignore[import-untyped]

from codeq.plots.style import DRAWING
from codeq.plots.theme import is_dark
from codeq.widgets.background import LatestTask
from codeq.widgets.parts import close_parts
from codeq.widgets.picture import Picture
from codeq.widgets.stylesheet import STYLESHEET

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Located = TypeVar("Located")
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
    """Return `png` of the figure ``draw(*state)``, see `render_located`.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> render(lambda width: Figure((width, 1)), 2) == png(Figure((2, 1)))
    True
    """
    return render_located(draw, lambda _: None, *state)[0]


class PictureCache:
    """Results of a function that draws, for the last states that it was called with and for each theme.

    Parameters
    ----------
    size : int
        Number of results.
    draw : callable
        Of hashable arguments.

    Examples
    --------
    >>> pictures = PictureCache(8, lambda *state: print("drawn") or state)
    >>> pictures(1, 2), pictures(1, 2)
    drawn
    ((1, 2), (1, 2))
    """

    def __init__(self, size: int, draw: Callable[..., Any]) -> None:
        self._drawn = lru_cache(maxsize=size)(lambda _theme, *state: draw(*state))

    def __call__(self, *state: Any) -> Any:
        """Return the result for a state in the theme of now."""
        return self._drawn(is_dark(), *state)

    def cache_clear(self) -> None:
        """Forget all results."""
        self._drawn.cache_clear()


def render_located(
    draw: Callable[..., Figure], locate: Callable[[Figure], Located], *state: Any
) -> tuple[bytes, Located]:
    """Return `png` of the figure ``draw(*state)`` and what `locate` returns for it once it is drawn.

    A figure consists of thousands of objects in reference cycles. Collecting the young generations right away takes
    some milliseconds; otherwise about every tenth redraw waits half a second for a full collection.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> render_located(lambda width: Figure((width, 1)), lambda figure: figure.dpi, 2)[1]
    100.0
    """
    with DRAWING:
        enabled = gc.isenabled()
        gc.disable()
        try:
            figure = draw(*state)
            image = png(figure)
            located = locate(figure)
            del figure
            return image, located
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


class Panel(ipywidgets.VBox):
    """Controls, a figure and its text summary: side by side where there is room, else one below the other.

    Where no widgets run (on GitHub, in an untrusted notebook), the figure is shown as a static image instead.

    Parameters
    ----------
    controls : sequence of widgets
        From top to bottom.
    below : sequence of widgets
        Below the three.
    on_click : callable, optional
        Called with the position of a click on the figure, see `Picture`.

    Attributes
    ----------
    image : Picture
        The figure, as PNG.
    text : HTML
        Text summary of the figure.
    """

    def __init__(
        self,
        controls: Sequence[Any],
        below: Sequence[Any] = (),
        on_click: Callable[[float, float], object] | None = None,
    ) -> None:
        column = ipywidgets.VBox(controls)
        column.add_class("codeq-controls")
        self.image = Picture(on_click)
        self.text = ipywidgets.HTML(layout={"margin": "0"})
        self.text.add_class("codeq-summary")
        grid = ipywidgets.Box([column, self.image, self.text])
        grid.add_class("codeq-grid")
        style = ipywidgets.HTML(STYLESHEET, layout={"display": "none"})
        super().__init__([style, grid, *below])
        self.add_class("codeq-panel")
        self._background = LatestTask()
        self.showing = threading.RLock()  # held while something new is shown, also by computations in the background

    def show(self, image: bytes, lines: Sequence[str], table: str = "", described: int = 1) -> None:
        """Show a figure and its summary, see `paragraphs`; the summary alone if the figure is empty.

        The first `described` lines are the text alternative of the figure.
        """
        with self.showing:
            self.image.show(image, " ".join(lines[:described]))
            self.text.value = paragraphs(lines, table)

    def close(self) -> None:
        """Cancel what is computed in the background, and close the panel with all of its parts."""
        if self.comm is None:  # closed before, or not even complete
            return
        self._background.cancel()
        close_parts(self)
        super().close()

    def figure(self) -> Figure:
        """Return the displayed figure."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        static = self.image.value or render(self.figure)
        return super()._repr_mimebundle_(**kwargs) | {"image/png": base64.b64encode(static).decode("ascii")}
