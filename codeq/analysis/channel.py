"""Explanation of one channel of a run: why it is live or dead, since which epoch, and what pruning it saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from codeq.analysis.network import input_size_of
from codeq.analysis.recorded import recorded_layers
from codeq.common.errors import CodeqError, unknown_name
from codeq.flow.explain import check_channel, explain
from codeq.metrics.encoding import decode_mask, decode_norms
from codeq.runs import Run
from codeq.runs.references import require_run

if TYPE_CHECKING:
    import pandas as pd

MAX_SPANS = 6  # the latest ones


def explain_channel(run: Run, layer: str, channel: int) -> str:
    """Explain a channel of the last checkpoint of a run, and describe its history over the epochs.

    Parameters
    ----------
    run : Run
        With a checkpoint.
    layer : str
        Full dotted name of a conv or linear layer, or of a weight that is used without one (``attn.in_proj_weight``).
    channel : int
        Output channel, counted from 0.

    Returns
    -------
    str
        One sentence per line: weights, BatchNorm, coupled filters, readers, savings in MACs and BOPs for one input
        (see `codeq.explain`), the epochs in which the filter was alive, and its norms over the epochs.

    Raises
    ------
    CodeqError
        For an unknown layer, with the nearest name, a channel out of range, and a run without an intact checkpoint.
    """
    model = require_run(run).load_model()
    found = explain(model, layer, channel, input_size_of(run, model))
    try:
        rows = _rows(run, layer, channel)
        history = f"{describe_history(_alive(run, rows, channel))}\n- {describe_norms(_norms(run, rows, channel))}"
    except CodeqError as error:
        history = str(error)
    return f"{found}\n- {history}"


def channel_history(run: Run, layer: str, channel: int) -> list[bool]:
    """Return for each recorded epoch whether the filter of an output channel was alive: had a weight other than zero.

    Raises
    ------
    CodeqError
        If no epoch was recorded, or the layer or channel was not, and for a channel that is no integer.
    """
    return _alive(run, _rows(run, layer, channel), channel)


def channel_norms(run: Run, layer: str, channel: int) -> list[float]:
    """Return the Euclidean norm of the filter of an output channel after each recorded epoch.

    The norm is that of the quantized weights, as in `explain_channel` and `LivenessExplorer`: 0 for a dead filter. The
    list is empty for a run that an earlier version of codeq began, which did not record norms.

    Raises
    ------
    CodeqError
        As `channel_history`.
    """
    return _norms(run, _rows(run, layer, channel), channel)


def filter_norms_by_epoch(rows: pd.DataFrame) -> np.ndarray:
    """Return the norms of the filters of one layer `[epochs, c_out]`, without epochs if they were not recorded.

    Parameters
    ----------
    rows : DataFrame
        Rows of `recorded_layers` of this layer.

    Raises
    ------
    ValueError, TypeError
        For a damaged table.

    Examples
    --------
    >>> import pandas as pd
    >>> filter_norms_by_epoch(pd.DataFrame({"filters": [2], "norms": ["AAAAPwAAAAA="]})).tolist()
    [[0.5, 0.0]]
    """
    filters = int(rows["filters"].iloc[0])
    if "norms" not in rows:
        return np.empty((0, filters), dtype=np.float32)
    return np.stack([decode_norms(text, filters) for text in rows["norms"]])


def _rows(run: Run, layer: str, channel: int) -> pd.DataFrame:
    """Return the rows of a layer in the table of a run; an unknown layer or channel is an error."""
    check_channel(channel)
    table = recorded_layers(run)
    rows = table[table["layer"] == layer]
    if not len(rows):
        raise unknown_name("layer", layer, table["layer"].unique())
    filters = int(rows["filters"].iloc[0])
    if not 0 <= channel < filters:
        raise CodeqError(f"channel={channel}: {layer} has {filters} channels (0-based)")
    return rows


def _alive(run: Run, rows: pd.DataFrame, channel: int) -> list[bool]:
    try:
        return [bool(decode_mask(*cell)[channel]) for cell in zip(rows["alive"], rows["filters"], strict=True)]
    except (ValueError, TypeError) as error:
        raise _damaged(run, error) from error


def _norms(run: Run, rows: pd.DataFrame, channel: int) -> list[float]:
    try:
        return [float(norm) for norm in filter_norms_by_epoch(rows)[:, channel]]
    except (ValueError, TypeError) as error:
        raise _damaged(run, error) from error


def _damaged(run: Run, error: Exception) -> CodeqError:
    return CodeqError(f"{run.folder / 'layers.csv'} is damaged: {error}")


def describe_history(alive: Sequence[bool]) -> str:
    """Describe in which epochs, counted from 1, a filter was alive and dead.

    Examples
    --------
    >>> describe_history([True, True, False, False])
    'its filter was alive in epochs 1-2, dead since epoch 3 (of 4)'
    >>> describe_history([True] * 20)
    'its filter was alive in all 20 epochs'
    >>> describe_history([True])
    'its filter was alive in the one recorded epoch'
    """
    starts = [k for k, state in enumerate(alive) if k == 0 or state != alive[k - 1]]
    state = ["dead", "alive"]
    if len(starts) == 1:
        epochs = f"all {len(alive)} epochs" if len(alive) > 1 else "the one recorded epoch"
        return f"its filter was {state[alive[0]]} in {epochs}"
    ends = [start - 1 for start in starts[1:]]
    spans = [f"{state[alive[k]]} in {_epochs(k, end)}" for k, end in zip(starts[:-1], ends, strict=True)]
    spans.append(f"{state[alive[-1]]} since epoch {starts[-1] + 1}")
    earlier = "… " if len(spans) > MAX_SPANS else ""
    return f"its filter was {earlier}{', '.join(spans[-MAX_SPANS:])} (of {len(alive)})"


def describe_norms(norms: Sequence[float]) -> str:
    """Describe the norms of a filter over the epochs, counted from 1: the first, the largest and the last one.

    Examples
    --------
    >>> describe_norms([0.41, 0.44, 0.02])
    'its norm was 0.41 in epoch 1, largest 0.44 in epoch 2, 0.02 in epoch 3, the last'
    >>> describe_norms([0.44, 0.02])
    'its norm was 0.44 in epoch 1, the largest, 0.02 in epoch 2, the last'
    >>> describe_norms([0.0, 0.0])
    'its norm was 0 in all 2 epochs'
    >>> describe_norms([])
    'its norms were not recorded: an earlier version of codeq began this run'
    """
    if not len(norms):
        return "its norms were not recorded: an earlier version of codeq began this run"
    first, last, count = _digits(norms[0]), _digits(norms[-1]), len(norms)
    missing = int(np.isnan(norms).sum())
    if missing == count or (not missing and min(norms) == max(norms)):
        return f"its norm was {first} in {f'all {count} epochs' if count > 1 else 'the one recorded epoch'}"
    peak = int(np.nanargmax(norms))
    parts = [f"{first} in epoch 1" + (", the largest" if peak == 0 else "")]
    if 0 < peak < count - 1:
        parts.append(f"largest {_digits(norms[peak])} in epoch {peak + 1}")
    parts.append(f"{last} in epoch {count}, the last" + (" and largest" if peak == count - 1 else ""))
    return f"its norm was {', '.join(parts)}{f'; NaN in {missing} of {count} epochs' if missing else ''}"


def _digits(norm: float) -> str:
    return "NaN" if norm != norm else f"{norm:.3g}"


def _epochs(first: int, last: int) -> str:
    return f"epoch {first + 1}" if first == last else f"epochs {first + 1}-{last + 1}"
