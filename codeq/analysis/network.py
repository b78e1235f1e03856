"""The network that a run left: what it costs by every convention, and what it gains without its dead channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from codeq.common.errors import CodeqError
from codeq.metrics import ledger
from codeq.quantizer.attach import latent_weight, named_layers
from codeq.runs import Run

if TYPE_CHECKING:
    import pandas as pd


def input_size_of(model: nn.Module, img_size: int) -> tuple[int, int, int]:
    """Return `(C, H, W)` of one input of a model for images of `img_size` pixels, whose data set is not at hand.

    Examples
    --------
    >>> input_size_of(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), 4)
    (3, 4, 4)
    """
    shape = latent_weight(next(layer for _, layer in named_layers(model))).shape
    return (shape[1] if len(shape) == 4 else shape[1] // img_size**2), img_size, img_size


def readable_ledger(run: Run) -> pd.DataFrame | str:
    """Return what the last checkpoint's network costs under every convention, in percent of the dense 32-bit one.

    Returns
    -------
    DataFrame or str
        A row a convention (see `codeq.metrics.ledger`); MACs and BOPs of all layers and of all but the first and last.
        Why there is none, if the run has no checkpoint yet.
    """
    try:
        model = run.load_model()
        costs = ledger(model, input_size_of(model, run.config.img_size))
    except CodeqError as error:
        return f"no ledger: {error}"
    percent = costs.loc[["MACs", "BOPs"], "relative"].map("{:.2%}".format).unstack(["quantity", "layers"])
    columns = [(quantity, layers) for quantity in ("MACs", "BOPs") for layers in ("all", "inner")]
    conventions = ["unstructured", "structured", "exact", "live density", "EBOPs"]
    return percent.reindex(index=conventions, columns=columns).fillna("")


def recorded_gains(run: Run) -> pd.DataFrame | str:
    """Return the latency and memory that `codeq.compaction.compact_run.compact_run` measured, or how to."""
    import pandas as pd

    path = run.folder / "compacted" / "gains.csv"
    if not path.is_file():
        return f"not measured yet: codeq compact {run.folder}"
    return pd.read_csv(path).round({"ms": 2, "iqr": 2, "speedup": 2, "weights_mb": 3, "peak_mb": 2})
