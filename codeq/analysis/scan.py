"""Sensitivity scan of a run, stored in its folder, and the ranking of its layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from codeq.analysis.network import input_size_of
from codeq.analysis.sensitivity import BITS, DEAD_ZONES, Cell, check_scan, scan_layers, trained_setting
from codeq.analysis.subset import evaluation_images, evaluation_subset
from codeq.common.atomic import write_atomically
from codeq.common.errors import CodeqError
from codeq.common.progress import counter
from codeq.metrics import dense_stats, measure
from codeq.quantizer import MAX_BITS
from codeq.quantizer.layers import named_layers
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointEntry, CheckpointName, checkpoint_entry
from codeq.runs.references import require_run
from codeq.training.memory import keep_freed_memory

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

GRID = [(bits, zone) for bits in BITS for zone in DEAD_ZONES]
IMAGES = 64  # of the default scan: the 500 to 600 cells of a ResNet-20 take half a minute on two cores
TRAINED = ["baseline", "trained_zero_weights"]
Progress = Callable[[int, int], object]


def scan_run(
    run: Run, max_images: int = IMAGES, checkpoint: CheckpointName | str = "last", progress: Progress | None = None
) -> pd.DataFrame:
    """Return the `sensitivity` of all layers of a run, measured once and then read from its folder.

    Each layer is measured at the same bits and dead-zones and, with each of these bits and dead-zones, also at its
    trained dead-zone and bits. Each finished layer is stored in ``sensitivity/`` of the run, so that an interrupted
    scan resumes; a run whose folder cannot be written is scanned again. A scan belongs to one checkpoint and number of
    images.

    Parameters
    ----------
    run : Run
        With a checkpoint.
    max_images : int
        Largest number of images, see `evaluation_subset`.
    checkpoint : {"last", "best"} or str
        As of `Run.load_model`.
    progress : callable, optional
        Called with the numbers of measured and of all cells; what it raises cancels the scan. Default: a progress bar.

    Returns
    -------
    DataFrame
        As `sensitivity`, and `dense_macs` (of the layer, for one input, without any pruning) and `grid` (whether bits
        and dead-zone are those that all layers are measured at).

    Raises
    ------
    CodeqError
        If there is no intact checkpoint, or the data set is missing.
    """
    entry = checkpoint_entry(require_run(run).checkpoints, checkpoint)
    model = run.load_model(entry.file)  # by its name: a training may save the next one meanwhile
    return scan_network(run, model, entry, max_images, progress)


def scan_network(
    run: Run, model: nn.Module, entry: CheckpointEntry, max_images: int = IMAGES, progress: Progress | None = None
) -> pd.DataFrame:
    """Return the `scan_run` of the network `model`, which was read from the checkpoint with this `entry`."""
    import pandas as pd

    names = check_scan(model, BITS, DEAD_ZONES, None)
    batches = evaluation_subset(run.config, max_images)
    path, done = _stored(run, entry.sha256, sum(len(y) for _, y in batches), names)
    records = measure(model, input_size_of(run, model))
    macs = {layer.name: layer.macs for layer in dense_stats(records).layers}
    layers = dict(named_layers(model))
    cells = {name: _cells(*trained_setting(name, layers[name])) for name in names}
    measured, total = sum(len(cells[name]) for name in done), sum(map(len, cells.values()))
    with counter(total, "sensitivity", "cell") as bar:
        bar.update(measured)

        def count() -> None:
            nonlocal measured
            measured += 1
            bar.update(1)
            if progress:
                progress(measured, total)

        missing = {name: cells[name] for name in names if name not in done}
        with torch.no_grad(), keep_freed_memory():
            for table in scan_layers(model, batches, missing, count):
                name = str(table["layer"].iloc[0])
                shared = [cell in GRID for cell in missing[name]]
                done[name] = table.assign(dense_macs=macs.get(name, 0), grid=shared)
                with suppress(OSError, CodeqError):  # a folder that cannot be written
                    path.parent.mkdir(exist_ok=True)
                    stored = pd.concat(done.values()).to_dict("list")
                    write_atomically(path, json.dumps(stored).encode())
    return pd.concat([done[name] for name in names], ignore_index=True)


def _cells(trained_bits: int, trained_zone: float) -> list[Cell]:
    """Return the cells of a layer: those of all layers, and those that differ from the trained one in bits or zone.

    Examples
    --------
    >>> _cells(4, 0.3)[len(GRID) :]
    [(2, 0.3), (3, 0.3), (4, 0.3), (6, 0.3), (8, 0.3)]
    """
    zone = 0.0 if isnan(trained_zone) else trained_zone
    own = [(bits, zone) for bits in BITS]
    if trained_bits <= MAX_BITS:  # else it is a float layer
        own += [(trained_bits, other) for other in (*DEAD_ZONES, zone)]
    return list(dict.fromkeys([*GRID, *own]))


def _stored(run: Run, checkpoint: str, images: int, names: list[str]) -> tuple[Path, dict[str, Any]]:
    """Return the file of a scan of the checkpoint with this SHA-256, and its finished layers."""
    import pandas as pd

    key = [checkpoint, images, evaluation_images(run.config), BITS, DEAD_ZONES, "and the trained setting"]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    path = run.folder / "sensitivity" / f"{digest}.json"
    try:
        table = pd.DataFrame(json.loads(path.read_bytes()))
        stored = {str(name): rows for name, rows in table.groupby("layer", sort=False)}
        return path, {name: stored[name] for name in names if name in stored}
    except (OSError, ValueError, KeyError):  # none, or damaged: it is measured again
        return path, {}


def rank_layers(scan: pd.DataFrame) -> pd.DataFrame:
    """Rank the layers of a scan by the accuracy lost per bit and per MAC saved, most sensitive first.

    Bits are compared at the trained dead-zone, or at none where the layer has none to set; dead-zones at the trained
    bit-width, or at the largest scanned one where the layer is float. What is lost is relative to the layer at both.

    Parameters
    ----------
    scan : DataFrame
        As returned by `scan_run`.

    Returns
    -------
    DataFrame
        One row per layer: `layer`, `trained_bits`, `trained_dead_zone`; `per_bit`, the mean over the scanned
        bit-widths below the trained one of accuracy lost / bits removed, in percentage points per bit; `lowest_bits`,
        the fewest scanned bits that lose at most one percentage point; `per_million_macs`, the mean over the scanned
        dead-zones above the trained one of accuracy lost / MACs saved, in percentage points per million MACs. NaN
        where there is nothing below or above. Sorted by `per_bit`, then by `per_million_macs`.

    Examples
    --------
    >>> import pandas as pd
    >>> columns = {"layer": "fc", "bits": [2, 4, 8], "dead_zone": 0.0, "accuracy": [0.5, 0.8, 0.9], "zero_weights": 0.0}
    >>> trained = {"trained_bits": 8, "trained_dead_zone": 0.0, "trained_zero_weights": 0.0, "baseline": 0.9}
    >>> ranking = rank_layers(pd.DataFrame(columns).assign(**trained, dense_macs=1000))
    >>> ranking["per_bit"].round(2).tolist(), ranking["lowest_bits"].tolist()  # (40 / 6 + 10 / 4) / 2
    ([4.58], [8])
    """
    import pandas as pd

    ranking = pd.DataFrame([_sensitivity_of(rows) for _, rows in scan.groupby("layer", sort=False)])
    keys = ["per_bit", "per_million_macs"]
    return ranking.sort_values(keys, ascending=False, kind="stable", ignore_index=True)


def _sensitivity_of(rows: pd.DataFrame) -> dict[str, Any]:
    first = rows.iloc[0]
    bits, zone = first["trained_bits"], first["trained_dead_zone"]
    zone = zone if zone == zone else 0.0
    at_zone = (rows["dead_zone"] - zone).abs().rank(method="dense") == 1
    at_bits = (rows["bits"] - bits).abs().rank(method="dense") == 1
    # Not the trained network, where this cell is another one, as that of a quantizer with a dead-zone per channel.
    own = rows[at_zone & (rows["bits"] == bits)]
    before, zeros = own.iloc[0][["accuracy", "zero_weights"]] if len(own) else first[TRAINED]
    lost = 100 * (before - rows["accuracy"])
    saved_bits = bits - rows["bits"]
    fewer = at_zone & (saved_bits > 0)
    saved_macs = first["dense_macs"] * (rows["zero_weights"] - zeros) / 1e6
    wider = at_bits & (saved_macs > 0)
    return {
        "layer": first["layer"],
        "trained_bits": bits,
        "trained_dead_zone": first["trained_dead_zone"],
        "per_bit": (lost[fewer] / saved_bits[fewer]).mean(),
        # A difference of fractions: 100 (0.75 - 0.74) is a little more than 1.
        "lowest_bits": rows["bits"][at_zone & (lost <= 1 + 1e-9)].min(),
        "per_million_macs": (lost[wider] / saved_macs[wider]).mean(),
    }
