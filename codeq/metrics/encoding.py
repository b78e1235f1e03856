"""Text forms of the values of all filters of a layer, for one cell of a table: masks and norms."""

from __future__ import annotations

from base64 import b64decode, b64encode

import numpy as np


def encode_mask(mask: np.ndarray) -> str:
    """Write a boolean array as hexadecimal digits, first element first.

    Examples
    --------
    >>> encode_mask(np.array([True, False, True]))
    'a0'
    """
    return np.packbits(mask).tobytes().hex()


def decode_mask(digits: str, length: int) -> np.ndarray:
    """Read what `encode_mask` wrote.

    Examples
    --------
    >>> decode_mask("a0", 3).tolist()
    [True, False, True]
    """
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8))[:length].astype(bool)


def encode_norms(norms: np.ndarray) -> str:
    """Write numbers `[C]` as base64 of little-endian float32, first element first: 5.3 characters each.

    float32 keeps what explanations print, zero, infinity and NaN, and small norms, which are zero in float16.

    Examples
    --------
    >>> encode_norms(np.array([0.5, 0.0]))
    'AAAAPwAAAAA='
    """
    return b64encode(norms.astype("<f4").tobytes()).decode("ascii")


def decode_norms(text: str, length: int) -> np.ndarray:
    """Read what `encode_norms` wrote, as float32 `[length]`.

    Raises
    ------
    ValueError
        For a text that is not base64 of `length` numbers.

    Examples
    --------
    >>> decode_norms("AAAAPwAAAAA=", 2).tolist()
    [0.5, 0.0]
    """
    data = b64decode(text, validate=True)
    if len(data) != 4 * length:
        raise ValueError(f"{len(data)} bytes are not the norms of {length} filters")
    return np.frombuffer(data, "<f4")
