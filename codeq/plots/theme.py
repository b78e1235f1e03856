"""Light and dark theme of all figures."""

from __future__ import annotations

from typing import Any

from codeq.common.errors import CodeqError, quote

LIGHT_GREY = "#E0E0E0"
THEMES: dict[str, dict[Any, Any]] = {
    "light": {},
    "dark": {
        **dict.fromkeys(["figure.facecolor", "axes.facecolor", "savefig.facecolor"], "none"),  # transparent
        **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], LIGHT_GREY),
    },
}
_current: dict[Any, Any] = {}


def set_theme(name: str) -> None:
    """Choose the theme of the figures that are drawn from now on, in plots, widgets and reports of this process.

    Parameters
    ----------
    name : {"light", "dark"}
        ``dark``: light text and lines on a transparent background, for pages and notebooks with a dark theme. The
        colours of the data are the same.

    Raises
    ------
    CodeqError
        For another name.

    Examples
    --------
    >>> set_theme("dark")
    >>> set_theme("light")
    """
    if name not in THEMES:
        raise CodeqError(f"theme {quote(name)} is unknown; one of {', '.join(THEMES)}")
    _current.clear()
    _current.update(THEMES[name])


def theme_settings() -> dict[Any, Any]:
    """Return matplotlib's settings of the current theme."""
    return _current


def is_dark() -> bool:
    """Return whether figures are drawn for dark pages."""
    return bool(_current)


def ink() -> str:
    """Return the colour of text and lines in the current theme."""
    return str(_current.get("text.color", "black"))


def paper() -> str:
    """Return the colour that hides what is behind a hollow mark; in a transparent figure nothing is hidden."""
    return str(_current.get("axes.facecolor", "white"))
