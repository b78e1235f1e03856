"""Bits, dead-zone, density, null channels and cost of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codeq.plots.axes import from_zero, horizontal_grid
from codeq.plots.layer_names import layer_ticks, width_for_layers
from codeq.plots.style import COLORS, EDGE, heading, legend, new_grid, require_columns, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_VALUES = 60  # layers, beyond which numbers above their bars would overlap
ACTIVATIONS = "activations: 32 bits, or those of their quantizers"
KINDS = {
    "dense": "dense, 32 bit",
    "structured": "structured (alive channels)",
    "unstructured": "unstructured (non-zero weights)",
}


@styled
def layer_profile(costs: pd.DataFrame) -> Figure:
    """Draw bits, dead-zone, density, null channels and share of BOPs of each layer, one panel each.

    Parameters
    ----------
    costs : DataFrame
        One row per layer, as `codeq.analysis.layer_costs` returns it: `layer`, `bits`, `dead_zone` (d / 2R, a fraction;
        NaN without a dead-zone), `density` (a fraction), `null_in`, `null_out` (channels), `structured_share`,
        `unstructured_share` (of the network's BOPs, fractions).

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    from matplotlib.ticker import MaxNLocator

    columns = ["layer", "bits", "dead_zone", "density", "null_in", "null_out", "structured_share", "unstructured_share"]
    require_columns(costs, columns, "costs")
    names = costs["layer"].tolist()
    figure, grid = new_grid(5, 1, width=width_for_layers(len(names)), height=9, sharex=True)
    heading(figure, "Layer profile", f"R: scale of the layer; {ACTIVATIONS}")
    bits, dead_zone, density, nulls, share = grid[:, 0]
    x = np.arange(len(names))

    bits.bar(x, costs["bits"], color=COLORS["bits"])
    for k, value in enumerate(costs["bits"] if len(names) <= MAX_VALUES else []):
        bits.annotate(f"{value:.0f}", (k, value), (0, 1), textcoords="offset points", ha="center", fontsize=8)
    bits.set_ylim(0, 1.15 * costs["bits"].max())
    dead_zone.bar(x, 100 * costs["dead_zone"], color=COLORS["dead_zone"])
    if costs["dead_zone"].isna().all():
        dead_zone.text(0.5, 0.5, "no layer has a dead-zone", transform=dead_zone.transAxes, ha="center", fontsize=9)
    density.bar(x, 100 * costs["density"], color=COLORS["unstructured"])
    for axes in (dead_zone, density):
        axes.set_ylim(0, 100)
    _grouped_bars(nulls, costs[["layer"]].assign(input=costs["null_in"], output=costs["null_out"]),
                  {"input": COLORS["dead_input"], "output": COLORS["dead"]})  # fmt: skip
    kinds = ("structured", "unstructured")
    shares = costs[["layer"]].assign(**{kind: 100 * costs[f"{kind}_share"] for kind in kinds})
    _grouped_bars(share, shares, {kind: COLORS[kind] for kind in kinds})
    for axes in (nulls, share):
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.95))
        axes.margins(y=0.2)
    nulls.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    from_zero(nulls)  # also without null channels
    from_zero(share)

    units = ["weights (bits)", "dead-zone\nd / 2R (%)", "non-zero\nweights (%)", "null\nchannels", "share of\nBOPs (%)"]
    for axes, unit in zip(grid[:, 0], units, strict=True):
        axes.set_ylabel(unit, fontsize=9)
        horizontal_grid(axes)
    layer_ticks(share, names)
    return figure


@styled
def layer_costs(costs: pd.DataFrame) -> Figure:
    """Draw the BOPs of each layer before and after compression: absolute (log scale) and as shares of their total.

    Parameters
    ----------
    costs : DataFrame
        One row per layer, as `codeq.analysis.layer_costs` returns it: `layer`, `dense_bops`, `structured_bops`,
        `unstructured_bops` (of one input) and `dense_share`, `structured_share`, `unstructured_share` (fractions).
        Unknown dense costs (NaN) are left out.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    require_columns(
        costs, ["layer", *(f"{kind}_bops" for kind in KINDS), *(f"{kind}_share" for kind in KINDS)], "costs"
    )
    names = costs["layer"].tolist()
    figure, grid = new_grid(2, 1, width=width_for_layers(len(names)), height=6.5, sharex=True)
    heading(figure, "Cost of each layer before and after compression", ACTIVATIONS)
    absolute, shares = grid[:, 0]
    totals = {kind: costs[f"{kind}_bops"].sum(skipna=False) for kind in KINDS}
    labels = {kind: f"{label}: {_total(totals[kind], totals['dense'])}" for kind, label in KINDS.items()}
    for axes, unit, factor in ((absolute, "bops", 1), (shares, "share", 100)):
        table = costs[["layer"]].assign(**{labels[kind]: factor * costs[f"{kind}_{unit}"] for kind in KINDS})
        _grouped_bars(axes, table, {labels[kind]: COLORS[kind] for kind in KINDS})
    absolute.set_yscale("log")
    absolute.set_ylabel("BOPs per input", fontsize=10)
    horizontal_grid(absolute)
    shares.set_ylabel("share of total BOPs (%)", fontsize=10)
    layer_ticks(shares, names)
    legend(absolute, ncols=1)
    return figure


def _total(bops: float, dense: float) -> str:
    relative = f"{100 * bops / dense:.3g} %" if dense > 0 else "baseline unknown"
    return f"{bops / 1e9:.3g} GBOPs, {relative}" if bops == bops else "unknown"


def _grouped_bars(axes: Axes, table: pd.DataFrame, colors: dict[str, str]) -> None:
    """Draw a group of bars per row of `table`, one for each column of `colors`, labelled for a later legend."""
    width = 0.8 / len(colors)
    for k, (column, color) in enumerate(colors.items()):
        places = np.arange(len(table)) + (k - (len(colors) - 1) / 2) * width
        # The outline makes black bars visible on a dark page.
        axes.bar(places, table[column], width, color=color, label=column, edgecolor=EDGE, linewidth=0.6)
