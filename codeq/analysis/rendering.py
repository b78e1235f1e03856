"""Rendering of many figures at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat

from codeq.analysis.drawings import Drawing, FileFormat

_inherited: list[Drawing] = []  # of a worker process


def render_in_parallel(drawings: Mapping[str, Drawing], formats: Sequence[FileFormat]) -> None:
    """Render figures in as many processes as there are cores; each drawing keeps the content of its files.

    Only on Linux, where a process can be copied safely, figures included; elsewhere, and with one core, nothing is
    done, and `Drawing.render` renders when the content is needed. For command lines: the process must not have threads
    that hold locks, as the kernel of a notebook has.
    """
    figures = [drawing for drawing in drawings.values() if drawing.figure]
    processes = min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1, len(figures))
    if processes < 2:
        return
    figures.sort(key=lambda drawing: -len(drawing.figure.axes) if drawing.figure else 0)  # the longest first
    with warnings.catch_warnings():
        # Python 3.12 and later warn of locks that idle threads of numerical libraries could hold; matplotlib uses none.
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        context = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(processes, context, initializer=_adopt, initargs=(figures,))
        rendered = pool.map(_render, range(len(figures)), repeat(tuple(formats)))
    try:
        for drawing, contents in zip(figures, rendered, strict=True):
            for kind, content in contents.items():
                drawing.keep(kind, content)
    except BrokenProcessPool:
        pass  # a process was killed, by want of memory, say: what is missing is rendered when it is needed
    finally:
        pool.shutdown(cancel_futures=True)


def _adopt(figures: list[Drawing]) -> None:
    """Take over the figures of the parent process, which need not be pickled, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _inherited[:] = figures


def _render(number: int, formats: tuple[FileFormat, ...]) -> dict[FileFormat, bytes]:
    return {kind: _inherited[number].render(kind) for kind in formats}
