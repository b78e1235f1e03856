"""Locks between processes, also those of two machines that share a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from codeq.common.paths import writing

_held: set[TextIOWrapper] = set()  # files of the locks of this process


def _close_inherited() -> None:
    for file in _held:
        file.close()
    _held.clear()


# A lock lasts as long as any process has its file open: without this, the workers of a data loader would keep that of a
# killed training until they notice that it is gone.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of the file `path`, which is made if it does not exist and stays; yield whether it is held.

    Systems and file systems without locks (Windows, some network disks) count as held: there is nobody to ask.

    Parameters
    ----------
    path : Path
        In a folder that exists.
    wait : bool
        Wait until the lock is free; otherwise yield `False` where another process holds it.

    Raises
    ------
    CodeqError
        If the file cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked(Path(folder, ".lock"), wait=True), locked(Path(folder, ".lock"), wait=False) as held:
    ...         held
    False
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    with writing(path):
        file = open(path, "w")  # noqa: SIM115  (closed below; what happens while the lock is held is no matter of `path`)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        _held.add(file)
        try:
            yield True
        finally:
            _held.discard(file)
