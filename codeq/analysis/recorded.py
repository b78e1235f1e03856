"""Tables of a run folder, reduced to the epochs that were recorded completely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from codeq.common.checks import is_integer
from codeq.common.errors import CodeqError, quote
from codeq.runs import Run
from codeq.runs.references import require_run

if TYPE_CHECKING:
    import pandas as pd


def recorded_history(run: Run) -> pd.DataFrame:
    """Return `Run.history`, which has at least one row.

    Raises
    ------
    CodeqError
        If no epoch was recorded.
    """
    history = require_run(run).history
    if not len(history):
        raise _nothing_recorded(run)
    return history


def recorded_layers(run: Run) -> pd.DataFrame:
    """Return `Run.layers` of the epochs with a row for every layer.

    The last epoch of a run that is being written, or was killed while writing, may lack rows.

    Raises
    ------
    CodeqError
        If no epoch was recorded, or another version of codeq wrote a table without the columns of this one.
    """
    layers = require_run(run).layers
    if not len(layers):
        raise _nothing_recorded(run)
    columns = ["epoch", "layer", "quantized", "bits", "theta_dz", "filters", "dead_filters", "alive", "density"]
    columns += ["null_in", "null_out", "structured_pruning", "unstructured_pruning"]
    columns += [f"{kind}_{unit}" for unit in ("macs", "bops") for kind in ("structured", "unstructured")]
    _require(run, layers, columns)
    layers = layers[layers[columns[-1]].notna()]
    counts = layers.groupby("epoch")["layer"].size()
    logged = sum(name.startswith("layers/") and name.endswith("/bitwidth") for name in run.history.columns)
    complete = layers[layers["epoch"].isin(counts.index[counts == max(logged, counts.max())])]
    if not len(complete):
        raise _nothing_recorded(run)
    return complete.reset_index(drop=True)


def last_layers(run: Run, epoch: int | None = None) -> pd.DataFrame:
    """Return the rows of `recorded_layers` of `epoch` (0-based; default the last).

    Raises
    ------
    CodeqError
        As `recorded_layers`, and if that epoch was not recorded.
    """
    if epoch is not None and not is_integer(epoch):
        raise CodeqError(f"epoch={quote(epoch)}: must be the number of an epoch, counted from 0")
    layers = recorded_layers(run)
    rows = layers[layers["epoch"] == (layers["epoch"].max() if epoch is None else epoch)].reset_index(drop=True)
    if not len(rows):
        assert epoch is not None  # the last one has rows
        last = layers["epoch"].max()
        raise CodeqError(
            f"epoch {epoch + 1} of {run.folder.name} is not recorded: it has epochs 1 to {last + 1}, which are 0 to "
            f"{last} where they are counted from 0"
        )
    return rows


def unreadable(read: Callable[[Any], object], source: Any) -> str:
    """Return why a table, ``read(source)``, cannot be read: of another version of codeq, or damaged. Empty if it can.

    Examples
    --------
    >>> unreadable(len, "abc")
    ''
    """
    try:
        read(source)
    except CodeqError as error:
        return str(error)
    return ""


def _require(run: Run, table: pd.DataFrame, columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in table]:
        raise CodeqError(f"{run.folder / 'layers.csv'} has no column {', '.join(missing)}: not written by this version")


def _nothing_recorded(run: Run) -> CodeqError:
    return CodeqError(f"no epoch has been recorded; status of {run.folder.name}: {run.status}. {run.message}".strip())
