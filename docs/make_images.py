"""Render the images of README.md and docs/ from a run: ``python docs/make_images.py [RUN]``, after ``make debug``.

Writes small PNGs of figures of the analysis to docs/images/; docs/make_screenshots.py adds the widgets.
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
from codeq.common.errors import CodeqError
from codeq.common.progress import counter
from codeq.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = Path(__file__).parent / "images"
WIDTH = 800  # pixels: sharp in the column of a README, also on high-resolution screens
COLORS = 256  # size of the palette: half the bytes of full colour, without visible loss in thin lines
LARGEST = 150_000  # bytes: images in a repository are downloaded with every clone
FIGURES = ("training_curves", "layer_profile", "layer_costs", "weight_histograms")


def images(run: Run) -> dict[str, Callable[[], Figure]]:
    """Return a function that draws each image of a run, by file name.

    Raises
    ------
    CodeqError
        If the run lacks data that one of the figures needs.
    """
    drawings = draw_figures(run)

    def figure_of(name: str) -> Figure:
        figure = drawings[name].figure
        if figure is None:
            raise CodeqError(f"{run.folder} cannot be shown: {name}: {drawings[name].missing}")
        return figure

    return {name: lambda name=name: figure_of(name) for name in FIGURES}  # type: ignore[misc]


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
    """Write the images of one run and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="run folder (default: the newest in outputs/)")
    parser.add_argument("--folder", type=Path, default=IMAGES, help="folder to write to (default: docs/images)")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = images(find_runs(options.run)[0])
    with counter(len(wanted), "drawing", "image") as bar:
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
