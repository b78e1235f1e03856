"""What every layer costs, and what it was given: bits, dead-zone, density and null channels, one above the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codeq.plots.style import COLORS, heading, legend, name_layers, need, new_grid, width_for_layers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

BARS = {
    "dense": "dense, 32 bit",
    "structured": "structured (null channels cut)",
    "unstructured": "unstructured (non-zero weights)",
}


def layer_profile(costs: pd.DataFrame) -> Figure:
    """Draw five figures of every layer one above the other: bits, dead-zone, density, null channels, share of BOPs.

    Parameters
    ----------
    costs : DataFrame
        A row a layer, as `codeq.analysis.layer_costs` returns it: `layer`, `bits`, `dead_zone` (d / 2R, a fraction; NaN
        without one), `density` (a fraction), `null_in`, `null_out` (channels), `structured_share`,
        `unstructured_share` (of the network's BOPs, fractions).

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    from matplotlib.ticker import MaxNLocator

    columns = ["layer", "bits", "dead_zone", "density", "null_in", "null_out", "structured_share", "unstructured_share"]
    need(costs, columns, "costs")
    names = costs["layer"].tolist()
    figure, grid = new_grid(5, 1, width=width_for_layers(len(names)), height=9, sharex=True)
    heading(figure, "Profile of every layer", "R: the scale of a layer; BOPs with 32-bit activations")
    bits, dead_zone, density, nulls, share = grid[:, 0]
    x = np.arange(len(names))

    bits.bar(x, costs["bits"], color=COLORS["bits"])
    for k, value in enumerate(costs["bits"]):
        bits.annotate(f"{value:.0f}", (k, value), (0, 1), textcoords="offset points", ha="center", fontsize=8)
    bits.set_ylim(0, 1.15 * costs["bits"].max())
    dead_zone.bar(x, 100 * costs["dead_zone"], color=COLORS["dead_zone"])
    if costs["dead_zone"].isna().all():
        dead_zone.text(0.5, 0.5, "no layer has a dead-zone", transform=dead_zone.transAxes, ha="center", fontsize=9)
    density.bar(x, 100 * costs["density"], color=COLORS["unstructured"])
    for axes in (dead_zone, density):
        axes.set_ylim(0, 100)
    for shift, side, color in ((-0.2, "in", COLORS["dead_input"]), (0.2, "out", COLORS["dead"])):
        nulls.bar(x + shift, costs[f"null_{side}"], width=0.38, color=color, label=side)
    for shift, kind in ((-0.2, "structured"), (0.2, "unstructured")):
        share.bar(x + shift, 100 * costs[f"{kind}_share"], width=0.38, color=COLORS[kind], label=kind)
    for axes in (nulls, share):
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0, 1.12))
        axes.margins(y=0.2)
    nulls.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    nulls.set_ylim(0, max(1.0, nulls.get_ylim()[1]))  # of a network without null channels, too

    units = ["weights (bits)", "dead-zone\nd / 2R (%)", "non-zero\nweights (%)", "null\nchannels", "share of\nBOPs (%)"]
    for axes, unit in zip(grid[:, 0], units, strict=True):
        axes.set_ylabel(unit, fontsize=9)
        axes.grid(axis="y", alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
    name_layers(share, names)
    return figure


def layer_costs(costs: pd.DataFrame) -> Figure:
    """Draw the BOPs of every layer before and after compression: absolute (log scale), and as shares of their network.

    Parameters
    ----------
    costs : DataFrame
        A row a layer, as `codeq.analysis.layer_costs` returns it: `layer`, `dense_bops`, `structured_bops`,
        `unstructured_bops` (of one input) and `dense_share`, `structured_share`, `unstructured_share` (fractions).

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.
    """
    need(costs, ["layer", *(f"{kind}_bops" for kind in BARS), *(f"{kind}_share" for kind in BARS)], "costs")
    names = costs["layer"].tolist()
    figure, grid = new_grid(2, 1, width=width_for_layers(len(names)), height=6.5, sharex=True)
    heading(figure, "Which layers cost what", "activations count as 32 bits")
    absolute, shares = grid[:, 0]
    x = np.arange(len(names))
    totals = {kind: costs[f"{kind}_bops"].sum() for kind in BARS}
    for shift, (kind, label) in zip((-0.27, 0.0, 0.27), BARS.items(), strict=True):
        relative = f"{100 * totals[kind] / totals['dense']:.3g} %" if totals["dense"] else "no cost"
        words = f"{label}: {totals[kind] / 1e9:.3g} GBOPs, {relative}"
        absolute.bar(x + shift, costs[f"{kind}_bops"], width=0.25, color=COLORS[kind], label=words)
        shares.bar(x + shift, 100 * costs[f"{kind}_share"], width=0.25, color=COLORS[kind])
    absolute.set_yscale("log")
    absolute.set_ylabel("BOPs of one input", fontsize=10)
    absolute.grid(axis="y", alpha=0.3, linewidth=0.6)
    absolute.set_axisbelow(True)
    shares.set_ylabel("share of all BOPs (%)", fontsize=10)
    name_layers(shares, names)
    legend(absolute, ncols=1)
    return figure
