"""A papermill engine that forwards signals to the kernel, where a training saves its state; papermill's kills it."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine

from codeq.common.errors import CodeqError
from codeq.common.signals import handled
from codeq.training.interruption import SIGNALS, Preempted


def with_quick_end(words: Sequence[str]) -> list[str]:
    """Return the command of a kernel, by which it ends quickly if it is one of this Python.

    Examples
    --------
    >>> with_quick_end(["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    ['python', '-m', 'codeq.cli.kernel', '-f', '{connection_file}']
    >>> with_quick_end(["/elsewhere/bin/python", "-m", "ipykernel_launcher"])
    ['/elsewhere/bin/python', '-m', 'ipykernel_launcher']
    """
    names = {"python", f"python{sys.version_info.major}", "python{}.{}".format(*sys.version_info), sys.executable}
    if words[0] not in names:
        return list(words)
    return ["codeq.cli.kernel" if word == "ipykernel_launcher" else word for word in words]


class ForwardingClient(PapermillNotebookClient):
    """Client that executes the cells and forwards signals to the kernel, where a training saves its state and stops."""

    def create_kernel_manager(self) -> Any:
        """Create the manager of the kernel."""
        manager = super().create_kernel_manager()
        manager.kernel_spec.argv = with_quick_end(manager.kernel_spec.argv)
        if sys.platform == "linux" and "codeq.cli.kernel" in manager.kernel_spec.argv:
            # Ports are chosen and closed again before the kernel takes them: a kernel that starts beside this one may
            # have them by then. Sockets with names in no folder, "@", are its own.
            manager.transport, manager.ip = "ipc", f"@codeq-{uuid.uuid4()}"
        return manager

    def start_new_kernel(self, **kwargs: Any) -> None:
        """Launch the kernel, or raise a `CodeqError`."""
        with _starting():
            super().start_new_kernel(**kwargs)

    def start_new_kernel_client(self) -> Any:
        """Wait until the kernel answers, or raise a `CodeqError`."""
        with _starting():
            return super().start_new_kernel_client()

    def papermill_execute_cells(self) -> None:
        """Execute all cells and forward signals meanwhile; raise `Preempted` if one of them has ended the kernel."""
        with _forwarded(self.km.provisioner.pid) as received:
            try:
                super().papermill_execute_cells()
            except DeadKernelError as error:
                for number in received:
                    if number != signal.SIGINT:  # which interrupts a cell and ends no kernel
                        raise Preempted(f"stopped by {signal.Signals(number).name}") from error
                raise


@contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except OSError as error:  # its program is not there, or no process can be added; it says which
        raise CodeqError(f"the kernel did not start: {error}") from error
    except RuntimeError as error:
        raise CodeqError(f"the kernel did not start, often for lack of memory: {error}") from error


@contextmanager
def _forwarded(pid: int) -> Iterator[list[int]]:
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        if received.count(signal.SIGINT) > 2:  # the kernel, in a session of its own, does not answer
            raise KeyboardInterrupt
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, number)

    with handled(SIGNALS, forward):
        yield received


class ForwardingEngine(Engine):
    """Engine with which papermill executes a notebook."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, start_timeout: int = 60, execution_timeout: int | None = None, **kwargs: Any
    ) -> None:
        """Execute the notebook of `nb_man`; papermill calls this."""
        kwargs.pop("input_path", None)
        client = ForwardingClient(
            nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=execution_timeout, **kwargs
        )
        client.execute()
