"""Computations of a widget beside its controls: only the latest one matters, and only one runs at a time."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

Work = Callable[[threading.Event], object]

# `torch.nn.utils.parametrize.cached` is a global switch: while one thread reads cached weights, another must neither
# change a quantizer nor read weights of its own. Plain copies of a network may be evaluated without the lock. Cells of
# the user do not take it, so the background never switches caching on: it would keep the weights of their trainings.
WEIGHTS = threading.RLock()
PAUSE = 0.1  # seconds without a newer computation before one starts, so that a dragged slider stays fluent


def in_kernel() -> bool:
    """Return whether this process is a Jupyter kernel, in which widgets are displayed and updated.

    Examples
    --------
    >>> in_kernel()
    False
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class LatestTask:
    """One thread that executes the latest of the computations it is given; a newer one cancels those before it.

    Examples
    --------
    >>> task, found = LatestTask(), []
    >>> task.start(lambda cancelled: found.append(cancelled.is_set()))
    >>> task.wait()
    >>> found
    [False]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Work | None = None
        self._running: Work | None = None  # and not cancelled
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None
        atexit.register(self._close)  # a thread inside of torch would abort the exiting interpreter

    def start(self, work: Work) -> None:
        """Execute ``work(cancelled)`` after a short pause unless a newer one comes.

        `cancelled` is set as soon as a newer one is started: the work checks it now and then, and shows no result then.
        """
        with self._lock:
            self._cancelled.set()
            self._cancelled, self._waiting, self._running = threading.Event(), work, None
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="codeq widget", daemon=True)
                self._thread.start()

    def cancel(self) -> None:
        """Cancel the computation that waits or runs."""
        with self._lock:
            self._cancelled.set()
            self._waiting = self._running = None

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Cancel the computation that waits or runs; if the block fails or is interrupted, it is started again."""
        with self._lock:
            unfinished = self._waiting or self._running
        self.cancel()
        try:
            yield
        except BaseException:
            if unfinished:
                self.start(unfinished)
            raise

    def wait(self) -> None:
        """Return when no computation is left."""
        if thread := self._thread:
            thread.join()

    def _close(self) -> None:
        self.cancel()
        self.wait()

    def _follow(self) -> None:
        while True:
            with self._lock:
                work, cancelled, self._waiting = self._waiting, self._cancelled, None
                self._running = work
                if work is None:
                    self._thread = None
                    return
            if not cancelled.wait(PAUSE):
                try:
                    work(cancelled)
                except Exception:  # later computations need this thread
                    logger.exception("a computation of a widget failed")
