"""Locks between processes, also those of two machines that share a disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True
