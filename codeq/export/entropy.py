"""Entropy coding of integer codes: asymmetric numeral systems with one table of frequencies for each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from codeq.common.errors import CodeqError
from codeq.export.extras import require

MOST_SYMBOLS = 1 << 16


def frequencies(symbols: np.ndarray) -> np.ndarray:
    """Count the symbols `0 … K - 1`.

    Examples
    --------
    >>> frequencies(np.array([0, 2, 2])).tolist()
    [1, 0, 2]
    """
    return np.bincount(symbols.ravel(), minlength=1)


def entropy_bytes(counts: np.ndarray) -> float:
    """Return the lower bound of any code of single symbols with these frequencies, in bytes.

    Examples
    --------
    >>> entropy_bytes(np.array([4, 4])), entropy_bytes(np.array([8]))
    (1.0, 0.0)
    """
    used = counts[counts > 0]
    return float((used * np.log2(used.sum() / used)).sum()) / 8


def encode(tensors: Sequence[np.ndarray]) -> bytes:
    """Encode tensors of symbols into one stream; `decode` needs the `frequencies` of each.

    Examples
    --------
    >>> symbols = [np.array([0, 1, 1, 0, 1]), np.array([0, 0, 0])]
    >>> stream = encode(symbols)
    >>> [part.tolist() for part in decode(stream, [frequencies(part) for part in symbols])]
    [[0, 1, 1, 0, 1], [0, 0, 0]]
    """
    coder = require("constriction").stream.stack.AnsCoder()
    for symbols in reversed(tensors):  # it is a stack: the last one in is the first one out
        counts = frequencies(symbols)
        if _is_random(counts):
            coder.encode_reverse(symbols.ravel().astype(np.int32), _model(counts))
    return coder.get_compressed().astype("<u4").tobytes()


def decode(stream: bytes, tables: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Decode the tensors of a stream, each flattened.

    Raises
    ------
    CodeqError
        If the stream does not hold exactly the symbols of the tables.
    """
    if len(stream) % 4:
        raise CodeqError(f"the stream of codes has {len(stream)} bytes, which must be a multiple of 4")
    words = np.frombuffer(stream, dtype="<u4").astype(np.uint32)
    if len(words) and not words[-1]:
        raise CodeqError("the stream of codes ends in a word of zeros, which no coder writes")
    coder = require("constriction").stream.stack.AnsCoder(words)
    found = []
    for counts in tables:
        if _is_random(counts):
            symbols = coder.decode(_model(counts), int(counts.sum()))
            if not np.array_equal(frequencies(symbols), np.trim_zeros(counts, "b")):
                raise CodeqError("the stream of codes does not hold the symbols that its tables count")
        else:
            symbols = np.full(int(counts.sum()), max(len(counts) - 1, 0), dtype=np.int32)
        found.append(symbols)
    if not coder.is_empty():
        raise CodeqError("the stream of codes holds more symbols than its tables count")
    return found


def _is_random(counts: np.ndarray) -> bool:
    """Return whether more than one symbol occurs: otherwise there is nothing to encode."""
    return bool(np.count_nonzero(counts) > 1)


def _model(counts: np.ndarray) -> Any:
    # Exact counts make the same model on every machine: a division rounds the same everywhere.
    probabilities = counts / counts.sum()
    return require("constriction").stream.model.Categorical(probabilities.astype(np.float32), perfect=False)
