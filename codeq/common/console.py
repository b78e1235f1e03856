"""What a training shows while it runs: one line an epoch everywhere, and a moving bar where somebody watches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def somebody_watches() -> bool:
    """Return whether a progress bar can move: in a terminal or a notebook opened in Jupyter, not in a headless run."""
    return sys.stderr.isatty() or ("ipykernel" in sys.modules and "JPY_SESSION_NAME" in os.environ)


def counter(total: int, description: str, unit: str) -> tqdm[Any]:
    """Return a bar for `total` pieces of work that take more than a second; ``update(n)`` moves it."""
    hidden = not somebody_watches()
    return tqdm(total=total, desc=description, unit=unit, leave=False, delay=1, disable=hidden)


def progress_bar(batches: Iterable[T], total: int, done: int, description: str, shown: bool) -> Iterable[T]:
    """Wrap `batches`, of which `done` of `total` are left out, in a bar that leaves nothing behind."""
    hidden = not (shown and somebody_watches())
    return tqdm(batches, total=total, initial=done, desc=description, leave=False, disable=hidden)


def epoch_line(metrics: Mapping[str, Any], total_epochs: int, seconds: float) -> str:
    """Write one epoch as one line.

    Examples
    --------
    >>> print(epoch_line({"epoch": 0, "train/ce_loss": 0.5, "eval/accuracy": 0.9, "sparsity/unstructured": 0.25,
    ...     "sparsity/structured": 0.0, "quantizer/mean_bits": 8.0}, total_epochs=20, seconds=4.2))
    epoch  1/20 | loss 0.5000 | accuracy 90.00 % | zero weights 25.0 % | dead filters  0.0 % | 8.00 bits | 4.2 s
    """
    width = len(str(total_epochs))
    return (
        f"epoch {metrics['epoch'] + 1:>{width}}/{total_epochs} | loss {metrics['train/ce_loss']:.4f} | "
        f"accuracy {metrics['eval/accuracy']:6.2%} | zero weights {metrics['sparsity/unstructured']:5.1%} | "
        f"dead filters {metrics['sparsity/structured']:5.1%} | {metrics['quantizer/mean_bits']:.2f} bits | "
        f"{seconds:.1f} s"
    ).replace("%", " %")
