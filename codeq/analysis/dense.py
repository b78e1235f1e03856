"""Dense costs of the layers of a run, also of those that a compaction before its training removed."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from contextlib import suppress
from itertools import accumulate, pairwise
from math import isclose, nan
from typing import TYPE_CHECKING

from codeq.analysis.network import configured_layers
from codeq.analysis.recorded import recorded_layers
from codeq.common.errors import CodeqError
from codeq.metrics.reference import compacted_name
from codeq.metrics.stats import LayerStats
from codeq.runs import Run

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = 1e-6  # relative, of MACs that are computed from recorded ratios


def dense_costs(run: Run) -> tuple[dict[str, int], dict[str, LayerStats]]:
    """Return the dense MACs of the recorded layers, and all layers of the network that a compaction made smaller.

    Dense MACs are unstructured MACs / density of an epoch in which the layer had weights. Layers without weights in all
    epochs are counted in a network built from the configuration, and so are those of a compacted network, whose costs
    are compared with those of the whole one. The MACs of a layer that compaction split are divided among its parts.

    Parameters
    ----------
    run : Run
        With at least one recorded epoch.

    Returns
    -------
    dict of str to int
        MACs of one input by layer; without those that nobody knows.
    dict of str to LayerStats
        Layers of the configured network in order of execution, by `compacted_name`, if the recorded ones lack some of
        them; empty otherwise.

    Raises
    ------
    CodeqError
        If no epoch was recorded.
    """
    layers = recorded_layers(run)
    alive = layers[layers["density"] > 0]
    macs = (alive["unstructured_macs"] / alive["density"]).groupby(alive["layer"]).first()
    dense = {str(name): round(value) for name, value in macs.items()}
    recorded, baseline = [str(name) for name in layers["layer"].unique()], _baseline_macs(run, layers)
    with suppress(CodeqError):  # of another version of codeq, or of a model that this process does not know
        smaller = bool(run.config.init_from) and not isclose(sum(dense.values()), baseline, rel_tol=ROUNDING)
        if dense.keys() != set(recorded) or smaller:
            found = configured_layers(run, num_classes=int(layers["filters"].iloc[-1]))
            whole = {compacted_name(layer.name): layer for layer in found}
            made: dict[str, list[str]] = {}
            for name in recorded:
                made.setdefault(_whole_name(name, whole), []).append(name)
            for origin in made.keys() & whole.keys():
                dense |= _divided(whole[origin].macs, {name: dense.get(name, 0) for name in made[origin]})
            lost = whole.keys() - made.keys()
            total = sum(dense.values()) + sum(whole[name].macs for name in lost)
            if smaller and lost and isclose(total, baseline, rel_tol=ROUNDING):
                return dense, whole
    return dense, {}


def _whole_name(name: str, whole: Container[str]) -> str:
    """Return the name in `whole` of a layer, of which compaction may have made one for each call and size of groups."""
    name = compacted_name(name)
    split = re.sub(r"\.parts\.\d+$", "", name)
    return next((origin for origin in (name, split, re.sub(r"_\d+$", "", split)) if origin in whole), name)


def _divided(macs: int, parts: Mapping[str, int]) -> dict[str, int]:
    """Divide the MACs of a layer among what compaction made of it, in proportion to the MACs of each, but never less.

    Examples
    --------
    >>> _divided(100, {"conv.parts.0": 10, "conv.parts.1": 20})
    {'conv.parts.0': 33, 'conv.parts.1': 67}
    """
    ends = [*accumulate(parts.values())]
    if ends[-1] >= macs:
        return dict(parts)
    weights = ends if ends[-1] else range(1, len(ends) + 1)
    places = [0, *(round(macs * end / weights[-1]) for end in weights)]
    return {name: end - start for name, (start, end) in zip(parts, pairwise(places), strict=True)}


def _baseline_macs(run: Run, layers: pd.DataFrame) -> float:
    """Return the MACs of the dense network that the recorded ratios compare with; NaN if they say nothing of it."""
    last, history = layers["epoch"].iloc[-1], run.history
    ratios = history.get("compression/structured_mac_ratio", history["epoch"] * nan)[history["epoch"] == last]
    left = layers["structured_macs"][layers["epoch"] == last].sum()
    return float(ratios.iloc[-1] * left) if len(ratios) and left else nan


def with_lost_layers(costs: pd.DataFrame, whole: Mapping[str, LayerStats]) -> pd.DataFrame:
    """Add a row to the table of `layer_costs` for each layer that only the `whole` network has, in its order.

    Such a layer has no weights and 0 bits, all its filters are dead, and it costs nothing but in the dense network.
    """
    import pandas as pd

    place = {name: position for position, name in enumerate(whole)}
    recorded = {_whole_name(name, whole) for name in costs["layer"]}
    rows = [
        dict.fromkeys(costs.columns, 0)
        | {"layer": layer.name, "quantized": False, "dead_zone": nan, "density": 0.0, "dense_macs": layer.macs}
        | dict.fromkeys(["filters", "dead_filters", "null_out"], layer.null_out.total)
        | {"null_in": layer.null_in.total}
        for name, layer in whole.items()
        if name not in recorded
    ]
    if not rows:
        return costs
    both = pd.concat([costs, pd.DataFrame(rows)], ignore_index=True)
    places = both["layer"].map(lambda name: place[_whole_name(name, whole)])
    return both.iloc[places.argsort(kind="stable")].reset_index(drop=True)
