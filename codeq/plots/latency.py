"""Latency of a network in several runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codeq.plots.style import COLORS, heading, legend, new_grid, require_columns, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MODELS = {"dense float": "dense", "compacted float": "structured", "compacted int8": "unstructured"}  # and its colour


@styled
def latency_bars(latency: pd.DataFrame) -> Figure:
    """Draw the latency of the dense, the compacted and the integer network by format, one panel per batch size.

    Parameters
    ----------
    latency : DataFrame
        As `codeq.analysis.latency_table` returns it: `format`, `model`, `batch`, `ms`, `threads`. Where `checkpoint`
        differs it is below the format.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> latency = pd.DataFrame({"model": list(MODELS), "ms": [4.0, 3.0, 1.0]}).assign(format="onnx", batch=1, threads=2)
    >>> [float(bar.get_height()) for bar in latency_bars(latency).axes[0].patches]
    [4.0, 3.0, 1.0]
    """
    require_columns(latency, ["format", "model", "batch", "ms", "threads"], "latency")
    formats, batches = latency["format"].unique().tolist(), sorted(latency["batch"].unique())
    figure, grid = new_grid(1, len(batches), width=1.5 + 1.6 * len(batches) + 0.9 * len(formats), height=3.4)
    threads = ", ".join(map(str, sorted(latency["threads"].unique())))
    heading(figure, "Latency of a batch", f"median, ms, on this machine's CPU; threads: {threads}")
    labels = formats
    if "checkpoint" in latency and latency["checkpoint"].nunique(dropna=False) > 1:
        made_of = latency.drop_duplicates("format").set_index("format")["checkpoint"]
        labels = [f"{name}\n{made_of[name] or 'unknown'}" for name in formats]
    x = np.arange(len(formats))
    for axes, batch in zip(grid[0], batches, strict=True):
        for number, (model, color) in enumerate(MODELS.items()):
            rows = latency[(latency["batch"] == batch) & (latency["model"] == model)].set_index("format")["ms"]
            heights = [float(rows.get(name, np.nan)) for name in formats]
            axes.bar(x + 0.27 * (number - 1), heights, 0.25, color=COLORS[color], label=model)
        axes.set_xticks(x, labels)
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.set_ylabel("ms")
    legend(grid[0, 0])
    return figure
