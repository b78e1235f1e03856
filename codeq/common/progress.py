"""Progress of long work: a bar in a terminal or a notebook, and a line now and then in a log."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import Any, TypeVar

from tqdm.std import tqdm

from codeq.common.console import say

T = TypeVar("T")

NOTICEABLE = 5.0  # seconds of silence after which work is announced
INTERVAL = 120.0  # seconds between two lines about the progress of long work in a log


def progress_is_visible() -> bool:
    """Return whether a progress bar can move: in a terminal or a notebook opened in Jupyter, not in a headless run."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return terminal or ("ipykernel" in sys.modules and "JPY_SESSION_NAME" in os.environ)


class ProgressLines(tqdm):
    """A bar of tqdm that prints a line to standard error every few minutes, and nothing at its ends.

    Parameters
    ----------
    *args, **settings
        As of tqdm.
    silence : float
        Seconds until the first line; each of the others follows `INTERVAL` seconds later.

    Examples
    --------
    >>> from contextlib import redirect_stderr
    >>> with redirect_stderr(sys.stdout), ProgressLines(total=4, desc="decoding images", silence=0) as bar:
    ...     _ = bar.update(1), bar.update(2)
    decoding images: 1 of 4 after 00:00, 00:00 left
    """

    def __init__(self, *args: Any, silence: float = INTERVAL, **settings: Any) -> None:
        unit = "{unit}" if settings.get("unit_scale") else ""
        form = f"{{desc}}: {{n_fmt}}{unit} of {{total_fmt}}{unit} after {{elapsed}}, {{remaining}} left"
        # With `gui` tqdm draws nothing itself, and with `miniters` it looks at the clock after every step.
        super().__init__(*args, mininterval=silence, miniters=1, gui=True, bar_format=form, **settings)

    def display(self, *_: Any, **__: Any) -> None:
        """Print the line; tqdm calls this when one is due."""
        say(str(self), file=sys.stderr)
        self.mininterval = INTERVAL


@contextmanager
def announced(text: str) -> Iterator[None]:
    """Print `text` to standard error if the work inside takes noticeable time.

    Examples
    --------
    >>> with announced("checking 2 members ..."):
    ...     pass
    """
    timer = threading.Timer(NOTICEABLE, say, (text, sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def counter(total: int, description: str, unit: str, silence: float = INTERVAL) -> tqdm[Any]:
    """Return a progress bar over `total` items (0: unknown), shown after one second; ``update(n)`` advances it.

    Where no bar can move, a line is printed after `silence` seconds, and then every `INTERVAL` seconds.
    """
    settings: dict[str, Any] = {"total": total or None, "desc": description, "unit": unit, "unit_scale": unit == "B"}
    return _bar(delay=1, **settings) if progress_is_visible() else ProgressLines(silence=silence, **settings)


def counted(batches: Iterable[T], description: str, shown: bool = True, total: int | None = None) -> Iterator[T]:
    """Iterate over `batches`, `total` or as many as they know, with a `counter` if `shown`.

    Examples
    --------
    >>> list(counted(["first", "second"], "proving"))
    ['first', 'second']
    """
    if not shown:
        yield from batches
        return
    with counter(length_hint(batches) if total is None else total, description, "batch") as bar:
        for batch in batches:
            yield batch
            bar.update()


def progress_bar(batches: Iterable[T], total: int, done: int, description: str, shown: bool) -> Iterable[T]:
    """Wrap `batches`, the last ``total - done`` of `total`, in a progress bar that is removed at the end.

    Where no bar can move, a line is printed every `INTERVAL` seconds.
    """
    if not shown:
        return batches
    settings: dict[str, Any] = {"total": total, "initial": done, "desc": description}
    return _bar(batches, **settings) if progress_is_visible() else ProgressLines(batches, **settings)


def _bar(*args: Any, **settings: Any) -> tqdm[Any]:
    from tqdm.auto import tqdm  # of a notebook, where one is open

    return tqdm(*args, leave=False, **settings)
