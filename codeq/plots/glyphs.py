"""Characters that the font of the figures does not have, and matplotlib draws as boxes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Suppress matplotlib's warnings of characters without a glyph: one for each, in each figure and format."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        yield


def unknown_characters(figure: Figure) -> set[str]:
    """Return the characters of a figure that the default font does not have, those of names of layers, say.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> _ = figure.text(0, 0, "é, ±, 化")
    >>> unknown_characters(figure)
    {'化'}
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.text import Text

    characters: set[str] = set().union(*(text.get_text() for text in figure.findobj(Text)))
    foreign = {character for character in characters if not character.isascii()}
    font = get_font(findfont(FontProperties())) if foreign else None
    return {character for character in foreign if font and not font.get_char_index(ord(character))}


def warn_of_unknown(characters: Collection[str]) -> None:
    """Log one warning that names `characters`, if there are any."""
    if characters:
        named = " ".join(sorted(characters))
        logger.warning("the font of the figures does not have these characters, drawn as boxes: %s", named)
