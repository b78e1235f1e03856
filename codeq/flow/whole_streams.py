"""What stays in place although it is zero, so that whole streams keep the same channels in every layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from codeq.flow.steps import LayerCall
from codeq.graph.channels import CoupledGroups


def held(calls: Sequence[LayerCall], groups: CoupledGroups, multiple_of: int) -> dict[str, np.ndarray]:
    """Return which kernels and BatchNorm scales count as non-zero so that each coupled group lives or dies as a whole.

    A group lives if any of its filters or slices is kept. Channels that are in no group (they reach the network's
    output, or something that codeq does not follow) and layers that are called twice stay whole.

    Parameters
    ----------
    calls : sequence of LayerCall
        Of the network without anything held.
    groups : CoupledGroups
        Of the same network.
    multiple_of : int
        Dead groups are held, too, until every side of every layer keeps a multiple of this, or all it has.

    Returns
    -------
    dict
        By module: `[c_out, c_in / groups]` for a layer, `[channels]` for a BatchNorm.
    """
    uses = Counter(call.name for call in calls)
    sides = {
        call.name: (groups.writers[call.name], groups.readers[call.name])
        for call in calls
        if call.name in groups.writers and uses[call.name] == 1
    }
    lives = np.zeros(groups.count + 1, dtype=bool)
    lives[-1] = True  # entry -1: what is in no group
    for call in calls:
        for of, kept in zip(sides.get(call.name, ()), (call.kept_out, call.kept_in), strict=False):
            lives[of[kept]] = True
    _round_up(lives, [of for both in sides.values() for of in both], multiple_of)
    result = {name: lives[of] for name, of in groups.batchnorms.items()}
    for call in calls:
        rows, columns = np.ones(len(call.kept_out), dtype=bool), np.ones(len(call.kept_in), dtype=bool)
        if call.name in sides:
            rows, columns = (lives[of] for of in sides[call.name])
        by_group = columns.reshape(call.groups, -1).repeat(len(rows) // call.groups, axis=0)
        result[call.name] = rows[:, None] & by_group
    return result


def _round_up(lives: np.ndarray, sides: Sequence[np.ndarray], multiple_of: int) -> None:
    """Revive dead groups, those of the lowest channels first, until no side has to grow."""
    growing = True
    while growing:
        growing = False
        for of in sides:
            lacking = -int(lives[of].sum()) % multiple_of
            dead = of[~lives[of]]
            if lacking and len(dead):
                lives[np.unique(dead)[:lacking]] = True
                growing = True
