"""Latency of a network in several runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from codeq.plots.style import COLORS, heading, legend, new_grid, require_columns, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# In their order, with their colours. A format has the integer network of the compacted or of the dense one.
MODELS = {
    "dense float": "dense", "compacted float": "structured", "compacted int8": "unstructured", "dense int8": "bits",
}  # fmt: skip


@styled
def latency_bars(latency: pd.DataFrame) -> Figure:
    """Draw the latency of the dense, the compacted and the integer network by format, one panel per batch size.

    Parameters
    ----------
    latency : DataFrame
        As `codeq.analysis.latency_table` returns it: `format`, `model`, `batch`, `ms`, `threads`; a `checkpoint` is
        shown below the format.

    Raises
    ------
    CodeqError
        For a missing column or a table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> latency = pd.DataFrame({"model": ["dense float", "compacted int8"], "ms": [4.0, 1.0]})
    >>> figure = latency_bars(latency.assign(format="onnx", batch=1, threads=2))
    >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
    [4.0, 1.0]
    """
    require_columns(latency, ["format", "model", "batch", "ms", "threads"], "latency")
    formats, batches = latency["format"].unique().tolist(), sorted(latency["batch"].unique())
    figure, grid = new_grid(1, len(batches), width=1.5 + 1.6 * len(batches) + 0.9 * len(formats), height=3.4)
    threads = ", ".join(map(str, sorted(latency["threads"].unique())))
    heading(figure, "Latency of a batch", f"median, ms, on this machine's CPU; threads: {threads}")
    named = latency.dropna(subset="checkpoint") if "checkpoint" in latency else latency[:0].assign(checkpoint="")
    made_of = dict(zip(named["format"], named["checkpoint"], strict=True))
    labels = [f"{name}\n{made_of[name]}" if name in made_of else name for name in formats]
    x = np.arange(len(formats))
    colors = {model: color for model, color in MODELS.items() if (latency["model"] == model).any()}
    width = 0.81 / len(colors)
    for axes, batch in zip(grid[0], batches, strict=True):
        for number, (model, color) in enumerate(colors.items()):
            rows = latency[(latency["batch"] == batch) & (latency["model"] == model)].set_index("format")["ms"]
            heights = [float(rows.get(name, np.nan)) for name in formats]
            offset = width * (number - (len(colors) - 1) / 2)
            axes.bar(x + offset, heights, 0.93 * width, color=COLORS[color], label=model)
        axes.set_xticks(x, labels)
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.set_ylabel("ms")
    legend(grid[0, 0])
    return figure
