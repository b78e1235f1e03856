"""Writing of a file or a folder as a whole: a reader finds the old content or the new one."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codeq.common.paths import writing


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, even after a power cut, finds the old content or the new, never a part.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "x"), b"all of it")
    ...     Path(folder, "x").read_bytes()
    b'all of it'
    """
    # Machines that share a disk share process ids; with the name of the file it could be too long.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # makes the new name durable
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` that takes its place at the end, and is removed after an error.

    Each process writes to a folder that no other one has, so that two of them never mix their files. Errors of what is
    done meanwhile stay as they are, since it also reads: whoever writes to the folder does so in `writing`.
    """
    with writing(path):
        # Its permissions are those of any folder, not the private ones of `mkdtemp`.
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        made.chmod(path.parent.stat().st_mode & 0o777)
    try:
        yield made
        with writing(path):
            _replace_folder(made, path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _replace_folder(made: Path, path: Path) -> None:
    """Rename a folder to `path`; what is there, perhaps put there by another process at the same time, is removed."""
    while True:
        try:
            made.rename(path)  # succeeds if there is nothing, or an empty folder
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as old, suppress(FileNotFoundError):
            path.rename(Path(old) / path.name)
