"""Keeps the C library from handing a training's memory back to the system after every step."""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step; does nothing on other systems.

    By default large tensors are given back when they are freed, and the next step pays for getting them again: tens of
    thousands of page faults, up to a third of a CPU training step (`benchmarks/bench_step.py`). The price is that the
    process stays as large as its largest step.

    Examples
    --------
    >>> keep_freed_memory()
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 2**28)
