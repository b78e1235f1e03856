"""A papermill engine that passes signals on: papermill's own kills the kernel, and with it the training, unsaved."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine

from codeq.training.interruption import SIGNALS


class ForwardingClient(PapermillNotebookClient):
    """Runs the cells; a signal to this process goes on to the kernel, where a training saves itself and stops."""

    def papermill_execute_cells(self) -> None:
        """Execute all cells with the signals forwarded."""
        with _forwarded(self.km.provisioner.pid):
            super().papermill_execute_cells()


@contextmanager
def _forwarded(pid: int) -> Iterator[None]:
    def forward(number: int, _: FrameType | None) -> None:
        os.kill(pid, number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ForwardingEngine(Engine):
    """What papermill calls to execute a notebook."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, start_timeout: int = 60, execution_timeout: int | None = None, **kwargs: Any
    ) -> None:
        """Execute the notebook that `nb_man` manages, as papermill asks its engines to."""
        kwargs.pop("input_path", None)
        client = ForwardingClient(
            nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=execution_timeout, **kwargs
        )
        client.execute()
