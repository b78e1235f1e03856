"""Parts of a widget that consists of others."""

from __future__ import annotations

from typing import Any

import ipywidgets  # type: ignore[import-untyped]


def close_parts(widget: ipywidgets.Widget) -> None:
    """Close everything that a widget consists of, but not the widget itself.

    ipywidgets keeps every widget that is not closed, with all that it refers to, also if it is no longer displayed.

    Examples
    --------
    >>> button = ipywidgets.Button()
    >>> box = ipywidgets.VBox([ipywidgets.HBox([button])])
    >>> close_parts(box)
    >>> button.comm is None, box.comm is None
    (True, False)
    """
    parts: list[Any] = [widget]
    for part in parts:  # which grows meanwhile
        near = (getattr(part, name, None) for name in ("layout", "style"))
        parts += [*getattr(part, "children", ()), *(each for each in near if each is not None)]
    for part in parts[1:]:
        part.close()
