"""Zero weights that are kept so that all layers of a residual stream keep the same channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from codeq.flow.steps import LayerCall
from codeq.graph.channels import CoupledGroups


def whole_stream_masks(calls: Sequence[LayerCall], groups: CoupledGroups, multiple_of: int) -> dict[str, np.ndarray]:
    """Return the kernels and BatchNorm scales to count as non-zero so that each coupled group is kept or removed whole.

    A group is kept if any of its filters or slices is. Channels without a group (they reach the output of the network
    or an operation that codeq does not follow) and layers that are called twice are kept whole.

    Parameters
    ----------
    calls : sequence of LayerCall
        Layers of the network, analysed without such masks.
    groups : CoupledGroups
        Coupled groups of the same network.
    multiple_of : int
        Number that the kept inputs and outputs of every layer are rounded up to by keeping dead groups, up to all
        channels of the layer.

    Returns
    -------
    dict
        Mask by module name: `[c_out, c_in / groups]` for a layer, `[1, 1]` for one that is kept whole in all of its
        calls, and `[channels]` for a BatchNorm.
    """
    uses = Counter(call.name for call in calls)
    sides = {
        call.name: (groups.writers[call.name], groups.readers[call.name])
        for call in calls
        if call.name in groups.writers and uses[call.name] == 1
    }
    alive = np.zeros(groups.count + 1, dtype=bool)
    alive[-1] = True  # entry -1: channels without a group
    for call in calls:
        for group, kept in zip(sides.get(call.name, ()), (call.kept_out, call.kept_in), strict=False):
            alive[group[kept]] = True
    _round_up(alive, [group for both in sides.values() for group in both], multiple_of)
    result = {name: alive[group] for name, group in groups.batchnorms.items()}
    for call in calls:
        if call.name not in sides:
            result[call.name] = np.ones((1, 1), dtype=bool)
            continue
        rows, columns = (alive[group] for group in sides[call.name])
        by_group = columns.reshape(call.groups, -1).repeat(len(rows) // call.groups, axis=0)
        result[call.name] = rows[:, None] & by_group
    return result


def _round_up(alive: np.ndarray, sides: Sequence[np.ndarray], multiple_of: int) -> None:
    """Mark dead groups as alive, lowest first, until every side has a multiple of `multiple_of` or all its channels."""
    growing = True
    while growing:
        growing = False
        for group in sides:
            lacking = -int(alive[group].sum()) % multiple_of
            dead = group[~alive[group]]
            if lacking and len(dead):
                alive[np.unique(dead)[:lacking]] = True
                growing = True
