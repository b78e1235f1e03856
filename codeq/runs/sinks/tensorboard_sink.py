"""TensorBoard sink: event files in the run's folder."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.common.errors import CodeqError
from codeq.runs.sinks.base import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TensorboardSink:
    """Sink that writes all numbers, the figures and the summary to ``tensorboard/`` in the run's folder.

    Parameters
    ----------
    folder : Path
        The run's folder.
    first_epoch : int
        Epoch from which a run is resumed (0-based); TensorBoard drops what was logged from there on.

    Raises
    ------
    CodeqError
        If TensorBoard is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sink = TensorboardSink(Path(folder))
    ...     sink.log_epoch({"epoch": 0, "eval/accuracy": 0.5})
    ...     sink.close(0)
    ...     print(*[path.name[:19] for path in Path(folder, "tensorboard").iterdir()])
    events.out.tfevents
    """

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "tensorboard"
        self._epoch = first_epoch
        self._writer = SummaryWriter(str(path), purge_step=first_epoch if path.exists() else None)

    def log_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Write the numbers of one epoch."""
        self._epoch = metrics["epoch"]
        for key, value in metrics.items():
            if isinstance(value, int | float) and key != "epoch":
                self._writer.add_scalar(key, value, self._epoch)
        self._writer.flush()

    def log_figure(self, name: str, figure: Figure, epoch: int) -> None:
        """Write `figure` as the image ``viz/<name>``."""
        self._writer.add_image(f"viz/{name}", np.asarray(picture(figure)), epoch, dataformats="HWC")

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the figures of the finished run as text."""
        text = json.dumps(dict(summary), indent=1)
        self._writer.add_text("summary", textwrap.indent(text, "    "), self._epoch)

    def close(self, exit_code: int) -> None:  # noqa: ARG002 - TensorBoard has no exit status
        """Flush and close the event file."""
        self._writer.close()


def check_tensorboard() -> None:
    """Raise a `CodeqError` if TensorBoard is not installed.

    Examples
    --------
    >>> check_tensorboard()
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise CodeqError("tensorboard=true needs the package: pip install 'codeq[tensorboard]'") from error
