"""The network of a run: rebuilt from its configuration, its cost under every convention, and measured gains."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from torch import nn

from codeq.common.errors import CodeqError
from codeq.config import ExperimentConfig
from codeq.metrics import dense_stats, ledger, measure
from codeq.metrics.stats import LayerStats
from codeq.models import build_model
from codeq.quantizer.layers import latent_weight, named_layers
from codeq.runs import Run
from codeq.runs.checkpoints import read_manifest, recorded_input_size
from codeq.runs.references import require_run
from codeq.runs.tables import read_json

if TYPE_CHECKING:
    import pandas as pd


def input_size_of(run: Run, model: nn.Module) -> tuple[int, int, int]:
    """Return `(C, H, W)` of one input of a run.

    Runs of earlier versions, and those without a checkpoint, have not recorded it: it is derived from the layer of
    `model` that is defined first.

    Parameters
    ----------
    run : Run
        In any state.
    model : Module
        Its network.
    """
    if recorded := recorded_input_size(run.checkpoints):
        return recorded
    size = run.config.img_size
    shape = latent_weight(next(layer for _, layer in named_layers(model))).shape
    return (shape[1] if len(shape) == 4 else shape[1] // size**2), size, size


def configured_model(config: ExperimentConfig, num_classes: int) -> nn.Module:
    """Build the float network that a configuration describes, with initial weights.

    The network has `num_classes` outputs where the configuration leaves the number open.
    """
    return build_model(config.model, config.num_classes or num_classes, config.model_kwargs, img_size=config.img_size)


def configured_layers(run: Run, num_classes: int) -> Sequence[LayerStats]:
    """Return the costs of the layers of `configured_model` for one input, without any pruning."""
    model = configured_model(run.config, num_classes)
    return dense_stats(measure(model, input_size_of(run, model))).layers


def run_notes(run: Run) -> tuple[str, ...]:
    """Return what the costs of a run leave out or assume, one sentence each, see `codeq.metrics.ModelStats`.

    They are in the summary of a finished run; for any other run the configured network is traced again. There are none
    for a network that cannot be built or traced in this process.
    """
    require_run(run)
    with suppress(CodeqError):
        if (notes := run.summary.get("notes")) is not None:  # absent in runs of earlier versions
            return tuple(notes)
    with suppress(CodeqError):
        model = configured_model(run.config, num_classes=1)
        return measure(model, input_size_of(run, model)).notes
    return ()


def readable_ledger(run: Run) -> pd.DataFrame | str:
    """Return the cost of the last checkpoint under every convention, in percent of the dense 32-bit network.

    Returns
    -------
    DataFrame or str
        One row per convention (see `codeq.metrics.ledger`); MACs and BOPs of all layers, and without the first and
        last. The reason as text, if there is no checkpoint that can be read.
    """
    require_run(run)
    try:
        model = run.load_model()
        costs = ledger(model, input_size_of(run, model))
    except CodeqError as error:
        return f"no ledger: {error}"
    percent = costs.loc[["MACs", "BOPs"], "relative"].map("{:.2%}".format).unstack(["quantity", "layers"])
    columns = [(quantity, layers) for quantity in ("MACs", "BOPs") for layers in ("all", "inner")]
    conventions = ["unstructured", "structured", "exact", "live density", "EBOPs"]
    return percent.reindex(index=conventions, columns=columns).fillna("")


def recorded_proof(run: Run) -> str:
    """Return the result of the proof of ``codeq compact`` in one sentence; empty if there is none."""
    path = require_run(run).folder / "compacted" / "proof.json"
    if not path.is_file():
        return ""
    try:
        proof = read_json(path)
        return (
            f"{proof['masked_macs']:,} MACs masked, {proof['compacted_macs']:,} compacted; on {proof['inputs']:,} test "
            f"images {proof['flipped']} predictions changed, largest difference of a logit {proof['max_error']:.1e}."
            f"{_age(run, proof.get('checkpoint'))}"
        )
    except (CodeqError, KeyError, TypeError, ValueError) as error:  # of another version of codeq, or damaged
        return f"{path} cannot be read: {error}"


def _age(run: Run, checkpoint: str | None) -> str:
    """Return a sentence if a result is that of a checkpoint that the run no longer has."""
    kept = {entry.file for entry in read_manifest(run.checkpoints).values()}
    if checkpoint is None or not kept or checkpoint in kept:
        return ""
    return f" It is that of {checkpoint}; the run was trained further since."


def recorded_gains(run: Run) -> pd.DataFrame | str:
    """Return the latency and memory that ``codeq compact`` measured, or as text why there are none."""
    import pandas as pd

    path = require_run(run).folder / "compacted" / "gains.csv"
    if not path.is_file():
        return f"not measured yet: codeq compact {shlex.quote(str(run.folder))}"
    two = dict.fromkeys(["ms", "iqr", "speedup", "low", "high", "peak_mb"], 2)
    try:
        return pd.read_csv(path).round({**two, "weights_mb": 3})
    except (OSError, ValueError) as error:  # damaged
        return f"{path} cannot be read: {error}"
