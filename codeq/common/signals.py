"""Handlers of signals for a limited time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handler` for the signals `numbers` while the context lasts; the handlers of before follow.

    Outside the main thread, where Python allows no handlers, none is installed; nor is one for Ctrl-C in a process that
    ignores it, as a background job of a script does.

    Examples
    --------
    >>> import os
    >>> received = []
    >>> with handled([signal.SIGTERM], lambda number, frame: received.append(number)):
    ...     os.kill(os.getpid(), signal.SIGTERM)
    >>> received == [signal.SIGTERM]
    True
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [n for n in numbers if n != signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            # None: not installed by Python
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
