"""TensorBoard sink: event files in the run's folder, whose failure never affects the run."""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codeq.common.errors import CodeqError
from codeq.runs.sinks.base import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class TensorboardSink:
    """Sink that writes all numbers, the figures and the summary to ``tensorboard/`` in the run's folder.

    The first failure is logged as one warning and ends the recording; no method raises.

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
        self._writer: Any = None
        with self._guarded():
            self._writer = SummaryWriter(str(path), purge_step=first_epoch if path.exists() else None)

    def log_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Write the numbers of one epoch."""
        self._epoch = metrics["epoch"]
        if self._writer:
            with self._guarded():
                for key, value in metrics.items():
                    if isinstance(value, int | float) and key != "epoch":
                        self._writer.add_scalar(key, value, self._epoch)
                self._writer.flush()

    def log_figure(self, name: str, figure: Figure, epoch: int) -> None:
        """Write `figure` as the image ``viz/<name>``."""
        if self._writer:
            with self._guarded():
                self._writer.add_image(f"viz/{name}", np.asarray(picture(figure)), epoch, dataformats="HWC")

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the figures of the finished run as text."""
        text = json.dumps(dict(summary), indent=1)
        if self._writer:
            with self._guarded():
                self._writer.add_text("summary", textwrap.indent(text, "    "), self._epoch)

    def close(self, exit_code: int) -> None:  # noqa: ARG002 - TensorBoard has no exit status
        """Flush and close the event file."""
        if self._writer:
            with self._guarded():
                self._writer.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """End the recording with a warning where writing fails: the disk is full, say, or the folder is a file."""
        try:
            yield
        except Exception as error:
            self._writer = None
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            logger.warning("TensorBoard failed: %s. The run continues without it; its files are complete", reason)


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
