"""Make the pictures of README.md and docs/ from a run: ``python docs/make_images.py [RUN]``, after ``make debug``.

Small PNGs in docs/images/: figures of the analysis, and what two of the widgets show.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from codeq.analysis import draw_figures, find_runs
from codeq.common.console import counter
from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.widgets import LivenessExplorer, WhatIf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = Path(__file__).parent / "images"
WIDTH = 800  # pixels: sharp in the column of a README, where a high-resolution screen shows two a point
COLORS = 256  # of a palette: half the bytes of full colour, and thin lines keep theirs
LARGEST = 150_000  # bytes: pictures in a repository are downloaded with every clone
FIGURES = ("training_curves", "layer_profile", "layer_costs", "weight_histograms")


def pictures(run: Run) -> dict[str, Callable[[], Figure]]:
    """Return what to draw of a run, by file name.

    Raises
    ------
    CodeqError
        If the run lacks what one of the figures needs.
    """
    drawings = draw_figures(run)

    def drawn(name: str) -> Figure:
        figure = drawings[name].figure
        if figure is None:
            raise CodeqError(f"{run.folder} is no run to show: {name}: {drawings[name].missing}")
        return figure

    return {name: lambda name=name: drawn(name) for name in FIGURES} | {  # type: ignore[misc]
        "liveness_explorer": lambda: LivenessExplorer(run).figure(),
        "what_if": lambda: moved(WhatIf(run)).figure(),
    }


def moved(widget: WhatIf) -> WhatIf:
    """Move the sliders of the widget: all layers at 3 bits, with a dead-zone of half their scale."""
    widget.bits.value, widget.dead_zone.value = 3, 0.5
    return widget


def small_png(figure: Figure) -> bytes:
    """Render a figure `WIDTH` pixels wide in `COLORS` colours.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> Image.open(io.BytesIO(small_png(Figure(figsize=(4, 2))))).size
    (800, 400)
    """
    rendered, written = io.BytesIO(), io.BytesIO()
    figure.savefig(rendered, format="png", dpi=2 * WIDTH / figure.get_figwidth())
    with Image.open(rendered) as image:
        height = round(WIDTH * image.height / image.width)
        small = image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(COLORS, dither=Image.Dither.NONE).save(written, format="png", optimize=True)
    return written.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures of one run and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="run folder (default: the newest in outputs/)")
    parser.add_argument("--folder", type=Path, default=IMAGES, help="where to (default: docs/images)")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = pictures(find_runs(options.run)[0])
    with counter(len(wanted), "drawing", "picture") as bar:
        for name, draw in wanted.items():
            png = small_png(draw())
            if len(png) > LARGEST:
                raise CodeqError(f"{name}.png would have {len(png):,} bytes; at most {LARGEST:,} are allowed")
            (options.folder / f"{name}.png").write_bytes(png)
            bar.update(1)
    for name in wanted:
        print(f"{options.folder / name}.png: {(options.folder / name).with_suffix('.png').stat().st_size:,} bytes")


if __name__ == "__main__":
    try:
        main()
    except CodeqError as error:
        sys.exit(f"make_images: {error}")
