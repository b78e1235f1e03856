"""Keeping a training's freed memory in the process instead of returning it to the system after every step."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Parameters of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

# Bytes up to which a tensor comes from the heap. Some versions of glibc refuse more than 32 MiB.
MMAP_THRESHOLDS = (2**31 - 1, 2**25)


@contextmanager
def keep_freed_memory(wanted: bool = True) -> Iterator[bool]:
    """Make glibc keep freed memory for the next step, as long as the context lasts.

    By default large tensors are returned to the system when they are freed, and the next step requests them again: tens
    of thousands of page faults, up to a third of a CPU training step (`benchmarks/bench_step.py`). The price is that
    the process stays as large as its largest step; afterwards the free memory is returned.

    Other C libraries are left alone, and so is a glibc that refuses the threshold: raising the others by themselves
    would switch off its adaptive threshold, and cause more page faults than before.

    Yields whether glibc accepted the settings.

    Examples
    --------
    >>> with keep_freed_memory(wanted=False) as kept:
    ...     kept
    False
    """
    libc: Any = ctypes.CDLL(None) if wanted and platform.libc_ver()[0] == "glibc" else None
    if not hasattr(libc, "mallopt") or not any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in MMAP_THRESHOLDS):
        yield False
        return
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TOP_PAD, 2**28)
    try:
        yield True
    finally:
        # The adaptive threshold cannot be switched on again; these are the values that it would have reached.
        for parameter, value in ((M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**26), (M_TOP_PAD, 2**17)):
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
