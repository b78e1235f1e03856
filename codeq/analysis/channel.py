"""Explanation of one channel of a run: why it is live or dead, since which epoch, and what pruning it saves."""

from __future__ import annotations

from collections.abc import Sequence

from codeq.analysis.network import input_size_of
from codeq.analysis.recorded import recorded_layers
from codeq.common.errors import CodeqError, unknown_name
from codeq.evaluator import decode_mask
from codeq.flow.explain import explain
from codeq.quantizer.layers import named_layers
from codeq.runs import Run

MAX_SPANS = 6  # the latest ones


def explain_channel(run: Run, layer: str, channel: int) -> str:
    """Explain a channel of the last checkpoint of a run, and describe its history over the epochs.

    Parameters
    ----------
    run : Run
        With a checkpoint.
    layer : str
        Full dotted name of a conv or linear layer.
    channel : int
        Output channel, counted from 0.

    Returns
    -------
    str
        One sentence per line: weights, BatchNorm, coupled filters, readers, savings in MACs and BOPs for one input
        (see `codeq.explain`), and the epochs in which the filter was alive.

    Raises
    ------
    CodeqError
        For an unknown layer, with the nearest name, a channel out of range, and a run without an intact checkpoint.
    """
    model = run.load_model()
    names = [name for name, _ in named_layers(model)]
    if layer not in names:
        raise unknown_name("layer", layer, names)
    found = explain(model, layer, channel, input_size_of(model, run.config.img_size))
    try:
        history = describe_history(channel_history(run, layer, channel))
    except CodeqError as error:
        history = str(error)
    return f"{found}\n- {history}"


def channel_history(run: Run, layer: str, channel: int) -> list[bool]:
    """Return for each recorded epoch whether the filter of an output channel was alive: had a weight other than zero.

    Raises
    ------
    CodeqError
        If no epoch was recorded, or the layer or channel was not.
    """
    table = recorded_layers(run)
    rows = table[table["layer"] == layer]
    if not len(rows):
        raise unknown_name("layer", layer, table["layer"].unique())
    filters = int(rows["filters"].iloc[0])
    if not 0 <= channel < filters:
        raise CodeqError(f"channel={channel}: {layer} has {filters} channels (0-based)")
    return [bool(decode_mask(digits, filters)[channel]) for digits in rows["alive"]]


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


def _epochs(first: int, last: int) -> str:
    return f"epoch {first + 1}" if first == last else f"epochs {first + 1}-{last + 1}"
