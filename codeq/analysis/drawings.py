"""Figures with a caption, for notebooks and files."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codeq.common.checks import check_choice, check_collection
from codeq.common.collection import existing_objects_exempt
from codeq.common.errors import CodeqError
from codeq.common.paths import make_folder, writing
from codeq.plots.glyphs import unknown_characters, warn_of_unknown
from codeq.plots.style import default_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FileFormat = Literal["png", "svg", "pdf"]
DEFAULT_FORMATS: tuple[FileFormat, ...] = ("png", "svg")
DPI = 200  # of PNG files, and of rasterized parts of SVG and PDF files
# Without the time of writing, so that equal figures give equal bytes.
METADATA: dict[FileFormat, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of a run, or the reason why there is none.

    Parameters
    ----------
    name : str
        Name of its files.
    caption : str
        Description in one sentence.
    figure : Figure or None
        The figure; `None`, too, where only the content of its files is left, see `without_figure`.
    missing : str
        Reason why there is no figure; empty if there is one.
    """

    name: str
    caption: str
    figure: Figure | None
    missing: str = ""
    _rendered: dict[tuple[FileFormat, int], bytes] = field(default_factory=dict, init=False)
    _unknown: set[str] = field(default_factory=set, init=False)  # characters that its font does not have

    def __repr__(self) -> str:
        return f"{self.name}: {self.missing and 'not drawn, '}{self.missing or self.caption}"

    def _repr_png_(self) -> tuple[bytes, dict[str, str]] | None:
        """Show the figure in a notebook; pages that nbconvert makes of it have the caption as alt text."""
        return (self.render("png", dpi=110), {"alt": self.caption}) if self.figure else None

    def render(self, kind: FileFormat, dpi: int = DPI) -> bytes:
        """Return the content of a file with the figure; equal figures give equal bytes.

        Raises
        ------
        CodeqError
            If there is no figure, and no content of such a file is left.
        """
        if (kind, dpi) not in self._rendered:  # the report embeds what was written as a file
            if self.figure is None:
                raise CodeqError(f"{self.name}: {self.missing or f'only its files are left, none of them {kind}'}")
            buffer = io.BytesIO()
            with default_style(), existing_objects_exempt():
                self._unknown.update(unknown_characters(self.figure))
                _lay_out(self.figure)
                # Files of level 3 are a sixth larger than those of the default, 6, and compressed in half the time.
                settings: dict[str, Any] = {"pil_kwargs": {"compress_level": 3}} if kind == "png" else {}
                self.figure.savefig(buffer, format=kind, dpi=dpi, metadata=METADATA[kind], **settings)
            self._rendered[kind, dpi] = buffer.getvalue()
        return self._rendered[kind, dpi]

    def without_figure(self, formats: Sequence[FileFormat]) -> Drawing:
        """Return `rendered` with the content of the files alone, which can be pickled quickly."""
        drawing = self.rendered(formats)
        rest = Drawing(drawing.name, drawing.caption, None, drawing.missing)
        rest._rendered.update(drawing._rendered)
        rest._unknown.update(drawing._unknown)
        return rest

    def rendered(self, formats: Sequence[FileFormat]) -> Drawing:
        """Return the drawing with the content of its files in `formats`, or with the reason why rendering fails.

        Ticks and texts are created while a figure is rendered: what they do not accept loses that figure alone.
        """
        try:
            for kind in () if self.missing else formats:
                self.render(kind)
        except Exception as error:
            reason = " ".join(str(error).split())  # errors in formulas have several lines
            return Drawing(self.name, self.caption, None, f"{type(error).__name__}: {reason}")
        return self


def _lay_out(figure: Figure) -> None:
    """Arrange the axes once for all formats: constrained layout takes longer than drawing, and savefig repeats it."""
    engine = figure.get_layout_engine()
    if engine is not None:
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if not axis.get_label_text():  # otherwise its place is derived from all tick labels, each time
                    axis.set_label_coords(0, 0)
        figure.set_dpi(DPI)
        engine.execute(figure)
        figure.set_layout_engine(None)


def save_drawings(
    drawings: Mapping[str, Drawing], folder: Path, formats: Sequence[FileFormat] = DEFAULT_FORMATS
) -> list[Path]:
    """Write the figures among `drawings` into `folder`, in each of the formats.

    Text in SVG and PDF files is stored as text. A figure that cannot be rendered is left out with a warning, and one
    warning names the characters, of names of runs for instance, that the font of the figures does not have.

    Raises
    ------
    CodeqError
        For a format that there is not, and if `folder` cannot be written.
    """
    check_formats(formats)
    require_writable(folder)
    written = []
    for drawing in drawings.values():
        content = drawing.rendered(formats)
        if content.missing and not drawing.missing:
            logger.warning("not drawn: %s: %s", content.name, content.missing)
        if not content.missing:
            for kind in formats:
                path = folder / f"{drawing.name}.{kind}"
                with writing(path):
                    path.write_bytes(content.render(kind))
                written.append(path)
    warn_of_unknown(set().union(*(drawing._unknown for drawing in drawings.values())))
    return written


def check_formats(formats: Sequence[FileFormat]) -> None:
    """Raise a `CodeqError` unless `formats` are formats of files of figures.

    Examples
    --------
    >>> check_formats(["png", "jpg"])
    Traceback (most recent call last):
    ...
    codeq.CodeqError: formats='jpg': must be 'png' or 'svg' or 'pdf'
    """
    check_collection("formats", formats)
    for name in formats:
        check_choice("formats", name, FileFormat)


def require_writable(folder: Path) -> None:
    """Create `folder` if needed, and raise a `CodeqError` if no file can be written into it.

    Examples
    --------
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     require_writable(Path(file.name, "plots"))
    Traceback (most recent call last):
    ...
    codeq.CodeqError: .../plots cannot be a folder, because ... is a file
    """
    with writing(make_folder(folder)):
        tempfile.TemporaryFile(dir=folder).close()
