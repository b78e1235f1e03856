"""How much of the accuracy is left when one layer alone is quantized harder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codeq.plots.style import HEAT, heading, need, new_grid

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def sensitivity_heatmap(scan: pd.DataFrame) -> Figure:
    """Draw the accuracy left when one layer alone is quantized: rows are layers, a panel for each bit-width.

    Parameters
    ----------
    scan : DataFrame
        As `codeq.analysis.sensitivity` returns it: `layer`, `bits`, `dead_zone` (d / 2R, a fraction), `accuracy`,
        `baseline` (fractions).

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> scan = pd.DataFrame({"layer": "fc", "bits": 2, "dead_zone": [0.0, 0.5], "accuracy": [0.5, 0.25]})
    >>> sensitivity_heatmap(scan.assign(baseline=0.75)).axes[0].images[0].get_array().tolist()
    [[50.0, 25.0]]
    """
    need(scan, ["layer", "bits", "dead_zone", "accuracy", "baseline"], "scan")
    names = scan["layer"].unique().tolist()
    widths = sorted(scan["bits"].unique())
    baseline = 100 * scan["baseline"].iloc[0]
    figure, grid = new_grid(1, len(widths), width=2.2 + 1.5 * len(widths), height=1.8 + 0.24 * len(names), sharey=True)
    heading(figure, "Sensitivity: one layer quantized, all others as they are", f"baseline {baseline:.1f} %")
    lowest, highest = 100 * scan["accuracy"].min(), max(baseline, 100 * scan["accuracy"].max())
    for axes, bits in zip(grid[0], widths, strict=True):
        table = scan[scan["bits"] == bits].pivot(index="layer", columns="dead_zone", values="accuracy").loc[names]
        image = axes.imshow(100 * table, cmap=HEAT, vmin=lowest, vmax=highest, aspect="auto", interpolation="nearest")
        axes.set_title(f"{bits:.0f} bits", fontsize=10, loc="left")
        axes.set_xticks(range(table.shape[1]), [f"{100 * share:g}" for share in table.columns])
    grid[0, 0].set_yticks(range(len(names)), names, fontsize=9)
    figure.supxlabel("dead-zone d / 2R (%): weights below this share of R become 0", fontsize=10)
    bar = figure.colorbar(image, ax=grid, fraction=0.03, pad=0.01)
    bar.set_label("accuracy (%)", fontsize=10)
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)
    return figure
