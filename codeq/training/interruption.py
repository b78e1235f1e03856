"""Signals that ask a training to save its state and stop: Ctrl-C, SIGTERM of a scheduler, SIGUSR1 of Slurm."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from codeq.common.console import say
from codeq.common.ending import end_process
from codeq.common.errors import CodeqError
from codeq.common.signals import handled

# Ctrl-C is SIGINT, also that of a Jupyter kernel.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class Preempted(CodeqError):
    """A training that was asked to stop, has saved its state and can be resumed.

    It is also the error of a headless notebook that a signal has ended where nothing trained.

    Its message is all that IPython and the end of a script show: a traceback would look like a failure. The script ends
    with `exit_status`.
    """

    exit_status = 143  # of a process that SIGTERM ended, in a shell

    def __init__(self, message: str) -> None:
        super().__init__(message)
        if getattr(sys.excepthook, "func", None) is not _at_end_of_script:
            sys.excepthook = partial(_at_end_of_script, sys.excepthook)

    def _render_traceback_(self) -> list[str]:  # called by IPython
        return [str(self)]

    def report(self) -> None:
        """Print the message on stderr, of several processes in the first one only."""
        if os.environ.get("RANK", "0") == "0":
            say(f"codeq: {self}", sys.stderr)


class Interrupted(Preempted):
    """The same after Ctrl-C."""

    exit_status = 130  # of a process that SIGINT ended


def _at_end_of_script(
    otherwise: Any, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if not isinstance(error, Preempted):
        otherwise(kind, error, traceback)
        return
    error.report()
    if not (hasattr(sys, "ps1") or sys.flags.inspect):  # an interactive session lasts
        end_process(error.exit_status)  # Python itself ends with 1 after any exception


class Interruption:
    """Name of the first signal received while the context lasts; the loop reads it between two batches.

    A Ctrl-C after any signal raises `KeyboardInterrupt` at once. What is not received is said in
    `codeq.common.signals.handled`.

    Parameters
    ----------
    alone : bool
        Whether one process trains. A launcher like ``torchrun`` repeats a Ctrl-C that the terminal has sent to all
        processes, so of several processes none takes the second one for another wish.

    Examples
    --------
    >>> import os
    >>> with Interruption() as interruption:
    ...     os.kill(os.getpid(), signal.SIGUSR1)
    ...     interruption.received
    'SIGUSR1'
    """

    def __init__(self, alone: bool = True) -> None:
        self.received = ""
        self.alone = alone
        self._handled = handled(SIGNALS, self._note)

    def __enter__(self) -> Interruption:
        self._handled.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handled.__exit__(None, None, None)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received and self.alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name

    def preemption(self, command: str) -> Preempted:
        """Return the exception that ends the training; `command` resumes it."""
        resume = f"the state is saved, resume with: {command}"
        if self.received == "SIGINT":
            return Interrupted(f"interrupted; {resume}")
        return Preempted(f"asked to stop by {self.received or 'another process'}; {resume}")
