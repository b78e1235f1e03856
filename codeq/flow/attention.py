"""Rule of channel flow for scaled dot-product attention: separate heads, each channel a weighted mean over tokens."""

from __future__ import annotations

import numpy as np

from codeq.flow.values import FIXED, Units, Value


def attention_units(units: Units, q: Value, k: Value, v: Value) -> np.ndarray | None:
    """Return the units of softmax(q kᵀ) v, `[heads, tokens, channels]`, or `None` for other shapes.

    The weights of a head sum to 1 for all queries and keys, so a channel of `v` that is the same constant at every
    token stays that constant in the result. All other channels depend on all queries and keys of the head.

    Parameters
    ----------
    units : Units
        Units of the network so far.
    q, k, v : Value
        `[heads, tokens, channels]` each, without the batch.

    Examples
    --------
    >>> import torch
    >>> units = Units()
    >>> live = Value(torch.zeros(1, 3, 2), np.full((1, 3, 2), units.fresh([])), batch=0)
    >>> v = Value(torch.zeros(1, 3, 2), np.array([units.fresh([]), FIXED]) * np.ones((1, 3, 1), dtype=int), batch=0)
    >>> attention_units(units, live, live, v)[0, 0].tolist()
    [3, 0]
    """
    if any(value.batch != 0 or value.data.ndim != 3 for value in (q, k, v)):
        return None
    if not len(q.units) == len(k.units) == len(v.units):
        return None
    heads, _, channels = v.units.shape
    result = np.full((heads, channels), FIXED, dtype=np.int64)
    data = v.data.numpy()
    for head in range(heads):
        attend = np.union1d(q.units[head], k.units[head])
        for channel in range(channels):
            over_tokens = v.units[head, :, channel]
            if (over_tokens != FIXED).any() or np.ptp(data[head, :, channel]) > 0:
                reads = np.union1d(attend, over_tokens)
                result[head, channel] = units.fresh(reads[reads != FIXED])
    return np.broadcast_to(result[:, None, :], (heads, q.units.shape[1], channels))
