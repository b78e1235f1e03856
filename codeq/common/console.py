"""Console output of trainings and commands: epoch lines, and prints that never fail a run."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from codeq.common.errors import CodeqError, plain_reason
from codeq.common.task_loss import task_loss

LARGE = 1e4  # loss from which digits after the point say nothing


class TolerantStream:
    """A text stream that never raises: what cannot be encoded is replaced, what cannot be written is dropped.

    Parameters
    ----------
    stream : text stream or None
        The stream to write to; `None`, as `sys.stdout` without a console, drops everything.

    Examples
    --------
    >>> import io
    >>> raw = io.BytesIO()
    >>> stream = TolerantStream(io.TextIOWrapper(raw, encoding="cp1252"))
    >>> print("÷8.0 → 4 bits", file=stream, flush=True)
    >>> raw.getvalue().decode("cp1252").strip()
    '÷8.0 ? 4 bits'
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str | None:
        """Encoding of the stream, by which rich chooses the lines of tables."""
        return getattr(self.stream, "encoding", None)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self.stream is not None and self.stream.isatty()

    def write(self, text: str) -> int:
        """Write `text` and return its length."""
        if self.stream is not None and text:  # rich writes "" after a capture, and a full disk takes not even that
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                self.write(text.encode(encoding, "replace").decode(encoding))
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        if self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not isinstance(error, BlockingIOError):  # a full pipe of a reader that is slow
            discard(self.stream)


def say(text: str = "", file: TextIO | None = None) -> None:
    """Print `text` to `file` (default: standard output) at once; a failure to print is ignored.

    Use it beside work that must not be lost, such as a training whose terminal is closed.

    Examples
    --------
    >>> say("epoch 1/20")
    epoch 1/20
    """
    print(text, file=TolerantStream(sys.stdout if file is None else file), flush=True)


class OutputLost(CodeqError):
    """Standard output that cannot be written."""


class ReaderGone(OutputLost):
    """Standard output whose reader has ended, as in ``codeq runs | head -1``."""


def show(text: str) -> None:
    """Print `text`, which is the result of a command, so a failure to print it is one.

    Raises
    ------
    OutputLost
        If standard output cannot be written; what is left in its buffer is discarded.

    Examples
    --------
    >>> show("done  outputs/debug_run")
    done  outputs/debug_run
    """
    try:
        print(text, flush=True)
    except OSError as error:
        discard(sys.stdout)
        kind = ReaderGone if isinstance(error, BrokenPipeError) else OutputLost
        raise kind(f"the output cannot be written: {plain_reason(error)}") from error


def discard(stream: TextIO | None) -> None:
    """Send what is buffered in `stream`, and all that follows, to the null device, so that closing it succeeds."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[union-attr]
        os.close(null)
    except (OSError, ValueError, AttributeError):  # not backed by a file: nothing is flushed at exit
        pass


def compression(ratio: float, digits: int = 1) -> str:
    """Format a compression ratio: how many times smaller, and the remaining fraction in percent with `digits`.

    Examples
    --------
    >>> compression(16.0), compression(float("inf"))
    ('16.0× (6.2 %)', 'inf× (0.0 %)')
    """
    return f"{ratio:.1f}× ({100 / ratio if ratio else math.nan:.{digits}f} %)"


def epoch_line(metrics: Mapping[str, Any], total_epochs: int, seconds: float) -> str:
    """Format the metrics of one epoch as one line, with `task_loss`.

    Examples
    --------
    >>> print(epoch_line({"epoch": 0, "train/ce_loss": 0.5, "eval/accuracy": 0.9, "sparsity/unstructured": 0.25,
    ...     "sparsity/structured": 0.0, "quantizer/mean_bits": 8.0}, total_epochs=20, seconds=4.2))
    epoch  1/20 | loss 0.5000 | accuracy 90.00 % | zero weights 25.0 % | dead filters  0.0 % | 8.00 bits | 4.2 s
    """
    width, loss = len(str(total_epochs)), task_loss(metrics)
    shown = f"{loss:.4g}" if abs(loss) >= LARGE else f"{loss:.4f}"
    test = f"test {metrics['test/accuracy']:6.2%} | " if "test/accuracy" in metrics else ""
    return (
        f"epoch {metrics['epoch'] + 1:>{width}}/{total_epochs} | loss {shown} | "
        f"accuracy {metrics['eval/accuracy']:6.2%} | {test}zero weights {metrics['sparsity/unstructured']:5.1%} | "
        f"dead filters {metrics['sparsity/structured']:5.1%} | {metrics['quantizer/mean_bits']:.2f} bits | "
        f"{seconds:.1f} s"
    ).replace("%", " %")
