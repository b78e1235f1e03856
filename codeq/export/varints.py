"""Integers of a packed file in as few bytes as they need."""

from __future__ import annotations

import numpy as np

from codeq.common.errors import CodeqError


def varints(numbers: np.ndarray) -> bytes:
    """Write integers with 7 bits a byte, the lowest first; the eighth bit says that more follow.

    Examples
    --------
    >>> list(varints(np.array([5, 300])))
    [5, 172, 2]
    """
    written = bytearray()
    for number in numbers.tolist():
        while number > 127:
            written.append(number & 127 | 128)
            number >>= 7
        written.append(number)
    return bytes(written)


def read_varints(data: bytes, count: int) -> np.ndarray:
    """Return the `count` integers that `varints` has written, or raise a `CodeqError` for any other bytes.

    Examples
    --------
    >>> read_varints(bytes([5, 172, 2]), 2).tolist()
    [5, 300]
    """
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if shift > 49:
            raise CodeqError("section tables holds a number that no count can be")
        if byte < 128:
            numbers.append(number)
            number = shift = 0
    if shift or len(numbers) != count:
        raise CodeqError(f"section tables holds {len(numbers)} numbers, must be {count}")
    return np.array(numbers, dtype=np.int64)
