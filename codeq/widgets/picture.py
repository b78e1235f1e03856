"""Picture of a widget with a text alternative, which reports clicks."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable
from html import escape
from struct import unpack
from typing import Any

import ipywidgets  # type: ignore[import-untyped]

from codeq.plots.theme import is_dark
from codeq.widgets.stylesheet import IMAGE_WIDTH

# ipywidgets has no event for a click on an image: the position is written into a hidden text field beside it, whose
# changes ipywidgets reports. The time makes a second click at the same place a change, too.
ON_CLICK = (
    "const box = this.getBoundingClientRect(), field = this.closest('.codeq-picture').querySelector('input');"
    "const at = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];"
    "field.value = [...at, Date.now()].join(' ');"
    "field.dispatchEvent(new Event('change', {bubbles: true}));"
)


class Picture(ipywidgets.Box):
    """A PNG with a text alternative; clicks on it are reported as fractions of its width and height.

    Parameters
    ----------
    on_click : callable, optional
        Called with the position ``(x, y)`` of a click, in 0 … 1 from the upper left corner.

    Attributes
    ----------
    value : bytes
        The PNG, empty while nothing is shown.
    alt : str
        Its text alternative.

    Examples
    --------
    >>> picture = Picture()
    >>> picture.show(b"", "nothing"), picture.layout.display
    (None, 'none')
    """

    def __init__(self, on_click: Callable[[float, float], object] | None = None) -> None:
        self.value, self.alt = b"", ""
        self._on_click = on_click
        self._html = ipywidgets.HTML(layout={"margin": "0", "width": "100%"})
        self._clicked = ipywidgets.Text(continuous_update=False, layout={"display": "none"})
        self._clicked.observe(self._report, "value")
        layout = {"width": "100%", "max_width": f"{IMAGE_WIDTH}px", "overflow": "hidden"}
        super().__init__([self._html, self._clicked], layout=layout)
        self.add_class("codeq-picture")

    def show(self, png: bytes, alt: str) -> None:
        """Show a PNG with its text alternative, or nothing if it is empty."""
        self.value, self.alt = png, alt
        self.layout.display = "" if png else "none"
        if not png:
            self._html.value = ""  # never an earlier picture
            return
        width, height = unpack(">II", png[16:24])  # of the header; reserves the room before the browser has decoded it
        clicks = f' onclick="{ON_CLICK}"' if self._on_click else ""
        kind = "codeq-figure codeq-clickable" if self._on_click else "codeq-figure"
        kind += " codeq-drawn-dark" if is_dark() else ""
        source = base64.b64encode(png).decode("ascii")
        self._html.value = (
            f'<img class="{kind}" alt="{escape(alt)}" width="{width}" height="{height}"{clicks} '
            f'src="data:image/png;base64,{source}">'
        )

    def _report(self, change: Any) -> None:
        with contextlib.suppress(ValueError):  # not written by a click
            x, y = map(float, change["new"].split(" ")[:2])
            if self._on_click:
                self._on_click(x, y)
