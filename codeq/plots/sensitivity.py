"""Heat map of a layer-wise sensitivity scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codeq.plots.names import layer_labels
from codeq.plots.style import HEAT, heading, new_grid, require_columns, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LEAST_WIDTH = 9.0  # inches, of the heading


@styled
def sensitivity_heatmap(scan: pd.DataFrame) -> Figure:
    """Draw the accuracy with one layer quantized further: rows are layers, columns dead-zones, one panel per bit-width.

    Parameters
    ----------
    scan : DataFrame
        As `codeq.analysis.sensitivity.sensitivity` returns it: `layer`, `bits`, `dead_zone` (d / 2R, a fraction),
        `accuracy`, `baseline` (fractions); with `trained_bits` and `trained_dead_zone`, a frame marks the cell nearest
        to the trained setting of each layer; with `grid`, as of `scan_run`, cells of single layers are left out.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> scan = pd.DataFrame({"layer": "fc", "bits": 2, "dead_zone": [0.0, 0.5], "accuracy": [0.5, 0.25]})
    >>> sensitivity_heatmap(scan.assign(baseline=0.75)).axes[0].collections[0].get_array().tolist()
    [[50.0, 25.0]]
    """
    import seaborn
    from matplotlib.patches import Rectangle

    require_columns(scan, ["layer", "bits", "dead_zone", "accuracy", "baseline"], "scan")
    if "grid" in scan:
        scan = scan[scan["grid"].astype(bool)]
    names = scan["layer"].unique().tolist()
    widths = sorted(scan["bits"].unique())
    baseline = 100 * scan["baseline"].iloc[0]
    width = max(2.2 + 1.7 * len(widths), LEAST_WIDTH)
    figure, grid = new_grid(1, len(widths), width=width, height=1.8 + 0.24 * len(names), sharey=True)
    heading(
        figure,
        "Per-layer sensitivity",
        f"accuracy (%) with one layer quantized further; baseline {baseline:.1f} %"
        + ("; framed: nearest to the trained setting" if "trained_bits" in scan else ""),
    )
    lowest, highest = 100 * scan["accuracy"].min(), max(baseline, 100 * scan["accuracy"].max())
    for axes, bits in zip(grid[0], widths, strict=True):
        table = 100 * scan[scan["bits"] == bits].pivot(index="layer", columns="dead_zone", values="accuracy").loc[names]
        seaborn.heatmap(
            table, cmap=HEAT, vmin=lowest, vmax=highest, annot=True, fmt=".0f", annot_kws={"fontsize": 7}, cbar=False,
            xticklabels=[f"{100 * share:g}" for share in table.columns], yticklabels=layer_labels(names),
            rasterized=True, ax=axes,
        )  # fmt: skip
        axes.set(xlabel="", ylabel="")
        axes.tick_params(labelsize=9, labelrotation=0)
        axes.set_title(f"{bits:.0f} bits", fontsize=10, loc="left")
        for row, column in _trained_cells(scan, bits, names, table.columns.to_numpy()):
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="black", linewidth=2, clip_on=False))
    figure.supxlabel("dead-zone d / 2R (%): weights below this share of R become 0", fontsize=10)
    bar = figure.colorbar(grid[0, 0].collections[0], ax=grid, fraction=0.03, pad=0.01)
    bar.set_label("accuracy (%)", fontsize=10)
    bar.ax.tick_params(labelsize=9)
    return figure


def _trained_cells(scan: pd.DataFrame, bits: int, names: list[str], dead_zones: np.ndarray) -> list[tuple[int, int]]:
    """Return row and column of the cells in the panel of `bits` that are nearest to a trained setting."""
    if "trained_bits" not in scan:
        return []
    widths = scan["bits"].unique()
    trained = scan.groupby("layer")[["trained_bits", "trained_dead_zone"]].first().loc[names].fillna(0.0)
    return [
        (row, int(np.abs(dead_zones - zone).argmin()))
        for row, (width, zone) in enumerate(trained.to_numpy())
        if widths[np.abs(widths - width).argmin()] == bits
    ]
