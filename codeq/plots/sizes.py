"""Bytes of a network in several forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codeq.plots.style import COLORS, heading, new_grid, require_columns, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@styled
def size_bars(sizes: pd.DataFrame) -> Figure:
    """Draw the bytes of each form of a network as bars, with the compression against the first.

    Parameters
    ----------
    sizes : DataFrame
        As `codeq.analysis.size_table` returns it: `form`, `bytes`, `relative` (a fraction).

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> sizes = pd.DataFrame({"form": ["float32", "packed"], "bytes": [4000, 500], "relative": [1.0, 0.125]})
    >>> [text.get_text() for text in size_bars(sizes).axes[0].texts]
    ['4.0 kB', '0.5 kB (8.0×)']
    """
    require_columns(sizes, ["form", "bytes", "relative"], "sizes")
    figure, grid = new_grid(1, 1, width=7, height=1.4 + 0.32 * len(sizes))
    heading(figure, "Size of the network", "kB of 1000 bytes; × against float32")
    axes = grid[0, 0]
    values = sizes["bytes"] / 1000
    coded = sizes["form"].str.contains("packed")
    axes.barh(sizes["form"], values, color=[COLORS["unstructured"] if c else COLORS["dense"] for c in coded])
    for row, (value, relative) in enumerate(zip(values, sizes["relative"], strict=True)):
        times = "" if row == 0 else f" ({1 / relative:.1f}×)"
        axes.annotate(
            f"{value:,.1f} kB{times}", (value, row), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xlim(0, 1.3 * values.max())
    axes.set_xlabel("kB")
    axes.invert_yaxis()
    return figure
