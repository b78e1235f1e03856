"""Signals that ask a training to save its state and stop: SIGTERM of a scheduler, SIGUSR1 of Slurm's early warning."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from codeq.common.errors import CodeqError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
EXIT_STATUS = 143  # of a process that SIGTERM ended, in a shell


class Preempted(CodeqError):
    """A training that was asked to stop, has saved its state and can be resumed."""


class Interruption:
    """Name of the last signal received while the context lasts; the loop reads it between two batches.

    Outside the main thread, where Python allows no handlers, no signal is received.

    Examples
    --------
    >>> import os
    >>> with Interruption() as interruption:
    ...     os.kill(os.getpid(), signal.SIGUSR1)
    ...     interruption.received
    'SIGUSR1'
    """

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed by Python

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
