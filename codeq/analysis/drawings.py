"""A figure with its caption, or the reason why there is none; it shows itself in a notebook and becomes files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200  # of saved pictures, and of the parts of a vector file that are pixels


@dataclass(frozen=True, eq=False)
class Drawing:
    """One figure of a run, or why there is none.

    Parameters
    ----------
    name : str
        Its files are called so.
    caption : str
        What it shows, in a sentence.
    figure : Figure or None
        The figure.
    missing : str
        Why there is none; empty if there is.
    """

    name: str
    caption: str
    figure: Figure | None
    missing: str = ""

    def __repr__(self) -> str:
        return f"{self.name}: {self.missing and 'not drawn, '}{self.missing or self.caption}"

    def _repr_png_(self) -> bytes | None:
        """Show the figure in a notebook."""
        return self.render("png", dpi=110) if self.figure else None

    def render(self, kind: Literal["png", "svg"], dpi: int = DPI) -> bytes:
        """Return the figure as a file; the same figure gives the same bytes."""
        import matplotlib

        assert self.figure is not None, "ask `missing` first"
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "codeq"}):
            self.figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
        return buffer.getvalue()


def save_drawings(drawings: Mapping[str, Drawing], folder: Path) -> list[Path]:
    """Write the figures among `drawings` into `folder`, as PNG and as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for drawing in drawings.values():
        if drawing.figure:
            for kind in ("png", "svg"):
                path = folder / f"{drawing.name}.{kind}"
                path.write_bytes(drawing.render(kind))
                written.append(path)
    return written
