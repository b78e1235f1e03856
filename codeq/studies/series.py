"""Values of groups of runs over epochs and layers, read from the tables of their folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.runs.tables import lacking_epochs

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def learning_curves(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return mean and standard deviation of `metric` over the done runs of each group after each epoch.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it, with a column `group`.
    metric : str
        Column of ``metrics.csv``; ``test/…`` is ``eval/…`` of runs without a validation split.

    Returns
    -------
    DataFrame
        `group`, `epoch` (0-based), `n` (runs that recorded a value), `mean`, `std` (divisor n - 1; NaN for one run).

    Raises
    ------
    CodeqError
        If no done run recorded `metric`.
    """
    import pandas as pd

    parts = []
    for group, history in _of_done(table, lambda run: run.history):
        used = metric if metric in history or not metric.startswith("test/") else metric.replace("test/", "eval/")
        if used in history and used != "epoch":
            parts.append(history[["epoch", used]].set_axis(["epoch", metric], axis="columns").assign(group=group))
    if not parts:
        raise CodeqError(f"no done run has recorded {metric!r} after each epoch")
    long = pd.concat(parts, ignore_index=True).dropna(subset=[metric])
    order = {group: k for k, group in enumerate(long["group"].unique())}
    found = long.groupby(["group", "epoch"])[metric].agg(n="count", mean="mean", std="std").reset_index()
    return found.sort_values(
        ["group", "epoch"],
        key=lambda column: column.map(order) if column.name == "group" else column,
        ignore_index=True,
    )


def layer_bits(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean bits of each quantized layer over the done runs of each group, after their last epochs.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it, with a column `group`.

    Returns
    -------
    DataFrame
        `group`, `layer` (in order of execution), `n` (runs), `mean`, `min`, `max` (bits). Runs without quantized layers
        are left out.

    Raises
    ------
    CodeqError
        If no done run has a quantized layer.
    """
    import pandas as pd

    parts = []
    for group, layers in _of_done(table, lambda run: run.layers):
        if {"layer", "bits", "quantized"} <= {*layers.columns}:
            last = layers[layers["epoch"] == layers["epoch"].max()]
            quantized = last[last["quantized"].astype(bool)]
            parts.append(quantized[["layer", "bits"]].assign(group=group))
    long = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if not len(long):
        raise CodeqError("no done run has recorded the bits of a quantized layer")
    found = long.groupby(["group", "layer"], sort=False)["bits"]
    return found.agg(n="count", mean="mean", min="min", max="max").reset_index()


def _of_done(table: pd.DataFrame, read: Callable[[Run], pd.DataFrame]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield group and table of each done run; one that cannot be read, or lacks epochs, costs itself alone."""
    done = table[table["status"] == "done"]
    for group, folder in zip(done["group"], done["folder"], strict=True):
        try:
            found = read(Run(Path(folder)))
        except CodeqError as error:
            logger.warning("a run is left out: %s", error)
            continue
        if lacking := lacking_epochs(Path(folder), found["epoch"].nunique() if len(found) else 0):
            logger.warning("a run is left out: a table of %s has %s", folder, lacking)
            continue
        yield group, found
