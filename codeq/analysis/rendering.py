"""Drawing and rendering of many figures at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat

from codeq.analysis.drawings import Drawing, FileFormat, check_formats

MOST = 4  # processes: each loads the checkpoint of the run
_planned: dict[str, Callable[[], Drawing]] = {}  # of a worker process


def draw_in_parallel(planned: Mapping[str, Callable[[], Drawing]], formats: Sequence[FileFormat]) -> dict[str, Drawing]:
    """Draw figures and render them, in as many processes as there are cores, at most four.

    Only on Linux, where a process can be copied safely; elsewhere, and with one core, the figures are drawn here. For
    command lines: the process must not have threads that hold locks, as the kernel of a notebook has.

    Parameters
    ----------
    planned : mapping of str to callable
        Drawing functions by name, see `planned_figures`.
    formats : sequence of str
        Formats of the files.

    Returns
    -------
    dict of str to Drawing
        By name, in the order of `planned`. Those drawn in other processes have the content of their files, no figure;
        those that cannot be rendered have the reason.

    Raises
    ------
    CodeqError
        For a format that there is not.
    """
    check_formats(formats)
    drawn = _from_processes(planned, formats)
    return {name: drawn[name] if name in drawn else draw().rendered(formats) for name, draw in planned.items()}


def _from_processes(planned: Mapping[str, Callable[[], Drawing]], formats: Sequence[FileFormat]) -> dict[str, Drawing]:
    processes = min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1, len(planned), MOST)
    if processes < 2:
        return {}
    drawn: dict[str, Drawing] = {}
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, initializer=_adopt, initargs=(planned,))
    try:
        with warnings.catch_warnings():
            # Python 3.12 and later warn of locks that idle threads of numerical libraries could hold: workers use none.
            warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
            # The last ones are about weights and take the longest.
            results = pool.map(_draw, reversed(list(planned)), repeat(tuple(formats)))
        for drawing in results:
            drawn[drawing.name] = drawing
    except BrokenProcessPool:
        pass  # a process was killed, by want of memory, say: what is missing is drawn in this one
    finally:
        pool.shutdown(cancel_futures=True)
    return drawn


def _adopt(planned: Mapping[str, Callable[[], Drawing]]) -> None:
    """Take over the functions of the parent process, which need not be pickled, and leave Ctrl-C to it."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # one core a process; and a copied pool of threads would wait forever
    _planned.update(planned)


def _draw(name: str, formats: tuple[FileFormat, ...]) -> Drawing:
    return _planned[name]().without_figure(formats)
